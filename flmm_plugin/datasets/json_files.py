"""Annotation files in JSON, read so that every damage has a name and says what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flmm_plugin.errors import BadAnnotation

#: What ``int``, ``float``, look-ups and unpacking raise on a record of another form; 1e400 is an infinite float.
STRANGE = (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError)


def read_json(path: Path, fallback: str | None = None) -> Any:
    """What a file holds: UTF-8 with or without a byte order mark.

    Args:
        path: The file.
        fallback: Encoding to try where the bytes are not UTF-8.

    Raises:
        BadAnnotation: Another encoding, cut short, nested beyond reason, or no JSON.
    """
    return parsed_json(path.read_bytes(), f"{path}", fallback)


def parsed_json(raw: bytes, where: str, fallback: str | None = None) -> Any:
    """`read_json` of bytes that were read; ``where`` begins the message.

    >>> parsed_json(b'{"a": 1}', "x.json")
    {'a': 1}
    """
    try:
        return json.loads(_text(raw, where, fallback))
    except (ValueError, RecursionError) as exc:
        raise BadAnnotation(f"{where} is truncated or not JSON ({exc}); fetch the file again") from exc


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
