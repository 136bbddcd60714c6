"""Open whatever a user calls a picture, once, as PIL RGB; anything else is a `BadImage` that says why.

**Orientation.** A camera may store a picture turned and say so in a tag (EXIF). A file is shown upright by default, as
viewers show it; a reader of a benchmark says which of the two its annotations were drawn on. A mask always lies on the
picture as it was opened. PIL images and arrays are pixels already and stay as they are.

**Depth.** Grey of 16 bits is brought to 8 by the depth that its file states, never by its brightest pixel. Integers
and floats without a stated range are refused by the name of their mode. Alpha and colour profiles are dropped, and the
first frame of an animation is taken, as stock processors do.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from os import PathLike, fspath
from typing import IO, Any, Literal, TypeVar, get_args

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from flmm_plugin.errors import BadImage, UnknownArgument
from flmm_plugin.file_kinds import kind_of_bytes

T = TypeVar("T")

ImageSource = str | PathLike[str] | bytes | Image.Image | npt.NDArray[Any]

#: ``upright``: turned as the file's orientation tag says. ``stored``: rows and columns as they lie in the file.
Orientation = Literal["upright", "stored"]

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_QUARTER_TURNS = (5, 6, 7, 8)

#: Formats in which a grey picture of mode ``I;16`` fills the 16 bits; None: the mode alone says so.
_SIXTEEN_BITS = (None, "PNG", "PPM", "TIFF", "JPEG2000")
#: Formats in which mode ``I`` holds a grey picture of 16 bits.
_SIXTEEN_OF_32 = ("PNG", "PPM")
_BITS_PER_SAMPLE, _PHOTOMETRIC, _PLANES, _SAMPLE_FORMAT = 258, 262, 284, 339  # tags of TIFF
_APART, _UNSIGNED = 2, 1

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|data:")
_WATCHED = "flmm_watched"


def open_image(source: ImageSource, orientation: Orientation = "upright") -> Image.Image:
    """Decode a picture completely and return it as RGB.

    Args:
        source: A path, the bytes of an image file, a PIL image, or ``uint8`` pixels ``[H, W]``, ``[H, W, 3]`` (RGB) or
            ``[H, W, 4]`` (RGBA).
        orientation: For files and bytes: ``upright`` (default) or ``stored``.

    Returns:
        A PIL image of mode RGB with all pixels in memory.

    Raises:
        BadImage: There is no such file, it is no image, truncated, too large or of a mode without a stated range, or
            the array is not ``uint8`` pixels.
        UnknownArgument: No such orientation.
    """
    if orientation not in get_args(Orientation):
        raise UnknownArgument(f"no orientation {orientation!r} of pictures; known: {', '.join(get_args(Orientation))}")
    if isinstance(source, np.ndarray):
        return _from_pixels(source)
    if isinstance(source, Image.Image):
        return _named("the PIL image", lambda: _decoded(source))
    turned = _turned if orientation == "upright" else lambda picture, _: picture
    # Without the file's tags: whoever obeys them later would turn the picture once more.
    return _of_file(source, lambda image: Image.fromarray(np.asarray(turned(_decoded(image), image))))


def stock_image(source: str | PathLike[str] | Image.Image) -> Image.Image:
    """Open a picture of a chat as the harnesses' own adapters do: ``convert("RGB")`` of the stored pixels, no more.

    What they answer about is answered about here, with the same pixels, whatever mode it is of.

    Raises:
        BadImage: Pillow cannot read it.
    """
    if isinstance(source, Image.Image):
        return _named("the PIL image", lambda: source.convert("RGB"))
    return _of_file(source, lambda image: image.convert("RGB"))


def chat_image(source: ImageSource) -> Image.Image:
    """Open what is chatted about: a PIL image, which a harness hands over, as `stock_image`, else as `open_image`."""
    return stock_image(source) if isinstance(source, Image.Image) else open_image(source)


def image_size(source: str | PathLike[str], orientation: Orientation = "upright") -> tuple[int, int]:
    """Read the (height, width) that `open_image` would give, from the head of the file.

    Raises:
        BadImage: There is no such file, or it is no image.
    """

    def size(image: Image.Image) -> tuple[int, int]:
        if image.format == "TIFF":
            image.load()  # Pillow turns it, some versions not before
        turned = orientation == "upright" and image.format != "TIFF" and _tag(image) in _QUARTER_TURNS
        return (image.width, image.height) if turned else (image.height, image.width)

    return _of_file(source, size)


def _of_file(source: str | PathLike[str] | bytes, use: Callable[[Image.Image], T]) -> T:
    """Give the image of a file, or of the bytes of one, to `use`, and return what that makes of it."""
    name = f"{len(source)} bytes" if isinstance(source, bytes | bytearray) else _path_of(source)

    def opened(stream: IO[bytes]) -> T:
        try:
            image = Image.open(stream)
        except UnidentifiedImageError as exc:
            stream.seek(0)
            raise BadImage(
                f"{name} is not an image file that Pillow can read, or its mode is unknown: it is "
                f"{kind_of_bytes(stream.read(4096))}; convert it to PNG or JPEG"
            ) from exc
        except (OSError, Image.DecompressionBombError) as exc:
            raise BadImage(f"{name} cannot be opened as an image: {exc}") from exc
        return use(image)

    if isinstance(source, bytes | bytearray):
        return _named(name, lambda: opened(BytesIO(source)))
    with _file(source) as stream:
        return _named(name, lambda: opened(stream))


def _path_of(source: Any) -> str:
    if not isinstance(source, str | PathLike):
        raise BadImage(
            f"cannot open a {type(source).__name__} as a picture; give a path, bytes, a PIL image or an array"
        )
    return repr(fspath(source))


@contextmanager
def _file(path: str | PathLike[str]) -> Iterator[IO[bytes]]:
    name = repr(fspath(path))
    if _ADDRESS.match(str(path)):
        raise BadImage(f"{name[:200]} is an address; pictures are opened from files only, so download it first")
    try:
        # Asked before it is opened: a pipe would be waited for.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise BadImage(f"{name} cannot be read as a file: a folder, a pipe or a device; give a picture's file")
        stream = open(path, "rb")  # noqa: SIM115 - closed below
    except FileNotFoundError as exc:
        raise BadImage(f"there is no file {name}; check the path of the picture") from exc
    except (OSError, ValueError, TypeError) as exc:
        raise BadImage(f"{name} cannot be read as a file: {exc}") from exc
    with stream:
        yield stream


def _named(name: str, use: Callable[[], T]) -> T:
    """Return the result of `use`; whatever a decoder raises on damaged bytes becomes a `BadImage`."""
    try:
        return use()
    except BadImage as exc:
        raise BadImage(str(exc) if name in str(exc) else f"{name} {exc}") from exc
    except Exception as exc:  # decoders fail in their own ways: RuntimeError, struct.error, zlib.error, MemoryError
        raise BadImage(
            f"{name} is damaged or truncated ({type(exc).__name__}: {exc}); fetch the picture again"
        ) from exc


def _decoded(image: Image.Image) -> Image.Image:
    """Return the picture as RGB of 8 bits, complete."""
    if image.width < 1 or image.height < 1:
        raise BadImage(f"has no pixels ({image.width} x {image.height})")
    to_grey = _grey_of(image)
    _load(image)
    if to_grey is not None:
        return to_grey(image).convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")
    try:
        return image.convert("RGB") if image.mode != "RGB" else image
    except ValueError as exc:
        raise BadImage(f"has the mode {image.mode}, which Pillow does not turn into RGB; convert it first") from exc


def _grey_of(image: Image.Image) -> Callable[[Image.Image], Image.Image] | None:
    """Return what brings grey of more than 8 bits to 8 bits; None for pictures that need nothing.

    Raises:
        BadImage: A mode whose range the file does not state.
    """
    tags: Any = getattr(image, "tag_v2", None) or {}
    if image.format == "TIFF" and set(_numbers(tags.get(_SAMPLE_FORMAT, _UNSIGNED))) != {_UNSIGNED}:
        raise BadImage(f"has the mode {image.mode} with signed or float samples, whose range no file states; {_SAVE}")
    bits = max(_numbers(tags.get(_BITS_PER_SAMPLE, 16)))
    if tags.get(_PLANES) == _APART and len(image.getbands()) > 1 and bits > 8:
        raise BadImage(f"has the mode {image.mode} in planes of {bits} bits, which Pillow mixes up; {_SAVE}")
    short = image.mode.startswith("I;16") and image.format in _SIXTEEN_BITS
    if not short and not (image.mode == "I" and image.format in _SIXTEEN_OF_32):
        if image.mode.startswith("I") or image.mode == "F":
            raise BadImage(f"has the mode {image.mode}, whose range is not stated; {_SAVE}")
        return None
    inverted = image.format == "TIFF" and tags.get(_PHOTOMETRIC) == 0  # white is zero

    def grey(loaded: Image.Image) -> Image.Image:
        values = np.clip(np.asarray(loaded).astype(np.int64), 0, (1 << bits) - 1) >> (bits - 8)
        return Image.fromarray((255 - values if inverted else values).astype(np.uint8))

    return grey


_SAVE = "scale it to 8 bits and save it as PNG"


def _numbers(value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, tuple) else (value,)


def _turned(picture: Image.Image, image: Image.Image) -> Image.Image:
    """Turn `picture` as the orientation tag of `image` says; Pillow itself has turned a TIFF."""
    turn = None if image.format == "TIFF" else _TURNS.get(_tag(image))
    return picture if turn is None else picture.transpose(turn)


def _tag(image: Image.Image) -> Any:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # a damaged tag is no tag, as in viewers
        return 1


class _Watched:
    """A decoder of Pillow's that raises where it fails.

    Pillow itself says nothing of a failed decoder while its process-wide switch `LOAD_TRUNCATED_IMAGES` is set, as
    lmms-eval sets it. The switch belongs to the process, so it is left alone.
    """

    def __init__(self, mode: str, watch: list[_Watched], name: str, args: Any, *extra: Any) -> None:
        self._inner: Any = Image._getdecoder(mode, name, args, extra)
        self.finished = False
        watch.append(self)

    def decode(self, data: bytes) -> tuple[int, int]:
        """Decode some bytes: (how many were used, or -1 at the end; 0, or a number of an error)."""
        used, error = self._inner.decode(data)
        if error < 0:
            raise OSError(f"decoder error {error}")
        self.finished = used < 0 or self._inner.pulls_fd
        return used, error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


Image.register_decoder(_WATCHED, _Watched)  # type: ignore[arg-type]


def _load(image: Image.Image) -> None:
    """Decode all pixels.

    Raises:
        OSError: Some are missing.
    """
    tiles: Any = getattr(image, "tile", None)
    if image.format in ("ICO", "ICNS") and ImageFile.LOAD_TRUNCATED_IMAGES:
        raise OSError("icons cannot be checked while LOAD_TRUNCATED_IMAGES is set; save it as PNG")
    # Pillow's TIFF library and the formats without tiles raise on their own.
    if not isinstance(image, ImageFile.ImageFile) or not tiles or tiles[0][0] == "libtiff":
        image.load()
        return
    watch: list[_Watched] = []
    make: Any = getattr(ImageFile, "_Tile", lambda *parts: parts)
    image._ended = True  # type: ignore[attr-defined]  # no end is made up for a JPEG that has none
    image.tile = [make(_WATCHED, box, offset, (watch, name, args)) for name, box, offset, args in tiles]
    try:
        image.load()
    except BaseException:
        image.tile = tiles  # as if nobody had tried
        del image._ended  # type: ignore[attr-defined]
        raise
    if not all(one.finished for one in watch):
        raise OSError("image file is truncated")


def _from_pixels(pixels: npt.NDArray[Any]) -> Image.Image:
    if pixels.dtype != np.uint8:
        raise BadImage(f"pixels must be uint8 from 0 to 255, got {pixels.dtype}; scale and convert them first")
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.size == 0 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))):
        raise BadImage(f"pixels must be [H, W], [H, W, 3] or [H, W, 4], got shape {tuple(pixels.shape)}")
    return Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB")
