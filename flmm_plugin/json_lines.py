"""Records as lines of JSON that outlive a kill: what long runs append to, and go on from.

A process that is killed may leave half a line. It is not read, and what is written next begins on a line of its own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def append(path: Path, *records: Any) -> None:
    """Write records at a file's end, in one write, so that several processes may share the file.

    Args:
        path: Made, with its folder, where it is not there.
        records: Lists or objects; of a number, half would pass for whole. Written in ASCII, which holds any text.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(record) + "\n" for record in records)
    with path.open("ab+", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(end - 1, 0))
        torn = end > 0 and file.read(1) != b"\n"
        file.write(b"\n" * torn + lines.encode("ascii"))


def read(path: Path) -> Iterator[Any]:
    """The records of a file, without lines that are not whole; none if there is no file."""
    if not path.is_file():
        return
    for line in path.read_bytes().split(b"\n"):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        yield record
