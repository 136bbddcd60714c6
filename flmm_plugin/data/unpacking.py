"""Unpack archives of strangers: no path leaves the folder, no link is made, nothing is half written.

Every member is looked at before the first byte is written. A file that is already there with the member's size is left
alone, so that an interrupted unpacking goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from flmm_plugin import files
from flmm_plugin.errors import BadAnnotation, FlmmError
from flmm_plugin.file_kinds import kind_of

_CHUNK = 1 << 20


@dataclass(frozen=True)
class _Member:
    name: str
    size: int
    open: Callable[[], AbstractContextManager[IO[bytes]]]


def is_archive(path: Path) -> bool:
    """Whether a file is one that `unpack` reads: zip, or tar with any of its compressions."""
    return zipfile.is_zipfile(path) or tarfile.is_tarfile(path)


def unpack(archive: Path, folder: Path, progress: Callable[[int], None] = lambda _: None) -> int:
    """Unpack an archive into a folder.

    Args:
        archive: zip or tar.
        folder: Made if it is not there.
        progress: Told the bytes of each file as it is done.

    Returns:
        How many files were written; those already there are not counted.

    Raises:
        BadAnnotation: Not an archive, damaged, with a path that leads out of the folder, with a link or a device.
            Nothing of such a path was written.
        OutputFailed: The folder cannot be written or its disk has no room.
    """
    with _members_of(archive) as members:
        return _write(members, folder, archive, progress)


def problem_of_archive(archive: Path) -> str | None:
    """Read an archive to its end, with the checksums that it carries.

    Returns:
        What is wrong with it, None if it reads.
    """
    try:
        with _members_of(archive) as members:
            for member in members:
                for _ in _content(member, archive):
                    pass
    except BadAnnotation as exc:
        return str(exc)
    return None


@contextmanager
def _members_of(archive: Path) -> Iterator[list[_Member]]:
    """Open an archive and list its files."""
    with contextlib.ExitStack() as stack:
        with _reading(archive):
            if zipfile.is_zipfile(archive):
                members = list(_zip_members(stack.enter_context(zipfile.ZipFile(archive)), archive))
            elif tarfile.is_tarfile(archive):
                members = list(_tar_members(stack.enter_context(tarfile.open(archive)), archive))
            else:
                raise BadAnnotation(
                    f"{archive} is no zip or tar archive but {kind_of(archive)}; delete it and download again"
                )
        yield members


@contextmanager
def _reading(archive: Path) -> Iterator[None]:
    """Name whatever the decoders raise on bytes of strangers; they have no common kind of error."""
    try:
        yield
    except FlmmError:
        raise
    except Exception as exc:
        raise BadAnnotation(
            f"{archive} is damaged or not readable ({type(exc).__name__}: {exc}); delete it and download again"
        ) from exc


def _content(member: _Member, archive: Path) -> Iterator[bytes]:
    """The bytes of a member in chunks.

    Raises:
        BadAnnotation: It cannot be read, or has another size than the archive says.
    """
    size = 0
    with _reading(archive), member.open() as source:
        while chunk := source.read(_CHUNK):
            size += len(chunk)
            yield chunk
    if size != member.size:
        raise BadAnnotation(f"{member.name} of {archive} is cut short; delete the archive and download again")


def safe_path(name: str, folder: Path, archive: Path) -> Path:
    """Where a member goes.

    Raises:
        BadAnnotation: Its path is absolute, climbs, or goes through a link that leads out of the folder.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    if not path.parts or not name.isprintable():
        raise BadAnnotation(f"{archive} has a file named {name!r}; get the archive from its official source")
    drive = bool(path.parts) and path.parts[0].endswith(":")
    target = folder.joinpath(*path.parts)
    outside = path.is_absolute() or ".." in path.parts or drive
    if outside or not target.resolve().is_relative_to(folder.resolve()):
        raise BadAnnotation(
            f"{archive} wants to write {name!r}, outside of {folder}; nothing was unpacked. Get the archive from its "
            "official source"
        )
    return target


def _zip_members(opened: zipfile.ZipFile, archive: Path) -> Iterator[_Member]:
    for info in opened.infolist():
        kind = info.external_attr >> 28
        if kind not in (0, 0x4, 0x8):
            raise _refused(archive, info.filename)
        if not info.is_dir():
            yield _Member(info.filename, info.file_size, lambda info=info: opened.open(info))  # type: ignore[misc]


def _tar_members(opened: tarfile.TarFile, archive: Path) -> Iterator[_Member]:
    for info in opened:
        if not (info.isfile() or info.isdir()):
            raise _refused(archive, info.name)
        if info.isfile():
            yield _Member(info.name, info.size, lambda info=info: _opened(opened, info))  # type: ignore[misc]


def _opened(opened: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    stream = opened.extractfile(info)
    if stream is None:
        raise tarfile.ReadError(f"{info.name} has no content")
    return stream


def _refused(archive: Path, name: str) -> BadAnnotation:
    return BadAnnotation(
        f"{archive} has {name!r}, which is neither a file nor a folder; nothing was unpacked. Get the archive from its "
        "official source"
    )


def _write(members: list[_Member], folder: Path, archive: Path, progress: Callable[[int], None]) -> int:
    targets = [safe_path(member.name, folder, archive) for member in members]
    todo = [
        (member, target)
        for member, target in zip(members, targets, strict=True)
        if not (target.is_file() and target.stat().st_size == member.size)
    ]
    files.make_folder(folder)
    files.check_room(folder, sum(member.size for member, _ in todo))
    written = {target for _, target in todo}
    for member, target in zip(members, targets, strict=True):
        if target in written:
            with files.new_file(target, durable=False) as part, part.open("wb") as out:
                for chunk in _content(member, archive):
                    out.write(chunk)
        progress(member.size)
    return len(todo)
