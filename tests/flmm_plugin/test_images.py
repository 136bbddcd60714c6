"""Whatever can be a picture becomes RGB; whatever cannot is a BadImage that says why."""

from __future__ import annotations

import io
import os
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_args

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile, ImageOps, features

from flmm_plugin.errors import BadImage, UnknownArgument
from flmm_plugin.images import Orientation, chat_image, image_size, open_image, stock_image


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


RAMP = np.array([[0, 25600, 51200, 65535]], dtype=np.uint16)  # of 16 bits; of 8 bits: 0, 100, 200, 255


def tiff(pixels: np.ndarray, **tags: int) -> bytes:  # type: ignore[type-arg]
    """A TIFF of one grey strip, with tags that Pillow does not write."""
    height, width = pixels.shape
    fields = {256: width, 257: height, 258: 8 * pixels.itemsize, 259: 1, 262: 1, 273: 8, 277: 1, 278: height}
    fields |= {279: pixels.nbytes, 339: 1} | {int(tag[1:]): value for tag, value in tags.items()}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(fields.items()))
    head = struct.pack("<2sHI", b"II", 42, 8 + pixels.nbytes)
    return head + pixels.tobytes() + struct.pack("<H", len(fields)) + entries + bytes(4)


def sixteen_bit_files() -> dict[str, bytes]:
    grey = Image.fromarray(RAMP)
    return {
        "png": encoded(grey),
        "tiff": encoded(grey, "TIFF"),
        "tiff, compressed": encoded(grey, "TIFF", compression="tiff_lzw"),
        "tiff, big endian": encoded(Image.frombytes("I;16B", (4, 1), RAMP.byteswap().tobytes()), "TIFF"),
        "tiff, white is zero": tiff(65535 - RAMP, _262=0),
        "jpeg 2000": encoded(grey, "JPEG2000", irreversible=False),
        "pgm": b"P5 4 1 65535\n" + RAMP.byteswap().tobytes(),
        "pgm, plain": b"P2 4 1 65535\n0 25600 51200 65535\n",
        "pgm of 10 bits": b"P5 4 1 1023\n" + (RAMP >> 6).byteswap().tobytes(),
    }


@pytest.mark.parametrize("kind", list(sixteen_bit_files()))
def test_sixteen_bit_grey_is_scaled_by_the_depth_that_the_file_states(kind: str) -> None:
    found = np.asarray(open_image(sixteen_bit_files()[kind])).astype(int)
    assert (found == found[:, :, :1]).all()
    assert np.abs(found[0, :, 0] - [0, 100, 200, 255]).max() <= 1


def test_a_tiff_of_twelve_bits_fills_the_eight() -> None:
    packed = bytes.fromhex("000 640 c80 fff".replace(" ", ""))
    content = tiff(np.frombuffer(packed, dtype=np.uint8)[None], _256=4, _258=12, _279=len(packed))
    assert np.asarray(open_image(content))[0, :, 0].tolist() == [0, 100, 200, 255]


def planes(picture: Image.Image, bits: int) -> bytes:
    """A colour TIFF with one plane after the other."""
    pixels = np.asarray(picture).transpose(2, 0, 1).astype("<u2" if bits == 16 else "<u1") * (257 if bits == 16 else 1)
    size, end = pixels[0].nbytes, 8 + pixels.nbytes
    lists = struct.pack("<3H2x", bits, bits, bits) + struct.pack("<6I", 8, 8 + size, 8 + 2 * size, size, size, size)
    fields = [
        (256, 1, picture.width), (257, 1, picture.height), (258, 3, end), (259, 1, 1), (262, 1, 2), (273, 3, end + 8),
        (277, 1, 3), (278, 1, picture.height), (279, 3, end + 20), (284, 1, 2),
    ]  # fmt: skip
    entries = b"".join(
        struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, count, value) for tag, count, value in fields
    )
    head = struct.pack("<2sHI", b"II", 42, end + len(lists))
    return head + pixels.tobytes() + lists + struct.pack("<H", len(fields)) + entries + bytes(4)


def test_planes_of_sixteen_bits_are_not_mixed_up(picture: Image.Image) -> None:
    assert same(open_image(planes(picture, 8)), picture)
    try:
        assert same(open_image(planes(picture, 16)), picture)
    except BadImage as exc:
        assert "RGB" in str(exc)  # noqa: PT017 - either is right


