"""Fetch a file from the web so that it can be interrupted: it resumes, it is tested, and only then gets its name.

What an interrupted download left lies beside the file and belongs to one address and one version of it there (its ETag
or date): another address or version begins anew. A file that fails its test is deleted, and the next mirror is asked.
Google Drive, which answers with pages of its own, is spoken to by ``gdown``.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import logging
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from flmm_plugin import files
from flmm_plugin.content_hashes import file_digest
from flmm_plugin.errors import BadAnnotation, DataNotFound
from flmm_plugin.file_kinds import is_web_page, kind_of_bytes

_CHUNK = 1 << 20
_TIMEOUT = 60
_DRIVE = "drive.google.com"

#: A bar of bytes, on a terminal alone.
_BAR: Any = {"unit": "B", "unit_scale": True, "unit_divisor": 1000, "disable": None}

#: Says what is wrong with a file that has arrived; None if nothing is known to be.
Check = Callable[[Path], str | None]

_log = logging.getLogger(__name__)


class _WrongFile(Exception):
    """Raised where a server sent another file than the one that was asked for."""


@dataclass(frozen=True)
class WebFile:
    """One file on the web.

    Attributes:
        urls: Where it is, best first; the others are mirrors. Google Drive: ``https://drive.google.com/uc?id=<ID>``.
        name: File name that it gets.
        size: Number of bytes; None where nobody states it.
        sha256: Hexadecimal digest, or its first digits; None where nobody states it.
    """

    urls: tuple[str, ...]
    name: str
    size: int | None = None
    sha256: str | None = None


def fetch(file: WebFile, folder: Path, check: Check | None = None) -> Path:
    """Download a file, trying its mirrors in order; a terminal shows how far it is.

    Args:
        file: Addresses of it, with its size and hash where they are known.
        folder: Where it and what an interrupted download left of it lie; made if it is not there.
        check: A further test of what arrived, beside that of size and hash.

    Returns:
        The tested file.

    Raises:
        DataNotFound: No mirror could be reached, or Google Drive refuses; the message has what each said.
        BadAnnotation: What came is another file than the official one, is damaged or is a web page; it was deleted.
        OutputFailed: The folder cannot be written, or has no room.
    """
    target = folder / file.name
    with files.turn(target, "fetching"):
        if target.is_file():
            problem = _problem(target, file, check)
            if problem is None:
                return target
            _log.warning("%s is not the official file (%s); it is fetched again", target, problem)
        failures: list[str] = []
        error: type[DataNotFound] | type[BadAnnotation] = DataNotFound
        for url in file.urls:
            partial = _partial_file(target, url)
            try:
                _fetch_from(url, partial, file, check)
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
            f"{file.name} could not be fetched ({'; '.join(failures)}). Run the same command again, which goes on from "
            f"what has arrived, or open {page_of(file.urls[0])} in a browser and save the file as {target}"
        )


def page_of(url: str) -> str:
    """Return the page to visit by hand for a file: that of Google Drive, elsewhere the address itself."""
    drive_id = _drive_id(url)
    return f"https://{_DRIVE}/file/d/{drive_id}/view" if drive_id else url


def problem_of(path: Path, size: int | None, sha256: str | None) -> str | None:
    """Compare a file with its official size and hash.

    Args:
        path: The downloaded file; it is read whole where a hash is given.
        size: Number of bytes; None: unknown.
        sha256: Hexadecimal digest or its first digits; None: unknown.

    Returns:
        What is wrong with it, None if nothing is known to be.
    """
    actual = path.stat().st_size
    if size is not None and actual != size:
        return f"{actual} bytes, expected {size}"
    if sha256 is not None:
        found = file_digest(path)
        if not found.startswith(sha256):
            return f"sha256 {found[:12]}..., expected {sha256[:12]}..."
    return None


def _problem(path: Path, file: WebFile, check: Check | None) -> str | None:
    """Say what is wrong with a download: a web page, another size or hash, or what `check` finds; None if nothing."""
    with path.open("rb") as opened:
        beginning = opened.read(512)
    if is_web_page(beginning):
        return f"it is {kind_of_bytes(beginning)} (a login, quota or error page), not the file"
    problem = problem_of(path, file.size, file.sha256)
    if problem is not None:
        return f"it is {kind_of_bytes(beginning)} of {problem}"
    return check(path) if check is not None else None


def _fetch_from(url: str, partial: Path, file: WebFile, check: Check | None) -> None:
    """Fetch a file from one address and test it; one that was resumed is fetched anew if it is wrong."""
    stream = _stream_drive if _drive_id(url) else _stream
    resumed = stream(url, partial, file)
    problem = _problem(partial, file, check)
    if problem is not None and resumed:
        _forget(partial)
        stream(url, partial, file)
        problem = _problem(partial, file, check)
    if problem is not None:
        raise _WrongFile(problem)


def _stream(url: str, partial: Path, file: WebFile) -> bool:
    """Append what is missing of a file; from the start where the server does not resume, or has another version.

    Returns:
        Whether it went on with what was there.
    """
    have, version = _resumable(partial, file)
    if file.size is not None and have == file.size:
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
        total = have + int(length) if length is not None else file.size
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
    for path in (partial, _version_file(partial), *_drive_rests(partial)):
        path.unlink(missing_ok=True)


def _version_of(answer: Any) -> str:
    """Return what names this version of a file in the form that ``If-Range`` takes; "" for a weak ETag alone."""
    tag = str(answer.headers.get("ETag") or "W/")
    return str(answer.headers.get("Last-Modified") or "") if tag.startswith("W/") else tag


def _resumable(partial: Path, file: WebFile) -> tuple[int, str]:
    """Return how many bytes are there to go on from, and the version that they are of.

    Without a version, they are used only if a hash will show whether the finished file is right.
    """
    if partial.is_file() and not partial.is_symlink():
        have, version = partial.stat().st_size, ""
        with contextlib.suppress(OSError, ValueError):
            version = _version_file(partial).read_text(encoding="utf-8")
        if (version or file.sha256 is not None) and (file.size is None or have <= file.size):
            return have, version
    _forget(partial)
    return 0, ""


def _drive_id(url: str) -> str | None:
    """Return the identifier of a file on Google Drive, None for any other address."""
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.parse_qs(parts.query).get("id", [None])[0] if parts.hostname == _DRIVE else None


def drive_files(folder: str) -> dict[str, str]:
    """List a folder of Google Drive: the file names in it and below, with the address of each.

    Args:
        folder: Address of the folder, ``https://drive.google.com/drive/folders/<ID>``.

    Raises:
        DataNotFound: It cannot be listed.
    """
    import gdown
    from gdown.exceptions import DownloadError

    try:
        found: list[Any] = gdown.download_folder(
            url=folder, skip_download=True, quiet=True, use_cookies=False, timeout=_TIMEOUT
        )
    except (DownloadError, OSError) as exc:
        said = " ".join(str(exc).split()).partition(" You may")[0]
        raise DataNotFound(f"{folder} cannot be listed ({said}); run the same command again, or visit it") from exc
    return {Path(one.path).name: f"https://{_DRIVE}/uc?id={one.id}" for one in found}


def _stream_drive(url: str, partial: Path, file: WebFile) -> bool:
    """Fetch a file from Google Drive by way of its confirmation page; what is there already is gone on with.

    Returns:
        Whether it went on with what was there.
    """
    import gdown
    from gdown.exceptions import DownloadError, FileURLRetrievalError

    had = _size_of_rest(partial)
    with tqdm(initial=had, total=file.size, **_BAR) as bar:

        def progress(have: int, total: int | None) -> None:
            if total is not None and bar.total != total:
                files.check_room(partial.parent, total - have)
                bar.total = total
            bar.update(have - bar.n)

        try:
            gdown.download(
                url, str(partial), quiet=True, use_cookies=False, resume=True, timeout=_TIMEOUT, progress=progress
            )
        except FileURLRetrievalError as exc:
            said = " ".join(str(exc).split()).removeprefix("Failed to retrieve file url: ").partition(" You may")[0]
            raise OSError(f"Google Drive shows a page in place of the file: {said}") from exc
        except DownloadError as exc:
            if had and _size_of_rest(partial) == had:  # Drive did not go on from there, so it begins anew
                _forget(partial)
                return _stream_drive(url, partial, file)
            raise OSError(" ".join(str(exc).split())) from exc
        except OSError as exc:
            if exc.errno is not None:  # of the disk: those of the network carry no number here
                with files.naming(partial):
                    raise
            raise
    return had > 0


def _size_of_rest(partial: Path) -> int:
    return sum(path.stat().st_size for path in (partial, *_drive_rests(partial)) if path.is_file())


def _drive_rests(partial: Path) -> list[Path]:
    """Return the files that gdown writes to before it renames them to `partial`; one at most, if nobody interferes."""
    return [path for path in partial.parent.glob(f"{partial.name}*{files.PART}") if path != partial]
