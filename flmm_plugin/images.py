"""Open whatever a user calls a picture, once, as PIL RGB; anything else is a `BadImage` that says why.

Orientation tags (EXIF) are deliberately not applied: data sets annotate the stored pixels, and stock processors show
the model the stored pixels. A mask must lie on what the model saw.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, UnidentifiedImageError

from flmm_plugin.errors import BadImage

ImageSource = str | PathLike[str] | bytes | Image.Image | npt.NDArray[Any]


def open_image(source: ImageSource) -> Image.Image:
    """Decode a picture completely and return it as RGB.

    Args:
        source: A path, the bytes of an image file, a PIL image, or ``uint8`` pixels ``[H, W]``, ``[H, W, 3]`` (RGB) or
            ``[H, W, 4]`` (RGBA). Alpha is dropped, as stock processors do.

    Returns:
        A PIL image of mode RGB with all pixels in memory.

    Raises:
        BadImage: The file is missing, not an image, truncated or too large, or the array is not ``uint8`` pixels.
    """
    if isinstance(source, np.ndarray):
        return _from_pixels(source)
    if isinstance(source, Image.Image):
        return _decode(source, "the PIL image")
    if isinstance(source, bytes | bytearray):
        name, stream = f"{len(source)} bytes", io.BytesIO(source)
    elif isinstance(source, str | PathLike):
        name, stream = repr(fspath(source)), _read(Path(source))
    else:
        raise BadImage(
            f"cannot open a {type(source).__name__} as a picture; give a path, bytes, a PIL image or an array"
        )
    try:
        image = Image.open(stream)
    except UnidentifiedImageError as exc:
        raise BadImage(f"{name} is not an image file that Pillow can read; convert it to PNG or JPEG") from exc
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as exc:
        raise BadImage(f"{name} cannot be opened as an image: {exc}") from exc
    return _decode(image, name)


def _read(path: Path) -> io.BytesIO:
    try:
        return io.BytesIO(path.read_bytes())
    except FileNotFoundError as exc:
        raise BadImage(f"there is no file {str(path)!r}; check the path of the picture") from exc
    except OSError as exc:
        raise BadImage(f"{str(path)!r} cannot be read as a file: {exc}") from exc


def _decode(image: Image.Image, name: str) -> Image.Image:
    try:
        if image.width < 1 or image.height < 1:
            raise BadImage(f"{name} has no pixels ({image.width} x {image.height})")
        if image.mode.startswith("I;16"):
            # Pillow clips 16-bit grey at 255 instead of scaling it: nearly every such picture would turn white.
            with _strict():
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        with _strict():
            return image.convert("RGB") if image.mode != "RGB" else _loaded(image)
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as exc:
        raise BadImage(f"{name} is damaged or truncated ({exc}); fetch the picture again") from exc


@contextmanager
def _strict() -> Iterator[None]:
    """Refuse truncated files whatever the process was told: lmms-eval, for one, has Pillow fill the missing part."""
    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def _loaded(image: Image.Image) -> Image.Image:
    image.load()
    return image


def _from_pixels(pixels: npt.NDArray[Any]) -> Image.Image:
    if pixels.dtype != np.uint8:
        raise BadImage(f"pixels must be uint8 from 0 to 255, got {pixels.dtype}; scale and convert them first")
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.size == 0 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))):
        raise BadImage(f"pixels must be [H, W], [H, W, 3] or [H, W, 4], got shape {tuple(pixels.shape)}")
    return Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB")
