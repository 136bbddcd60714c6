"""Records as lines of JSON that outlive a kill: what long runs append to, and go on from.

A process that is killed may leave half a line. It is not read, and what is written next begins on a line of its own.
A disk that is full leaves nothing: the file is as long as before, and the writer is told.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flmm_plugin import files


def append(path: Path, *records: Any) -> None:
    """Write records at a file's end, all of them or none; several processes may share the file.

    Args:
        path: Made, with its folder, where it is not there.
        records: Lists or objects; of a number, half would pass for whole. Written in ASCII, which holds any text.

    Raises:
        OutputFailed: They cannot be written; the file holds what it held.
    """
    lines = "".join(json.dumps(record) + "\n" for record in records).encode("ascii")
    with files.naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+", buffering=0) as file:
            with contextlib.suppress(OSError):  # some network disks know no locks: one write is the best there is
                fcntl.flock(file, fcntl.LOCK_EX)  # held until the file is closed
            end = file.seek(0, os.SEEK_END)
            file.seek(max(end - 1, 0))
            torn = end > 0 and file.read(1) != b"\n"
            _write_all(file, b"\n" * torn + lines, end)


def read(path: Path) -> Iterator[Any]:
    """The records of a file, without lines that are not whole; none if there is no file."""
    if not path.is_file():
        return
    for line in path.read_bytes().split(b"\n"):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        yield record


class Log:
    """Log of a run: one JSON object per line, each with the seconds since the run began."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.start = time.monotonic()

    def write(self, **row: Any) -> None:
        """Append one row."""
        row["seconds"] = round(time.monotonic() - self.start, 1)
        append(self.path, row)


def _write_all(file: Any, content: bytes, end: int) -> None:
    """Write at a file's end; where not all of it fits, the file ends at ``end`` again."""
    done = 0
    try:
        while done < len(content):
            written = file.write(content[done:])  # may be less than was given: the rest is told at the next attempt
            if not written:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            done += written
    except BaseException:
        if done:
            file.truncate(end)
        raise
