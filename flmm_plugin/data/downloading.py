"""Fetch a file so that it can be interrupted: it resumes, it is tested, and only then gets its name.

Downloads lie in ``<root>/.flmm/downloads``. What an interrupted download left belongs to one address and one version of
the file there (its ETag or date): another address or version begins anew. A file that fails its test is deleted, and
the next mirror is asked.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import Timeout
from tqdm import tqdm

from flmm_plugin import files
from flmm_plugin.content_hashes import file_digest
from flmm_plugin.data.registry import Archive, Hub
from flmm_plugin.data.unpacking import problem_of_archive, unpack
from flmm_plugin.errors import BadAnnotation, DataNotFound
from flmm_plugin.file_kinds import is_web_page, kind_of_bytes

_CHUNK = 1 << 20
_TIMEOUT = 60

#: A bar of bytes, on a terminal alone.
_BAR: Any = {"unit": "B", "unit_scale": True, "unit_divisor": 1000, "disable": None}

_log = logging.getLogger(__name__)


class _WrongFile(Exception):
    """Raised where a server sent another file than the one that was asked for."""


def fetch(archive: Archive, root: Path) -> Path:
    """Download an archive or file, trying its mirrors in order; a terminal shows how far it is.

    Args:
        archive: Addresses of one file, with its size and hash where they are known.
        root: Data root; the download lies in its workplace.

    Returns:
        The tested file.

    Raises:
        DataNotFound: No mirror could be reached; the message has what each said.
        BadAnnotation: What came is another file than the official one, is damaged or is a web page; it was deleted.
        OutputFailed: The root cannot be written, or has no room.
    """
    with _locked(archive, root) as target:
        return _fetch(archive, target)


def install(source: Archive | Hub, root: Path) -> str:
    """Fetch a source and put it where the readers look.

    Returns:
        One line that says where it is.

    Raises:
        DataNotFound, BadAnnotation, OutputFailed: As `fetch` and `flmm_plugin.data.unpacking.unpack`.
    """
    if isinstance(source, Hub):
        return _from_hub(source, root)
    with _locked(source, root) as download:
        if source.file is None:
            file = _fetch(source, download)
            folder = root / source.into
            written = unpack(file, folder)
            for name, into in source.inner.items():
                written += unpack(folder / name, root / into)
            return f"{written} files in {folder} (the archive stays in {file}; delete it when all is checked)"
        target = root / source.file
        # Another process may have put it there while this one waited.
        if not (target.is_file() and _problem(target, source) is None):
            file = _fetch(source, download)
            with files.naming(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                file.replace(target)
        return f"{target}"


def problem_of(path: Path, size: int | None, sha256: str | None) -> str | None:
    """Compare a file with its official size and hash.

    Returns:
        What is wrong with it, None if nothing is known to be.
    """
    actual = path.stat().st_size
    if size is not None and actual != size:
        return f"{actual} bytes, expected {size}"
    if sha256 is not None:
        found = file_digest(path)
        if found != sha256:
            return f"sha256 {found[:12]}..., expected {sha256[:12]}..."
    return None


def _problem(path: Path, archive: Archive) -> str | None:
    """Say what is wrong with a download, by its size and hash or else by reading it as an archive; None if nothing."""
    with path.open("rb") as file:
        beginning = file.read(512)
    if is_web_page(beginning):
        return f"it is {kind_of_bytes(beginning)} (a login, quota or error page), not the file"
    problem = problem_of(path, archive.size, archive.sha256)
    if problem is not None:
        return f"it is {kind_of_bytes(beginning)} of {problem}"
    if archive.sha256 is None and archive.file is None:
        return problem_of_archive(path)
    return None


@contextlib.contextmanager
def _locked(archive: Archive, root: Path) -> Iterator[Path]:
    """Hold the lock of a download and yield its place; a killed process leaves no lock behind."""
    target = root / files.WORKPLACE / "downloads" / archive.name
    files.make_folder(target.parent)
    lock = files.Lock(target.with_name(f".{target.name}.lock"))
    with files.naming(target.parent):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            _log.warning("another process is fetching %s; waiting for it", target.name)
            lock.acquire()
    try:
        yield target
    finally:
        lock.release()


def _fetch(archive: Archive, target: Path) -> Path:
    """Download to `target`, whose lock is held."""
    if target.is_file():
        problem = _problem(target, archive)
        if problem is None:
            return target
        _log.warning("%s is not the official file (%s); it is fetched again", target, problem)
    failures: list[str] = []
    error: type[Exception] = DataNotFound
    for url in archive.urls:
        partial = _partial_file(target, url)
        try:
            _fetch_from(url, partial, archive)
        except (OSError, http.client.HTTPException, ValueError) as exc:
            failures.append(f"{url}: {type(exc).__name__}: {exc}")
        except _WrongFile as exc:
            _forget(partial)
            failures.append(f"{url}: what came was deleted: {exc}")
            error = BadAnnotation
        else:
            partial.replace(target)
            _forget(partial)
            return target
    raise error(
        f"{archive.name} could not be fetched ({'; '.join(failures)}). What has arrived is kept: run the same command "
        f"again, or put the file into {target.parent} yourself"
    )


def _fetch_from(url: str, partial: Path, archive: Archive) -> None:
    """Fetch a file from one address and test it; one that was resumed is fetched anew if it is wrong."""
    resumed = _stream(url, partial, archive)
    problem = _problem(partial, archive)
    if problem is not None and resumed:
        _forget(partial)
        _stream(url, partial, archive)
        problem = _problem(partial, archive)
    if problem is not None:
        raise _WrongFile(problem)


def _stream(url: str, partial: Path, archive: Archive) -> bool:
    """Append what is missing of a file; from the start where the server does not resume, or has another version.

    Returns:
        Whether it went on with what was there.
    """
    have, version = _resumable(partial, archive)
    if archive.size is not None and have == archive.size:
        return True
    headers = {"User-Agent": "flmm-plugin"}
    if have:
        headers["Range"] = f"bytes={have}-"
    if have and version:
        headers["If-Range"] = version
    try:
        answer: Any = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT)
    except urllib.error.HTTPError as exc:
        if exc.code == 416 and have:  # nothing is left: the part is the whole, or of another file; tested next
            return True
        raise
    with answer:
        begins = answer.headers.get("Content-Range", f"bytes {have}-")
        if answer.status == 206 and not begins.startswith(f"bytes {have}-"):
            raise _WrongFile(f"it is a range that was not asked for ({begins})")
        resumed = have > 0 and answer.status == 206
        have = have if resumed else 0
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length is not None else archive.size
        files.check_room(partial.parent, (total or 0) - have)
        if not resumed:
            _forget(partial)
            files.write(_version_file(partial), _version_of(answer))
        with files.naming(partial):
            handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o644)
        with os.fdopen(handle, "ab") as out, tqdm(initial=have, total=total, **_BAR) as bar:
            while chunk := answer.read(_CHUNK):
                with files.naming(partial):
                    out.write(chunk)
                bar.update(len(chunk))
            with files.naming(partial):
                out.flush()
            have = out.tell()
    if total is not None and have < total:
        raise OSError(f"the connection ended after {have} of {total} bytes")
    return resumed


def _partial_file(target: Path, url: str) -> Path:
    """Return where the bytes from one address are kept."""
    return target.with_name(f".{target.name}.{hashlib.sha256(url.encode()).hexdigest()[:12]}{files.PART}")


def _version_file(partial: Path) -> Path:
    return partial.with_suffix(".version")


def _forget(partial: Path) -> None:
    for path in (partial, _version_file(partial)):
        path.unlink(missing_ok=True)


def _version_of(answer: Any) -> str:
    """Return what names this version of a file in the form that ``If-Range`` takes; "" for a weak ETag alone."""
    tag = str(answer.headers.get("ETag") or "W/")
    return str(answer.headers.get("Last-Modified") or "") if tag.startswith("W/") else tag


def _resumable(partial: Path, archive: Archive) -> tuple[int, str]:
    """Return how many bytes are there to go on from, and the version that they are of.

    Without a version, they are used only if a hash will show whether the finished file is right.
    """
    if partial.is_file() and not partial.is_symlink():
        have, version = partial.stat().st_size, ""
        with contextlib.suppress(OSError, ValueError):
            version = _version_file(partial).read_text(encoding="utf-8")
        if (version or archive.sha256 is not None) and (archive.size is None or have <= archive.size):
            return have, version
    _forget(partial)
    return 0, ""


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
