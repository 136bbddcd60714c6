"""Fetch what a benchmark's data comes from, and put it where the readers look.

Downloads lie in ``<root>/.flmm/downloads``; `flmm_plugin.fetching` resumes and tests them.
"""

from __future__ import annotations

from pathlib import Path

from flmm_plugin import files
from flmm_plugin.data.registry import Archive, DriveFolder, Hub
from flmm_plugin.data.unpacking import problem_of_archive, unpack
from flmm_plugin.errors import DataNotFound
from flmm_plugin.fetching import WebFile, drive_files, fetch, problem_of

_ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz")


def install(source: Archive | Hub | DriveFolder, root: Path) -> str:
    """Fetch a source and put it where the readers look.

    Returns:
        One line that says where it is.

    Raises:
        DataNotFound, BadAnnotation, OutputFailed: As `flmm_plugin.fetching.fetch` and `unpack`.
    """
    if isinstance(source, Hub):
        return _from_hub(source, root)
    if isinstance(source, DriveFolder):
        return _from_drive(source, root)
    web = source.web
    downloads = _downloads(root)
    if source.file is None:
        archive = downloads / web.name
        written = _unpacked(source, web, root)
        return (
            f"{written} files in {root / source.into} (the archive stays in {archive}; delete it when all is checked)"
        )
    with files.turn(downloads / f"{web.name}.install", "installing"):
        target = root / source.file
        # Another process may have put it there while this one waited.
        if not (target.is_file() and problem_of(target, web.size, web.sha256) is None):
            download = fetch(web, downloads)
            with files.naming(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                download.replace(target)
        return f"{target}"


def _downloads(root: Path) -> Path:
    return root / files.WORKPLACE / "downloads"


def _unpacked(source: Archive, web: WebFile, root: Path) -> int:
    """Fetch an archive and unpack it with those inside it; return how many files were written."""
    downloads, folder = _downloads(root), root / source.into
    with files.turn(downloads / f"{web.name}.install", "installing"):
        # An official hash says more than a test of the archive, and reading it once is enough.
        archive = fetch(web, downloads, None if web.sha256 else problem_of_archive)
        written = unpack(archive, folder)
        for name, into in source.inner.items():
            written += unpack(folder / name, root / into)
    return written


def _from_drive(source: DriveFolder, root: Path) -> str:
    """Fetch archives of a folder of Google Drive, and unpack them."""
    there = drive_files(source.address)
    gone = [name for name in source.names if name not in there]
    if gone or not there:
        raise DataNotFound(
            f"{source.address} has no {', '.join(gone) or 'file'}, but {', '.join(sorted(there)) or 'nothing'}"
        )
    written = 0
    for name in source.names or [name for name in there if name.endswith(_ENDINGS)]:
        archive = Archive((there[name],), into=source.into)
        written += _unpacked(archive, WebFile(archive.urls, name), root)
    return f"{written} files in {root / source.into}"


def _from_hub(source: Hub, root: Path) -> str:
    """Fetch files of a hub data set; flat under ``source.into`` where one pattern picks single files."""
    from huggingface_hub import snapshot_download

    target = root / source.into
    flat = len(source.patterns) == 1 and source.patterns[0].startswith("*")
    place = root / files.WORKPLACE / "hub" / source.repo if flat else target
    files.make_folder(place)
    try:
        snapshot_download(
            source.repo, repo_type="dataset", local_dir=place, allow_patterns=list(source.patterns) or None
        )
    except Exception as exc:  # the hub's errors have no common base that stays the same over versions
        raise DataNotFound(
            f"{source.repo} could not be fetched from the hub ({type(exc).__name__}: {exc}). Accept its terms on its "
            "page and log in (hf auth login), or run the same command again: it resumes"
        ) from exc
    if flat:
        found = [path for path in place.rglob(source.patterns[0].lstrip("*")) if path.is_file()]
        found = found or [path for path in place.rglob(source.patterns[0]) if path.is_file()]
        if not found:
            raise DataNotFound(f"{source.repo} has no file {source.patterns[0]}; look at its page for where it went")
        with files.naming(target):
            target.mkdir(parents=True, exist_ok=True)
            for path in found:
                path.replace(target / path.name)
    return f"{target}"
