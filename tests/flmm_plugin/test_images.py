"""Whatever can be a picture becomes RGB; whatever cannot is a BadImage that says why."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from flmm_plugin.errors import BadImage
from flmm_plugin.images import open_image


@pytest.fixture
def picture(noise_image) -> Image.Image:  # type: ignore[no-untyped-def]
    return noise_image(40, 30)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def test_every_source_of_the_same_picture_gives_the_same_pixels(picture: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(encoded(picture))
    expected = np.asarray(picture)
    for source in (path, str(path), path.read_bytes(), picture, expected):
        opened = open_image(source)
        assert opened.mode == "RGB"
        assert np.array_equal(np.asarray(opened), expected)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1"])
def test_every_mode_becomes_rgb(picture: Image.Image, mode: str) -> None:
    opened = open_image(picture.convert(mode))
    assert (opened.mode, opened.size) == ("RGB", (40, 30))


def test_pixels_with_one_three_and_four_channels() -> None:
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    for pixels in (grey, grey[:, :, None], np.repeat(grey[:, :, None], 3, 2), np.repeat(grey[:, :, None], 4, 2)):
        assert np.asarray(open_image(pixels))[2, 3].tolist() == [11, 11, 11]


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    opened = np.asarray(open_image(encoded(Image.fromarray(np.array([[0, 25600, 65535]], dtype=np.uint16)))))
    assert opened[0, :, 0].tolist() == [0, 100, 255]


def test_orientation_tags_do_not_turn_the_picture(picture: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a viewer would show it turned by 90 degrees
    assert open_image(encoded(picture, "JPEG", exif=exif)).size == picture.size


@pytest.mark.parametrize("lenient", [False, True])
def test_a_truncated_file_is_refused(
    picture: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lenient: bool
) -> None:
    """Also inside lmms-eval, which tells Pillow to fill in what is missing."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)
    for kind in ("JPEG", "PNG"):
        content = encoded(picture, kind)
        with pytest.raises(BadImage, match="damaged or truncated"):
            open_image(content[: len(content) * 2 // 3])
        path = tmp_path / f"cut.{kind.lower()}"
        path.write_bytes(content[:600])
        with pytest.raises(BadImage, match="cut"):
            open_image(path)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is lenient


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "notes.png"
    text.write_text("not a picture")
    with pytest.raises(BadImage, match=r"notes\.png.*not an image file"):
        open_image(text)
    with pytest.raises(BadImage, match="not an image file"):
        open_image(b"")
    with pytest.raises(BadImage, match="there is no file"):
        open_image(tmp_path / "missing.png")
    with pytest.raises(BadImage, match="cannot be read"):
        open_image(tmp_path)
    with pytest.raises(BadImage, match="cannot open a int"):
        open_image(7)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((4, 4), dtype=np.float32), "uint8"),
        (np.zeros((4, 4, 2), dtype=np.uint8), "shape"),
        (np.zeros((0, 4, 3), dtype=np.uint8), "shape"),
        (np.zeros((2, 4, 4, 3), dtype=np.uint8), "shape"),
    ],
)
def test_arrays_that_are_no_pixels_are_refused(pixels: np.ndarray, message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(BadImage, match=message):
        open_image(pixels)


def test_a_picture_without_pixels_is_refused() -> None:
    with pytest.raises(BadImage, match="no pixels"):
        open_image(Image.new("RGB", (0, 5)))


def test_a_decompression_bomb_is_refused(picture: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(BadImage, match="cannot be opened"):
        open_image(encoded(picture))
