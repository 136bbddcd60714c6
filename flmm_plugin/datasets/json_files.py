"""Read annotation files in JSON so that every damage has a name and says what to do."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flmm_plugin.errors import BadAnnotation, DataNotFound
from flmm_plugin.file_kinds import kind_of_bytes
from flmm_plugin.records import LARGEST_MASK

#: Pixels from the corner beyond which no point of a picture lies; drawing such a shape would fill the memory.
FARTHEST = 1e6

#: What ``int``, ``float``, look-ups and unpacking raise on a record of another form; 1e400 is an infinite float.
STRANGE = (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError)


def read_json(path: Path, fallback: str | None = None) -> Any:
    """Read a JSON file: UTF-8 with or without a byte order mark.

    Args:
        path: The file, named in every message.
        fallback: Encoding to try where the bytes are not UTF-8.

    Raises:
        BadAnnotation: Another encoding, cut short, nested beyond reason, or no JSON.
        DataNotFound: It cannot be read.
    """
    try:
        raw = path.read_bytes()
    except OSError as exc:
        raise DataNotFound(f"{path} cannot be read: {exc}") from exc
    return parsed_json(raw, f"{path}", fallback)


def parsed_json(raw: bytes, where: str, fallback: str | None = None) -> Any:
    """`read_json` of bytes that were read; ``where`` begins the message.

    >>> parsed_json(b'{"a": 1}', "x.json")
    {'a': 1}
    """
    try:
        return json.loads(_text(raw, where, fallback))
    except (ValueError, RecursionError) as exc:
        raise BadAnnotation(
            f"{where} is truncated or not JSON: it is {kind_of_bytes(raw[:4096])} ({exc}); fetch the file again"
        ) from exc


def _text(raw: bytes, where: str, fallback: str | None) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as first:
        try:
            if fallback is not None:
                return raw.decode(fallback)
        except UnicodeDecodeError:
            pass
        known = "UTF-8" if fallback is None else f"UTF-8 nor {fallback}"
        said = "not" if fallback is None else "neither"
        raise BadAnnotation(
            f"{where} is {said} {known} ({first}); it was converted on its way, fetch the file again"
        ) from first


@contextmanager
def fields_of(where: str, fix: str = "fetch the file again") -> Iterator[None]:
    """Turn what a record of another form raises inside this block into a named error.

    Args:
        where: Which record of which file.
        fix: What to do about it.

    Raises:
        BadAnnotation: The record lacks a field, or has one of another kind.
    """
    try:
        yield
    except STRANGE as exc:
        raise BadAnnotation(f"{where} lacks a field or has one of another kind ({exc!r}); {fix}") from exc


# Fields of a record. What is of another kind raises one of `STRANGE`: ``int`` and ``str`` would make something of it.


def integer(value: Any) -> int:
    """Read a whole number: 5, 5.0 or "5".

    >>> integer("5")
    5
    """
    if isinstance(value, str) and value.isascii() and value.isdigit():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
        raise ValueError(f"{value!r} is no whole number")
    return int(value)


def coordinate(value: Any) -> float:
    """Read a coordinate in pixels: finite, and near a picture."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < math.inf:
        raise ValueError(f"{value!r} is no finite number")
    if abs(value) >= FARTHEST:
        raise ValueError(f"a point is {value:g} pixels away")
    return float(value)


def size_of(record: Any) -> tuple[int, int]:
    """Read ``height`` and ``width`` of a picture, at least 1 pixel each."""
    height, width = integer(record["height"]), integer(record["width"])
    if not (0 < height < FARTHEST and 0 < width < FARTHEST and height * width <= LARGEST_MASK):
        raise ValueError(f"a picture of {height} x {width} pixels")
    return height, width


def name_of(value: Any) -> str:
    """Read an id that is a text or a whole number."""
    return text_of(value) if isinstance(value, str) else str(integer(value))


def text_of(value: Any) -> str:
    """Read a text that can be written as UTF-8."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    value.encode()
    return value


def inside(folder: Path, name: Any) -> Path:
    """Read the name of a file as its place in a folder."""
    if not text_of(name) or name.startswith("/") or ".." in name.split("/") or "\0" in name:
        raise ValueError(f"{name!r} names no file in {folder}")
    return folder / str(name)