@pytest.mark.parametrize("kind", ["png", "tiff", "ppm"])
def test_colours_of_sixteen_bits(picture: Image.Image, kind: str) -> None:
    deep = np.asarray(picture)[:, :, ::-1].astype(np.uint16) * 257
    assert same(open_image(cv2.imencode(f".{kind}", deep)[1].tobytes()), picture)


def test_a_dark_picture_of_sixteen_bits_stays_dark() -> None:
    assert np.asarray(open_image(encoded(Image.fromarray(RAMP >> 8)))).max() == 0


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I;16L"])
def test_a_pil_image_of_sixteen_bits(mode: str) -> None:
    raw = RAMP.byteswap().tobytes() if mode == "I;16B" else RAMP.tobytes()
    assert np.asarray(open_image(Image.frombytes(mode, (4, 1), raw)))[0, :, 0].tolist() == [0, 100, 200, 255]


@pytest.mark.parametrize(
    "source",
    [
        Image.new("I", (4, 3)),
        Image.new("F", (4, 3)),
        tiff(RAMP.astype(np.uint32)),
        tiff(RAMP.astype(np.float32), _339=3),
        tiff(RAMP.astype(np.int16), _339=2),
        tiff(RAMP.astype(np.int8), _339=2),
        b"Pf 4 1 -1.0\n" + RAMP.astype("<f4").tobytes(),
    ],
    ids=["I", "F", "32 bits", "float", "signed", "signed 8 bits", "pfm"],
)
def test_a_mode_without_a_stated_range_is_refused_by_name(source: Image.Image | bytes) -> None:
    with pytest.raises(BadImage, match=r"mode (I|F|L)\b|mode is unknown"):
        open_image(source)


@pytest.mark.parametrize(
    "mode", ["1", "CMYK", "HSV", "L", "LA", "LAB", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "YCbCr"]
)
def test_every_other_mode_gives_the_scene(picture: Image.Image, mode: str) -> None:
    between = {"La": "LA", "RGBa": "RGBA", "PA": "P"}.get(mode)
    made = ImageCms.profileToProfile(
        picture, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    ) if mode == "LAB" else (picture.convert(between) if between else picture).convert(mode)  # fmt: skip
    assert made is not None
    seen = np.asarray(open_image(made)).astype(float)
    assert np.corrcoef(seen.mean(2).ravel(), np.asarray(picture.convert("L")).ravel())[0, 1] > 0.4


def same(one: Image.Image, other: Image.Image) -> bool:
    return np.array_equal(np.asarray(one), np.asarray(other))


def turned(picture: Image.Image, tag: int, kind: str = "JPEG") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = tag
    return encoded(picture, kind, exif=exif, quality=95)


@pytest.mark.parametrize("tag", range(10))
def test_a_file_is_shown_upright_unless_its_stored_pixels_are_asked_for(
    picture: Image.Image, tmp_path: Path, tag: int
) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(turned(picture, tag))
    with Image.open(path) as opened:
        stored, upright = opened.convert("RGB"), ImageOps.exif_transpose(opened)
    assert same(open_image(path), upright)
    assert same(open_image(path.read_bytes()), upright)
    assert same(open_image(path, "stored"), stored)
    bgr = cv2.imread(str(path))  # what readers of benchmarks are written with
    assert bgr is not None
    assert np.abs(bgr[:, :, ::-1].astype(int) - np.asarray(upright)).max() <= 8
    for orientation in get_args(Orientation):
        seen = open_image(path, orientation)
        assert image_size(path, orientation) == (seen.height, seen.width)
        assert same(ImageOps.exif_transpose(seen), seen)  # nobody turns it once more


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "AVIF"])
def test_other_formats_have_the_tag_too(picture: Image.Image, tmp_path: Path, kind: str) -> None:
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    path = tmp_path / "photo"
    path.write_bytes(turned(picture, 6, kind))
    assert open_image(path).size == (30, 40)
    assert image_size(path) == (40, 30)


