"""Pictures of results: masks on their picture, and attention maps side by side. numpy, matplotlib colours and PIL.

Frames: masks and pictures are in the image frame [H, W]; attention maps are in the grid frame [m, c, h, w], and the
grid says which part of the picture its cells cover.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.colors import hsv_to_rgb
from PIL import Image, ImageDraw, ImageFont

from flmm_plugin.records import Grounding

Colour = tuple[int, int, int]

# Okabe and Ito's colours, told apart with every kind of colour vision; black left out.
_PALETTE: tuple[Colour, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)
_INK, _PAPER, _FRAME = (20, 20, 20), (255, 255, 255), (128, 128, 128)


class PlacedGrid(Protocol):
    """What a figure needs of `flmm_plugin.geometry.ImageGrid`."""

    @property
    def height(self) -> int:
        """Cells down."""

    @property
    def width(self) -> int:
        """Cells across."""

    @property
    def scale_y(self) -> float:
        """Pixels per cell, down."""

    @property
    def scale_x(self) -> float:
        """Pixels per cell, across."""

    @property
    def offset_y(self) -> float:
        """First pixel row of the grid."""

    @property
    def offset_x(self) -> float:
        """First pixel column of the grid."""


def colours(count: int) -> list[Colour]:
    """That many distinct colours: a palette for colour-blind readers first, then hues a golden angle apart."""
    extra = [
        tuple(round(255 * v) for v in hsv_to_rgb(((0.11 + 0.381966 * i) % 1.0, 0.75, 0.9)))
        for i in range(max(0, count - len(_PALETTE)))
    ]
    return [*_PALETTE, *((r, g, b) for r, g, b in extra)][:count]


def mask_layer(groundings: Sequence[Grounding], size: tuple[int, int], alpha: float = 0.45) -> Image.Image:
    """The masks alone, RGBA of ``size`` = (W, H): tinted areas with solid contours, to lay over the picture."""
    width, height = size
    layer = np.zeros((height, width, 4), np.uint8)
    palette = colours(len(groundings))
    for grounding, colour in zip(groundings, palette, strict=True):
        layer[_resized(grounding.mask, size)] = (*colour, round(255 * alpha))
    # Contours last, so that an overlapping area never hides another mask's edge.
    thickness = max(1, round(max(size) / 250))
    for grounding, colour in zip(groundings, palette, strict=True):
        layer[contour(_resized(grounding.mask, size), thickness)] = (*colour, 255)
    return Image.fromarray(layer, "RGBA")


def overlay(
    image: Image.Image,
    groundings: Sequence[Grounding],
    legend: bool = True,
    *,
    alpha: float = 0.45,
    min_side: int = 480,
) -> Image.Image:
    """A picture with its masks, numbered, and below it what each number says.

    Args:
        image: The original picture.
        groundings: With masks of its size.
        legend: Add a strip with colour, number, phrase and score of each grounding.
        alpha: Opacity of a mask's area.
        min_side: Small pictures are enlarged by a whole factor until their longer side reaches this: labels need room.

    Raises:
        ValueError: A mask is not of the picture's size.
    """
    for grounding in groundings:
        if grounding.mask.shape != (image.height, image.width):
            raise ValueError(
                f"mask of {grounding.phrase!r} is {grounding.mask.shape}, the picture is "
                f"{(image.height, image.width)}; give masks in the image frame"
            )
    factor = max(1, math.ceil(min_side / max(image.size)))
    size = (image.width * factor, image.height * factor)
    canvas = image.convert("RGBA").resize(size, Image.Resampling.BICUBIC if factor > 1 else Image.Resampling.NEAREST)
    canvas.alpha_composite(mask_layer(groundings, size, alpha))
    picture = canvas.convert("RGB")
    font, palette = typeface(max(13, max(size) // 40)), colours(len(groundings))
    draw = ImageDraw.Draw(picture)
    for number, (grounding, colour) in enumerate(zip(groundings, palette, strict=True), start=1):
        if grounding.mask.any():
            _badge(draw, _anchor(grounding.mask, factor), str(number), colour, font, size)
    if not legend or not groundings:
        return picture
    lines = [
        (f"{number}  {g.phrase}", ("" if math.isnan(g.score) else f"{g.score:.2f}") if g.mask.any() else "empty mask")
        for number, g in enumerate(groundings, start=1)
    ]
    return _with_legend(picture, lines, palette, font)


def contact_sheet(
    maps: npt.NDArray[np.floating[Any]],
    image: Image.Image,
    grid: PlacedGrid | None = None,
    *,
    phrase: str = "",
    clusters: int = 4,
    cell: int = 72,
) -> Image.Image:
    """Every attention map of a phrase on one sheet: picture, mean and clusters above, one row per layer below.

    Args:
        maps: ``[m, c, h, w]``, >= 0: layers, heads, grid frame.
        image: The original picture.
        grid: Where the maps lie on it; None: they cover it whole.
        phrase: Printed as title.
        clusters: For the K-means view of all maps together (the paper's Figure 7).
        cell: Longer side of one small map in pixels.

    Raises:
        ValueError: ``maps`` has not four axes.
    """
    if maps.ndim != 4:
        raise ValueError(f"maps are [layers, heads, h, w], got shape {maps.shape}")
    layers, heads = maps.shape[:2]
    small = _fitted(maps.shape[-2:], cell)
    large = (small[0] * 3, small[1] * 3)
    view = seen_by_grid(image, grid)
    labels = cluster_maps(maps, clusters)
    shades = labels / max(1, int(labels.max()))
    tops = [
        ("picture", view.resize(large, Image.Resampling.BICUBIC)),
        ("mean of all", heat_map(maps.mean(axis=(0, 1)), view, large)),
        (f"K-means, {int(labels.max()) + 1} clusters", shaded(shades, large, Image.Resampling.NEAREST)),
        *(
            (f"layer {layer}, the sharpest", heat_map(maps[layer].mean(axis=0), view, large))
            for layer in [_sharpest(maps)]
        ),
    ]
    font, gap = typeface(13), 4
    margin = 34
    top_height = large[1] + 24
    title_height = 26 if phrase else 6
    width = max(margin + heads * (small[0] + gap), len(tops) * (large[0] + gap) + gap)
    height = title_height + top_height + 20 + layers * (small[1] + gap) + gap
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    if phrase:
        draw.text((gap, 5), f"attention of \u201c{phrase}\u201d", fill=_INK, font=typeface(15))
    for index, (name, picture) in enumerate(tops):
        x = gap + index * (large[0] + gap)
        sheet.paste(picture, (x, title_height))
        draw.text((x, title_height + large[1] + 3), name, fill=_INK, font=font)
    start = title_height + top_height + 20
    for head in range(heads):
        draw.text((margin + head * (small[0] + gap), start - 18), f"h{head}", fill=_FRAME, font=font)
    for layer in range(layers):
        y = start + layer * (small[1] + gap)
        draw.text((4, y + small[1] // 2 - 8), f"L{layer}", fill=_FRAME, font=font)
        for head in range(heads):
            sheet.paste(heat_map(maps[layer, head], None, small), (margin + head * (small[0] + gap), y))
    return sheet


def cluster_maps(maps: npt.NDArray[np.floating[Any]], clusters: int = 4, seed: int = 0) -> npt.NDArray[np.int64]:
    """K-means over grid cells, each described by its value in every map: labels ``[h, w]``, 0 = least attended.

    Args:
        maps: ``[..., h, w]``, >= 0; each map is scaled to sum 1 first, so that a loud head does not decide alone.
        clusters: At most; fewer where cells do not differ.
        seed: Of the initial centres.
    """
    from sklearn.cluster import KMeans

    height, width = maps.shape[-2:]
    stack = np.nan_to_num(np.asarray(maps, dtype=np.float64)).reshape(-1, height * width)
    stack = stack / np.maximum(stack.sum(axis=1, keepdims=True), 1e-12)
    cells = stack.T
    distinct = len(np.unique(cells, axis=0))
    labels = KMeans(min(clusters, distinct), n_init=4, random_state=seed).fit_predict(cells)
    mean = np.array([cells[labels == label].mean() for label in range(int(labels.max()) + 1)])
    rank = np.empty_like(labels)
    for place, label in enumerate(np.argsort(mean, kind="stable")):
        rank[labels == label] = place
    return np.asarray(rank.reshape(height, width), dtype=np.int64)


def seen_by_grid(image: Image.Image, grid: PlacedGrid | None) -> Image.Image:
    """The part of the picture that the grid's cells cover; black where they reach beyond it."""
    if grid is None:
        return image.convert("RGB")
    extent_x, extent_y = grid.scale_x * grid.width, grid.scale_y * grid.height
    box = (grid.offset_x, grid.offset_y, grid.offset_x + extent_x, grid.offset_y + extent_y)
    size = (max(1, round(extent_x)), max(1, round(extent_y)))
    return image.convert("RGB").transform(size, Image.Transform.EXTENT, box, Image.Resampling.BILINEAR)


def contour(mask: npt.NDArray[np.bool_], thickness: int = 1) -> npt.NDArray[np.bool_]:
    """Pixels of ``bool[H, W]`` with a neighbour outside within ``thickness`` steps (4-neighbours, border = outside)."""
    inner = mask
    for _ in range(thickness):
        padded = np.pad(inner, 1)
        inner = inner & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner


def _resized(mask: npt.NDArray[np.bool_], size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    if mask.shape == (size[1], size[0]):
        return mask
    return np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST), dtype=bool)


