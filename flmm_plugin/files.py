"""Write files so that they appear under their name only when they are whole, and name the place when they cannot.

Every output of this package goes through here: a full disk, a read-only folder or a killed process leaves the file
that was there before, and the error says which place cannot take what. Text and JSON that somebody else may have
written or damaged are read here too, with an error that names the file and the place in it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from flmm_plugin.errors import DataNotFound, FlmmError, OutputFailed
from flmm_plugin.file_kinds import kind_of_bytes

#: Ending of a file that is being written; its name begins with a dot and the name that the file will get.
PART = ".part"

#: Folder under a data root for what this package puts there itself: downloads and prepared files.
WORKPLACE = ".flmm"

#: Names the folder for what this package can make again: verdicts of judges, the data of the embedded model.
CACHE_VARIABLE = "FLMM_CACHE"

#: Bytes of a disk that large outputs leave free.
KEEP_FREE = 256 << 20

_FIXES = {
    errno.ENOSPC: "the disk is full; make room or name another place",
    errno.EDQUOT: "your quota is used up; make room or name another place",
    errno.EROFS: "it is on a read-only disk; name another place",
    errno.EACCES: "you may not write there; name another place or change its permissions",
    errno.EPERM: "you may not write there; name another place or change its permissions",
    errno.ENOTDIR: "a file stands where a folder should be; name another place",
    errno.EEXIST: "a file stands where a folder should be; name another place",
    errno.EISDIR: "a folder stands where the file should be; name another place",
    errno.ENOENT: "its folder is gone; make it again or name another place",
    errno.ENAMETOOLONG: "the name is too long; give a shorter one",
}

_log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Return ``$FLMM_CACHE``, or ``~/.cache/flmm``."""
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "flmm")


@contextlib.contextmanager
def naming(place: Path) -> Iterator[None]:
    """Turn an `OSError` of the block into an `OutputFailed` that names the place and the fix.

    Args:
        place: File or folder that the block writes to.

    Raises:
        OutputFailed: The block raised an `OSError`.
    """
    try:
        yield
    except OSError as exc:
        fix = _FIXES.get(exc.errno or 0, "name another place")
        raise OutputFailed(f"cannot write {place} ({exc.strerror or exc}): {fix}") from exc