def test_pil_images_stay_as_they_are_and_a_damaged_tag_is_no_tag(picture: Image.Image) -> None:
    assert open_image(Image.open(io.BytesIO(turned(picture, 6)))).size == picture.size
    assert open_image(encoded(picture, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")).size == picture.size
    with pytest.raises(UnknownArgument, match="orientation"):
        open_image(picture, "sideways")  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "I", "F", "I;16"])
def test_chat_sees_a_pil_image_as_the_stock_adapters_do(picture: Image.Image, mode: str) -> None:
    made = Image.fromarray(RAMP) if mode == "I;16" else picture.convert(mode)
    assert same(chat_image(made), made.convert("RGB"))
    assert same(stock_image(made), made.convert("RGB"))


def test_a_harness_path_is_opened_as_the_stock_adapters_do(picture: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(turned(picture, 6))
    with Image.open(path) as opened:
        assert same(stock_image(path), opened.convert("RGB"))
    assert same(chat_image(path), open_image(path))
    with pytest.raises(BadImage, match="no file"):
        stock_image(tmp_path / "missing.jpg")


KINDS = {
    "JPEG": {}, "JPEG progressive": {"progressive": True}, "PNG": {}, "GIF": {}, "BMP": {}, "TIFF": {}, "PPM": {},
    "TIFF compressed": {"compression": "tiff_lzw"}, "WEBP": {}, "AVIF": {}, "JPEG2000": {}, "TGA": {}, "ICO": {},
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", list(KINDS))
def test_damaged_files_of_every_format_are_named(
    picture: Image.Image, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Whatever bytes are lost or changed: a picture or a `BadImage`, and the same whatever Pillow's switch says."""
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    content = encoded(picture, kind.split()[0], **KINDS[kind])
    rng = np.random.default_rng(5)
    cases = [content[: int(end)] for end in rng.integers(0, len(content), 25)]
    for _ in range(60):
        changed = np.frombuffer(content, dtype=np.uint8).copy()
        places = rng.integers(0, min(len(content), int(rng.choice([40, 10**6]))), int(rng.integers(1, 8)))
        changed[places] = rng.integers(0, 256, len(places))
        cases.append(changed.tobytes())

    def outcome(case: bytes) -> bytes | None:
        try:
            return open_image(case).tobytes()
        except BadImage:
            return None

    strict = [outcome(case) for case in cases]
    assert strict[:25].count(None) >= 20  # what is cut is refused, unless only its end mark is gone
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    lenient = [outcome(case) for case in cases]
    assert lenient == strict or kind == "ICO"
    assert not any(now is not None and before is None for now, before in zip(lenient, strict, strict=True))


def test_threads_leave_the_switch_alone_and_take_no_truncated_picture(
    picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    cut = encoded(picture, "JPEG", quality=95)[:1500]
    switch: list[bool] = []

    def refused(_: int) -> bool:
        try:
            open_image(cut)
        except BadImage:
            return True
        finally:
            switch.append(ImageFile.LOAD_TRUNCATED_IMAGES)
        return False

    with ThreadPoolExecutor(3) as threads:
        assert all(threads.map(refused, range(300)))
    assert all(switch)
    late = Image.open(io.BytesIO(cut))
    with pytest.raises(BadImage):
        open_image(late)
    assert late.convert("RGB").size == picture.size  # the harness's own reading of it is what it was


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for source, word in (
        ("\0", "null"), ("a\0b.png", "null"), (tmp_path / "pipe", "pipe"), ("/dev/zero", "device"), ("\ud800", "utf"),
        ("https://x/a.jpg", "address"), ("s3://bucket/a.png", "address"), ("data:image/png;base64,AAAA", "address"),
        ("x" * 5000, "too long"), ("", "no file"),
    ):  # fmt: skip
        for opened in (open_image, stock_image, image_size):
            with pytest.raises(BadImage, match=word):
                opened(source)  # type: ignore[operator]


@pytest.mark.parametrize("lenient", [False, True])
def test_a_truncated_file_is_refused(
    picture: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lenient: bool
) -> None:
    """Also inside lmms-eval, which tells Pillow to fill in what is missing."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)
    for kind in ("JPEG", "PNG"):
        content = encoded(picture, kind)
        with pytest.raises(BadImage, match="truncated"):
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
    with pytest.raises(BadImage, match="opened"):
        open_image(encoded(picture))
