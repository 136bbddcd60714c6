"""The grid lies where the processor put it: on paper for any size, and through the real processors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import CLIPImageProcessor, LlavaImageProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from flmm_plugin.backbones.llava import follow_processor
from flmm_plugin.errors import BackboneUnsupported
from flmm_plugin.geometry import ImageGrid, InputFrame

SIZE, PATCH = 112, 8
MAKERS: dict[str, Callable[[int, int], ImageGrid]] = {
    "crop": lambda height, width: ImageGrid.from_center_crop(height, width, SIZE, PATCH),
    "pad_first": lambda height, width: ImageGrid.from_pad_then_resize(height, width, SIZE, PATCH),
    "resize_pad": lambda height, width: ImageGrid.from_resize_then_pad(height, width, SIZE, PATCH),
    "resize_pad_int": lambda height, width: ImageGrid.from_resize_then_pad(height, width, SIZE, PATCH, rounded=False),
    "squash": lambda height, width: ImageGrid.from_squash(height, width, SIZE, SIZE, PATCH),
}


@pytest.mark.parametrize("maker", MAKERS)
@given(
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    corners=st.tuples(*[st.floats(0, 0.999) for _ in range(4)]),
)
@example(height=30, width=3000, corners=(0.1, 0.5, 0.4, 0.9))  # wide
@example(height=3000, width=30, corners=(0.7, 0.1, 0.95, 0.2))  # tall
@example(height=1, width=1, corners=(0.0, 0.0, 0.0, 0.0))  # tiny
@example(height=1600, width=1200, corners=(0.3, 0.3, 0.301, 0.301))  # huge, one pixel
@settings(max_examples=25, deadline=None)
def test_a_rectangle_there_and_back_covers_itself(
    maker: str, height: int, width: int, corners: tuple[float, float, float, float]
) -> None:
    grid = MAKERS[maker](height, width)
    y0, y1 = sorted(int(corner * height) for corner in corners[::2])
    x0, x1 = sorted(int(corner * width) for corner in corners[1::2])
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[y0 : y1 + 1, x0 : x1 + 1] = True

    touched = (grid.image_to_grid(mask) > 0).float()
    back = grid.grid_to_image(touched, fill=0.0)
    seen = grid.grid_to_image(torch.ones(grid.height, grid.width), fill=0.0) > 0

    if maker != "crop":
        assert bool(seen.all()), "only a centre crop may hide pixels"
    # Bilinear: a pixel gets at least a quarter of the cell it lies in.
    assert bool((back[mask & seen] >= 0.25 - 1e-4).all())
    # And nothing beyond the touched cells and half of their neighbours.
    reach_y, reach_x = 1.5 * grid.scale_y + 1, 1.5 * grid.scale_x + 1
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    near = (rows > y0 - reach_y) & (rows < y1 + reach_y) & (columns > x0 - reach_x) & (columns < x1 + reach_x)
    assert bool((back[~near] == 0).all())


@pytest.mark.parametrize("maker", MAKERS)
def test_coverage_is_area(maker: str) -> None:
    grid = MAKERS[maker](90, 150)
    mask = torch.zeros(90, 150, dtype=torch.bool)
    mask[30:60, 50:100] = True  # within every extent, the crop's too
    covered = grid.image_to_grid(mask).sum() * grid.scale_y * grid.scale_x
    assert float(covered) == pytest.approx(30 * 50, rel=1e-4)


def test_formulas_by_hand() -> None:
    # 480 x 640 through llava-hf's crop: 336 x 448, 56 columns cut on each side; 75 % of the picture is seen.
    crop = ImageGrid.from_center_crop(480, 640, 336, 14)
    assert (crop.height, crop.width, crop.scale_y, crop.scale_x) == (24, 24, 20.0, 20.0)
    assert (crop.offset_y, crop.offset_x) == (0.0, 80.0)
    # Padded first: the square is 640, 80 rows above.
    pad = ImageGrid.from_pad_then_resize(480, 640, 336, 14)
    assert (pad.scale_y, pad.offset_y, pad.offset_x) == (pytest.approx(640 / 24), -80.0, 0.0)
    squash = ImageGrid.from_squash(480, 640, 448, 448, 14)
    assert (squash.height, squash.scale_y, squash.scale_x) == (32, 15.0, 20.0)
    # 426 x 640 to 384: 255.6 rows, rounded 256, truncated 255.
    rounded = ImageGrid.from_resize_then_pad(426, 640, 384, 16)
    truncated = ImageGrid.from_resize_then_pad(426, 640, 384, 16, rounded=False)
    assert (rounded.scale_y, rounded.offset_y) == (pytest.approx(16 * 426 / 256), pytest.approx(-64 * 426 / 256))
    assert (truncated.scale_y, truncated.offset_y) == (pytest.approx(16 * 426 / 255), pytest.approx(-64 * 426 / 255))


def test_a_map_of_the_picture_itself_is_unchanged() -> None:
    grid = ImageGrid(6, 9, 1.0, 1.0, 0.0, 0.0, 6, 9)
    maps = torch.randn(2, 3, 6, 9)
    torch.testing.assert_close(grid.grid_to_image(maps, 0.0), maps, rtol=0, atol=1e-5)


def test_pixels_that_were_not_seen_get_the_fill() -> None:
    grid = ImageGrid.from_center_crop(60, 100, 56, 14)
    image = grid.grid_to_image(torch.full((1, 16, 16), 3.0), fill=-7.0)
    assert image.shape == (1, 60, 100)
    assert (image[0, 30, 0], image[0, 30, 50], image[0, 30, 99]) == (-7.0, 3.0, -7.0)
    assert float((image == -7.0).float().mean()) == pytest.approx(0.39, abs=0.02)


def test_masks_of_another_picture_are_refused() -> None:
    grid = ImageGrid.from_squash(60, 100, 56, 56, 14)
    with pytest.raises(ValueError, match="original size"):
        grid.image_to_grid(torch.zeros(100, 60))
    with pytest.raises(ValueError, match="at least one row"):
        ImageGrid(0, 4, 1.0, 1.0, 0.0, 0.0, 10, 10)
    with pytest.raises(ValueError, match="positive size"):
        ImageGrid(4, 4, 0.0, 1.0, 0.0, 0.0, 10, 10)


# --- real processors -----------------------------------------------------------------------------------------------

SQUARE = {"height": SIZE, "width": SIZE}
PROCESSORS: dict[str, Any] = {
    "clip crop": lambda: CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size=SQUARE),
    "clip crop pil": lambda: CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size=SQUARE),
    "clip squash": lambda: CLIPImageProcessor(size=SQUARE, do_center_crop=False),
    "llava pad": lambda: LlavaImageProcessor(size={"shortest_edge": SIZE}, crop_size=SQUARE, do_pad=True),
    "llava pad pil": lambda: LlavaImageProcessorPil(size={"shortest_edge": SIZE}, crop_size=SQUARE, do_pad=True),
    "llava crop": lambda: LlavaImageProcessor(size={"shortest_edge": SIZE}, crop_size=SQUARE),
    "no resize": lambda: CLIPImageProcessor(crop_size=SQUARE, do_resize=False),
    "no resize pil": lambda: CLIPImageProcessorPil(crop_size=SQUARE, do_resize=False),
}
SIZES = [(480, 640), (640, 480), (333, 500), (200, 901), (901, 200), (112, 112), (45, 67), (7, 300), (101, 143)]


def ramp(height: int, width: int) -> Image.Image:
    """Red tells the column, green the row, blue that it is picture and not padding."""
    y, x = np.mgrid[:height, :width]
    red, green = np.round((x + 0.5) / width * 255), np.round((y + 0.5) / height * 255)
    return Image.fromarray(np.stack([red, green, np.full_like(red, 255)], axis=-1).astype(np.uint8))


@pytest.mark.parametrize("name", PROCESSORS)
def test_coordinates_painted_on_a_picture_come_out_where_the_grid_says(name: str) -> None:
    processor = PROCESSORS[name]()
    compared = 0
    for height, width in SIZES:
        pixels = processor(ramp(height, width), do_rescale=False, do_normalize=False, return_tensors="pt")
        values = pixels["pixel_values"][0].float()
        frame = follow_processor(processor, height, width)
        assert (frame.height, frame.width) == tuple(values.shape[1:])
        grid = frame.grid(PATCH)
        cells = torch.nn.functional.avg_pool2d(values, PATCH)
        inside = cells[2] > 254.9
        rows = torch.arange(grid.height)[:, None] * grid.scale_y + grid.scale_y / 2 + grid.offset_y
        columns = torch.arange(grid.width)[None] * grid.scale_x + grid.scale_x / 2 + grid.offset_x
        if not bool(inside.any()):
            continue  # a strip thinner than a cell
        for axis, expected, side in ((1, rows, height), (0, columns, width)):
            read = cells[axis] / 255 * side
            # Half a grey level of the ramp, and a pixel of the resampling filter at the picture's edge.
            error = (read - expected).abs()[inside]
            assert float(error.max()) < 1.0 + 0.5 * side / 255, (name, height, width)
        compared += int(inside.sum())
    assert compared > 200


def test_processors_that_are_not_known_exactly_are_refused() -> None:
    with pytest.raises(BackboneUnsupported, match="longest_edge"):
        follow_processor(CLIPImageProcessor(size={"shortest_edge": 50, "longest_edge": 99}), 40, 60)
    with pytest.raises(BackboneUnsupported, match="do_pad=True"):
        follow_processor(CLIPImageProcessor(do_pad=True, pad_size=SQUARE), 40, 60)


# --- grids of tiles and of pictures that were changed before -------------------------------------------------------


def test_a_grid_through_an_earlier_step_is_the_grid_of_both_steps() -> None:
    """Padded to a square by hand, then cropped by the processor: the same as following both at once."""
    padded = InputFrame.of_image(60, 100).resized(30, 50).padded_to_square()
    then = InputFrame.of_image(50, 50).resized(40, 40).center_cropped(28, 28).grid(7)
    both = padded.resized(40, 40).center_cropped(28, 28).grid(7)
    through = then.through(padded)
    assert (through.height, through.width, through.image_height, through.image_width) == (4, 4, 60, 100)
    for name in ("scale_y", "scale_x", "offset_y", "offset_x"):
        assert getattr(through, name) == pytest.approx(getattr(both, name))


def test_trimming_takes_cells_and_dividing_keeps_the_extent() -> None:
    grid = InputFrame.of_image(60, 100).resized(120, 200).divided(6, 10)
    assert (grid.scale_y, grid.scale_x) == (10.0, 10.0)
    inner = grid.trimmed(1, 2)
    assert (inner.height, inner.width, inner.offset_y, inner.offset_x) == (4, 6, 10.0, 20.0)
    mask = torch.zeros(60, 100, dtype=torch.bool)
    mask[10:20, 20:30] = True
    assert inner.image_to_grid(mask).nonzero().tolist() == [[0, 0]]
    fewer = inner.divided(2, 3)
    assert (fewer.scale_y, fewer.scale_x, fewer.offset_y, fewer.offset_x) == (20.0, 20.0, 10.0, 20.0)