@contextlib.contextmanager
def new_file(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Give the block a file to write beside `path`; rename it to `path` when the block ends without an error.

    Args:
        path: Where the file appears. Its folder is made; a file that stands there is replaced.
        durable: Whether it survives a crash of the machine too; False where many small files can be made again.

    Yields:
        An empty file in the same folder, removed if the block raises; a device or a pipe (``/dev/stdout``) itself.

    Raises:
        OutputFailed: The place cannot be written.
    """
    with naming(path):
        if _is_device(path):
            yield path
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PART)
        os.close(handle)
        part = Path(name)
        try:
            yield part
            if durable:
                flush(part)
            part.chmod(0o644)  # mkstemp makes private files; results are for sharing
            part.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                part.unlink()
            raise


def write(path: Path, content: str | bytes | Iterable[str]) -> Path:
    """Write a file whole or not at all.

    Args:
        path: Where the file appears; its folder is made.
        content: Text (written as UTF-8), parts of a text, or bytes.

    Returns:
        `path`.

    Raises:
        OutputFailed: The place cannot be written; a file that stood there is as it was.
    """
    with new_file(path) as part:
        if isinstance(content, bytes):
            part.write_bytes(content)
        else:
            # Half a surrogate pair, which a model may well say, is no character: it is written as its number.
            with part.open("w", encoding="utf-8", errors="backslashreplace") as out:
                out.writelines([content] if isinstance(content, str) else content)
    return path


def make_folder(path: Path) -> Path:
    """Make a folder, with those above it, and see that files can be written to it.

    Returns:
        `path`.

    Raises:
        OutputFailed: It cannot be made or takes no files.
    """
    with naming(path):
        path.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path, prefix=".", suffix=PART)
        os.close(handle)
        os.unlink(name)
    return path


def check_file_place(path: Path, *, parents: bool = True) -> None:
    """See that a file could be written at `path`, before the work that makes its content.

    Args:
        path: Where the file is to appear.
        parents: Make its folder; False: a folder that is not there was misspelt.

    Raises:
        OutputFailed: Something else stands there, or its folder takes no files.
        DataNotFound: There is no such folder.
    """
    with naming(path):
        missing = not path.parent.exists()  # raises for a name that is too long
        is_folder = path.is_dir()
    if missing and not parents:
        raise DataNotFound(f"there is no folder {path.parent} to write into; make it, or name another place")
    if is_folder:
        raise OutputFailed(f"cannot write {path}: {_FIXES[errno.EISDIR]}")
    if not _is_device(path):
        make_folder(path.parent)


def check_room(folder: Path, size: int) -> None:
    """See that a disk has room for `size` bytes, and some to spare for what else is written.

    Raises:
        OutputFailed: It has not.
    """
    free = shutil.disk_usage(folder).free
    if size + KEEP_FREE > free:
        raise OutputFailed(
            f"cannot write {folder}: {size / 1e9:.1f} GB are needed and its disk has {free / 1e9:.1f} GB free; make "
            "room or name another place"
        )


def sweep(folder: Path) -> None:
    """Remove what killed processes left half written in a folder.

    Args:
        folder: Nobody else may be writing to it: the caller holds its lock.
    """
    for part in folder.glob(f".*{PART}"):
        with contextlib.suppress(OSError):
            part.unlink()


class Lock(FileLock):
    """A lock on a file, which the system lets go when its process ends, however it ends.

    It is a new object at each use: lmms-eval gives everybody in the process who makes a `FileLock` of one path the same
    object, for ever, and that object refuses to work in a forked process. It does so for that very class only.
    """


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Make a folder and keep other processes that ask for it out while the block runs.

    Raises:
        OutputFailed: It cannot be written, or another process holds it.
    """
    make_folder(folder)
    lock = Lock(folder / ".lock")
    with naming(folder):
        try:
            lock.acquire(timeout=0)
        except Timeout as exc:
            raise OutputFailed(
                f"another process writes to {folder}; wait for it or stop it, or name another folder"
            ) from exc
    try:
        sweep(folder)
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def turn(path: Path, doing: str) -> Iterator[bool]:
    """Make the folder of a file and keep others that would make the same file out: each waits for its turn.

    Args:
        path: The file; its lock lies beside it, and a killed process leaves it free.
        doing: What the other process is doing with it, in words, for those who wait.

    Yields:
        Whether it had to wait for another process.

    Raises:
        OutputFailed: Its folder cannot be written.
    """
    make_folder(path.parent)
    lock = Lock(path.with_name(f".{path.name}.lock"))
    waited = False
    with naming(path.parent):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            waited = True
            _log.warning("another process is %s %s; waiting for it", doing, path.name)
            lock.acquire()
    try:
        yield waited
    finally:
        lock.release()


def read_text(path: Path, error: type[FlmmError]) -> str:
    """Read a text file in UTF-8.

    Args:
        path: Text file; a byte-order mark at its start is kept.
        error: Class to raise where it cannot be read, or holds other bytes.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as exc:
        raise error(
            f"{path} is not UTF-8 text (byte 0x{exc.object[exc.start]:02x} at place {exc.start}); it is damaged, or "
            "was saved in another encoding: get it again, or save it as UTF-8"
        ) from exc
    except OSError as exc:
        raise error(f"{path} cannot be read ({exc.strerror or exc})") from exc


def parse_json(text: str, what: str, error: type[FlmmError], fix: str = "write or fetch it again") -> Any:
    """Parse JSON.

    Args:
        text: JSON of one value, with white space around it at most.
        what: Name of the text in the message: a file, or a file and a line.
        error: Class to raise where it is no JSON, or nested too deeply.
        fix: Advice that ends the message.
    """
    try:
        return json.loads(text)
    except RecursionError as exc:
        raise error(f"{what} is damaged: it is nested too deeply to be read; {fix}") from exc
    except ValueError as exc:
        kind = kind_of_bytes(text[:4096].encode("utf-8", "replace"))
        raise error(f"{what} is damaged or cut off, it is no JSON but {kind} ({exc}); {fix}") from exc


def read_json(path: Path, error: type[FlmmError], fix: str = "write or fetch it again") -> Any:
    """Read a JSON file with `read_text` and `parse_json`."""
    return parse_json(read_text(path, error), str(path), error, fix)


def _is_device(path: Path) -> bool:
    """Tell whether a device or a pipe is at `path`, which takes what is written and must not be replaced."""
    return path.exists() and not path.is_file() and not path.is_dir()


def flush(path: Path) -> None:
    """Force a file, or the names in a folder, onto the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
