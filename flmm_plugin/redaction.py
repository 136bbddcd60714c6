"""Take paths and user names out of what is pushed to a hub, shown in a page or shared in a file."""

from __future__ import annotations

import getpass
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

_ROOT = r"(?:file://)?(?:/(?=[^/\s])|~[\w.-]*/|[A-Za-z]:\\|\\\\)"
# A value of its own may hold spaces; it is no list of options.
_WHOLE = re.compile(rf"(?:{_ROOT}[^=,;\n]*|~)")
# In a line, a path ends with the word; behind `name=` with the option. One part below the root is not enough: `/INST`,
# `1 /2`. An address (https://...) is none: its slashes stand behind a colon and a slash.
_OPTION = re.compile(rf"(?<==){_ROOT}(?:(?! -)[^,;'\"\n])*")
_IN_LINE = re.compile(rf"(?<![^\s=,;:'\"`(\[{{|]){_ROOT}[^\s/\\,;'\"`)\]}}|]+[/\\][^\s,;'\"`)\]}}|]*")
_HOMES = ("/home", "/Users", "C:/Users")


def public(value: Any) -> Any:
    """Replace absolute paths in plain data by their last part; relative paths stay as they are.

    Args:
        value: Plain data: mappings, sequences, text, numbers.

    >>> public({"root": "/Users/ann/my coco", "line": "heads=/Users/ann/h.safetensors,dtype=auto", "of": "data/x"})
    {'root': 'my coco', 'line': 'heads=h.safetensors,dtype=auto', 'of': 'data/x'}
    """
    if isinstance(value, Mapping):
        return {public(key): public(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [public(one) for one in value]
    if not isinstance(value, str):
        return value
    return _name(value) if _WHOLE.fullmatch(value) else public_text(value)


def public_text(text: str) -> str:
    """Replace absolute paths in lines of text by their last part.

    >>> public_text("see https://x.org/a/b, /data/ann/b and ~/c/d.txt; [INST] 1 /2 [/INST]")
    'see https://x.org/a/b, b and d.txt; [INST] 1 /2 [/INST]'
    """
    return _IN_LINE.sub(lambda found: _name(found[0]), _OPTION.sub(lambda found: _name(found[0]), text))


def _name(place: str) -> str:
    """Give the last part of a path; ``~`` for a home folder, whose name is its owner's."""
    place = place.removeprefix("file://")
    path = PureWindowsPath(place) if "\\" in place else PurePosixPath(place)
    owner = path.name in _own_names() or path.parent.as_posix() in _HOMES or place.rstrip("/") == "~"
    return "~" if owner else path.name or "/"


def _own_names() -> set[str]:
    try:
        return {getpass.getuser(), Path.home().name}
    except (OSError, KeyError, RuntimeError):  # a user without an entry
        return set()