def _anchor(mask: npt.NDArray[np.bool_], factor: int) -> tuple[int, int]:
    """The mask's pixel nearest to its centre of mass, so that a label never sits in the hole of a ring."""
    rows, columns = np.nonzero(mask)
    nearest = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)
    return int((columns[nearest] + 0.5) * factor), int((rows[nearest] + 0.5) * factor)


def _badge(
    draw: ImageDraw.ImageDraw,
    centre: tuple[int, int],
    text: str,
    colour: Colour,
    font: ImageFont.FreeTypeFont,
    size: tuple[int, int],
) -> None:
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    half_w, half_h = (right - left) / 2 + 4, (bottom - top) / 2 + 3
    x = min(max(centre[0], half_w), size[0] - half_w)
    y = min(max(centre[1], half_h), size[1] - half_h)
    draw.rectangle((x - half_w, y - half_h, x + half_w, y + half_h), fill=_PAPER, outline=colour, width=2)
    draw.text((x - (left + right) / 2, y - (top + bottom) / 2), text, fill=_INK, font=font)


def _with_legend(
    picture: Image.Image, lines: list[tuple[str, str]], palette: list[Colour], font: ImageFont.FreeTypeFont
) -> Image.Image:
    row = int(font.size * 1.6)
    out = Image.new("RGB", (picture.width, picture.height + row * len(lines) + 6), _PAPER)
    out.paste(picture, (0, 0))
    draw = ImageDraw.Draw(out)
    for index, ((label, score), colour) in enumerate(zip(lines, palette, strict=True)):
        y = picture.height + 4 + index * row
        draw.rectangle((6, y + 2, 6 + row - 6, y + row - 4), fill=colour, outline=_INK)
        room = picture.width - row - 14 - draw.textlength(score, font=font) - 12
        draw.text((row + 8, y), _shortened(label, font, room), fill=_INK, font=font)
        draw.text((picture.width - draw.textlength(score, font=font) - 8, y), score, fill=_INK, font=font)
    return out


