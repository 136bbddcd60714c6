"""Unpack archives of unknown origin: no path leaves the folder, no link is made, nothing is half written.

Every member is looked at before the first byte is written. A file that is already there with the member's size is left
alone, so that an interrupted unpacking goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import functools
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from flmm_plugin import files
from flmm_plugin.errors import BadAnnotation, FlmmError
from flmm_plugin.file_kinds import kind_of

_CHUNK = 1 << 20

#: File types of Unix that a zip member may state: none, a folder, a file.
_ZIP_TYPES = (0, 0o04, 0o10)


class _Member(NamedTuple):
    name: str
    size: int
    open: Callable[[], IO[bytes]]


def unpack(archive: Path, folder: Path) -> int:
    """Unpack an archive into a folder.

    Args:
        archive: A zip file, or a tar file with any of its compressions.
        folder: Made if it is not there.

    Returns:
        How many files were written; those already there are not counted.

    Raises:
        BadAnnotation: Not an archive, damaged, with a path that leads out of the folder, with a link or a device.
            Nothing of such a path was written.
        OutputFailed: The folder cannot be written or its disk has no room.
    """
    with _members_of(archive) as members:
        targets = {safe_path(member.name, folder, archive): member for member in members}
        missing = {
            target: member
            for target, member in targets.items()
            if not (target.is_file() and target.stat().st_size == member.size)
        }
        files.make_folder(folder)
        files.check_room(folder, sum(member.size for member in missing.values()))
        for target, member in missing.items():
            with files.new_file(target, durable=False) as part, part.open("wb") as out:
                out.writelines(_content(member, archive))
        return len(missing)


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


def safe_path(name: str, folder: Path, archive: Path) -> Path:
    """Return where a member of an archive goes.

    Raises:
        BadAnnotation: Its path is absolute, climbs, or goes through a link that leads out of the folder.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    if not path.parts or not name.isprintable():
        raise BadAnnotation(f"{archive} has a file named {name!r}; get the archive from its official source")
    target = folder.joinpath(*path.parts)
    outside = path.is_absolute() or ".." in path.parts or path.parts[0].endswith(":")
    if outside or not target.resolve().is_relative_to(folder.resolve()):
        raise BadAnnotation(
            f"{archive} wants to write {name!r}, outside of {folder}; nothing was unpacked. Get the archive from its "
            "official source"
        )
    return target


@contextlib.contextmanager
def _members_of(archive: Path) -> Iterator[list[_Member]]:
    """List the files of an archive, which stays open during the block."""
    with contextlib.ExitStack() as stack:
        with _naming(archive):
            opened: Any
            if zipfile.is_zipfile(archive):
                opened = stack.enter_context(zipfile.ZipFile(archive))
                listed = opened.infolist()
                refused = [info.filename for info in listed if info.external_attr >> 28 not in _ZIP_TYPES]
                members = [
                    _Member(info.filename, info.file_size, functools.partial(opened.open, info))
                    for info in listed
                    if not info.is_dir()
                ]
            elif tarfile.is_tarfile(archive):
                opened = stack.enter_context(tarfile.open(archive))
                listed = opened.getmembers()
                refused = [info.name for info in listed if not (info.isfile() or info.isdir())]
                members = [
                    _Member(info.name, info.size, functools.partial(opened.extractfile, info))
                    for info in listed
                    if info.isfile()
                ]
            else:
                raise BadAnnotation(
                    f"{archive} is no zip or tar archive but {kind_of(archive)}; delete it and download again"
                )
            if refused:
                raise BadAnnotation(
                    f"{archive} has {refused[0]!r}, which is neither a file nor a folder; nothing was unpacked. Get "
                    "the archive from its official source"
                )
        yield members


@contextlib.contextmanager
def _naming(archive: Path) -> Iterator[None]:
    """Name the archive in whatever the decoders raise on damaged bytes; they have no common kind of error."""
    try:
        yield
    except FlmmError:
        raise
    except Exception as exc:
        raise BadAnnotation(
            f"{archive} is damaged or not readable ({type(exc).__name__}: {exc}); delete it and download again"
        ) from exc


def _content(member: _Member, archive: Path) -> Iterator[bytes]:
    """Yield the bytes of a member in chunks.

    Raises:
        BadAnnotation: It cannot be read, or has another size than the archive states.
    """
    size = 0
    with _naming(archive), member.open() as source:
        while chunk := source.read(_CHUNK):
            size += len(chunk)
            yield chunk
    if size != member.size:
        raise BadAnnotation(f"{member.name} of {archive} is cut short; delete the archive and download again")
