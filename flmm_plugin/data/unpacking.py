"""Unpack archives of strangers: no path leaves the folder, no link is made, nothing is half written.

Every member is looked at before the first byte is written. A file that is already there with the member's size is left
alone, so that an interrupted unpacking goes on where it stopped.
"""

from __future__ import annotations

import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from flmm_plugin.errors import BadAnnotation

_KEEP_FREE = 256 << 20


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
        BadAnnotation: Not an archive, damaged, with a path that leads out of the folder, with a link or a device, or
            larger than the disk has room for. Nothing of such a path was written.
    """
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                return _write(list(_zip_members(opened, archive)), folder, archive, progress)
        if tarfile.is_tarfile(archive):
            with tarfile.open(archive) as opened_tar:
                return _write(list(_tar_members(opened_tar, archive)), folder, archive, progress)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError) as exc:
        raise BadAnnotation(
            f"{archive} is damaged ({type(exc).__name__}: {exc}); delete it and download again"
        ) from exc
    raise BadAnnotation(f"{archive} is no zip or tar archive; delete it and download again")


def safe_path(name: str, folder: Path, archive: Path) -> Path:
    """Where a member goes.

    Raises:
        BadAnnotation: Its path is absolute, climbs, or goes through a link that leads out of the folder.
    """
    path = PurePosixPath(name.replace("\\", "/"))
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
    folder.mkdir(parents=True, exist_ok=True)
    needed = sum(member.size for member, _ in todo)
    free = shutil.disk_usage(folder).free
    if needed + _KEEP_FREE > free:
        raise BadAnnotation(
            f"unpacking {archive} takes {needed / 1e9:.1f} GB and {folder} has {free / 1e9:.1f} GB free; make room or "
            "give another --root"
        )
    written = {target for _, target in todo}
    for member, target in zip(members, targets, strict=True):
        if target in written:
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(target.name + ".part")
            with member.open() as source, partial.open("wb") as out:
                shutil.copyfileobj(source, out, 1 << 20)
            if partial.stat().st_size != member.size:
                raise BadAnnotation(f"{member.name} of {archive} is cut short; delete the archive and download again")
            partial.replace(target)
        progress(member.size)
    return len(todo)