def _shortened(text: str, font: ImageFont.FreeTypeFont, room: float) -> str:
    text = " ".join(text.split())
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(text + "\u2026") > room:
        text = text[:-1]
    return text + "\u2026"


def heat_map(values: npt.NDArray[np.floating[Any]], view: Image.Image | None, size: tuple[int, int]) -> Image.Image:
    """One map scaled to its own range, in colour; over a dimmed picture if one is given."""
    values = np.nan_to_num(np.asarray(values, dtype=np.float64))
    span = values.max() - values.min()
    scaled = (values - values.min()) / span if span > 0 else np.zeros_like(values)
    painted = shaded(scaled, size, Image.Resampling.BILINEAR if view is not None else Image.Resampling.NEAREST)
    if view is None:
        return painted
    return Image.blend(view.convert("L").convert("RGB").resize(size, Image.Resampling.BICUBIC), painted, 0.65)


def shaded(scaled: npt.NDArray[np.floating[Any]], size: tuple[int, int], how: Image.Resampling) -> Image.Image:
    """Values ``[h, w]`` in 0..1 as colours, enlarged to ``size`` = (W, H)."""
    raised = Image.fromarray(scaled.astype(np.float32)).resize(size, how)
    return Image.fromarray((mpl.colormaps["viridis"](np.asarray(raised))[..., :3] * 255).astype(np.uint8))


def _sharpest(maps: npt.NDArray[np.floating[Any]]) -> int:
    """The layer whose mean map has the lowest entropy."""
    mean = maps.mean(axis=1).reshape(maps.shape[0], -1).astype(np.float64)
    share = mean / np.maximum(mean.sum(axis=1, keepdims=True), 1e-12)
    return int(np.argmin(-(share * np.log(np.maximum(share, 1e-12))).sum(axis=1)))


def _fitted(grid: tuple[int, ...], side: int) -> tuple[int, int]:
    height, width = grid
    scale = side / max(height, width)
    return max(1, round(width * scale)), max(1, round(height * scale))


def typeface(size: int) -> ImageFont.FreeTypeFont:
    """The letters of all figures, ``size`` pixels high."""
    # matplotlib brings DejaVu Sans along: the same letters on every machine, with most scripts' characters.
    return ImageFont.truetype(str(Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)
