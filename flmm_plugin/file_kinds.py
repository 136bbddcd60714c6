"""Say what a file is by its first bytes, for messages about a file that is not what was expected."""

from __future__ import annotations

import re
from pathlib import Path

_SEEN = 4096

#: First bytes -> kind, the longest first where one begins another.
_BEGINNINGS = {
    b"version https://git-lfs": "a Git LFS pointer; the file itself was not fetched (git lfs pull)",
    b"\x89PNG\r\n": "a PNG picture",
    b"\x89HDF\r\n": "an HDF5 file",
    b"SQLite format 3": "an SQLite database",
    b"\xff\xd8\xff": "a JPEG picture",
    b"GIF8": "a GIF picture",
    b"%PDF": "a PDF document",
    b"PK\x03\x04": "a zip archive (also the form of .pth files)",
    b"\x1f\x8b": "gzip data",
    b"BZh": "bzip2 data",
    b"\xfd7zXZ": "xz data",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"ARROW1": "an Arrow file",
    b"PAR1": "a Parquet file",
    b"\x7fELF": "a program",
}
#: Kinds that come in the place of a file, by the first words of their description.
_IN_ITS_PLACE = ("a Git LFS pointer", "a web page", "nothing but zero bytes")
_WEB_PAGE = re.compile(rb"^\s*(<!--.*?-->\s*)*(<\?xml[^>]*>\s*)?<(!doctype html|html|head|body)\b", re.I | re.S)
_TITLE = re.compile(rb"<title[^>]*>(.*?)</title>", re.I | re.S)


def is_web_page(beginning: bytes) -> bool:
    """Tell whether bytes begin like HTML, as the login, quota and error pages of file servers do."""
    return _WEB_PAGE.match(beginning.removeprefix(b"\xef\xbb\xbf")) is not None


def kind_of(path: Path) -> str:
    """Describe what lies at a path.

    Args:
        path: Any path; nothing of the file but its first bytes is read.

    Returns:
        A noun phrase such as ``a web page titled 'Sign in'``, for use behind "is".
    """
    if path.is_dir():
        return "a folder"
    if not path.is_file():
        return "not there" if not path.exists() else "no ordinary file"
    try:
        with path.open("rb") as file:
            beginning = file.read(_SEEN)
    except OSError as exc:
        return f"not readable ({exc.strerror})"
    return kind_of_bytes(beginning)


def strangers(folder: Path) -> str:
    """Name the files of a checkpoint that hold something else: a Git LFS pointer, a web page, nothing.

    Args:
        folder: Of a checkpoint; anything else, such as a name on the hub, has none.

    Returns:
        Half a sentence that begins with a semicolon, such as ``; model.safetensors is empty``, or "".
    """
    if not folder.is_dir():
        return ""
    kinds = {path.name: kind_of(path) for path in sorted(folder.iterdir()) if path.is_file()}
    found = [f"{name} is {kind}" for name, kind in kinds.items() if kind == "empty" or kind.startswith(_IN_ITS_PLACE)]
    return f"; {', '.join(found[:3])}" if found else ""


def kind_of_bytes(beginning: bytes) -> str:
    """Describe a file by its first bytes, as `kind_of` does."""
    if not beginning:
        return "empty"
    if is_web_page(beginning):
        title = _TITLE.search(beginning)
        words = " ".join(title[1].decode("utf-8", "replace").split()) if title else ""
        return f"a web page titled {words[:80]!r}" if words else "a web page"
    for start, kind in _BEGINNINGS.items():
        if beginning.startswith(start):
            return kind
    if beginning[257:262] == b"ustar":
        return "a tar archive"
    if not any(beginning):
        return "nothing but zero bytes"
    try:
        text = beginning.decode("utf-8")
    except UnicodeDecodeError as exc:
        if exc.start < len(beginning) - 4:
            return f"binary data that begins {beginning[:8].hex(' ')}"
        text = beginning[: exc.start].decode("utf-8")
    return f"text that begins {' '.join(text.split())[:40]!r}"
