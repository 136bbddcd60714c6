"""Fetch a file so that it can be interrupted: it resumes, it is verified, and only then has its name.

The standard library is enough for that. What is fetched lies in ``<root>/.flmm/downloads``; a file that is there whole
and verified is not fetched again.
"""

from __future__ import annotations

import hashlib
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flmm_plugin.data import WORKPLACE
from flmm_plugin.data.registry import Archive, Hub
from flmm_plugin.data.unpacking import unpack
from flmm_plugin.errors import BadAnnotation, DataNotFound

_CHUNK = 1 << 20
_TIMEOUT = 60

#: Called with (bytes so far, bytes in all or None).
Progress = Callable[[int, int | None], None]


def fetch(archive: Archive, root: Path, progress: Progress = lambda *_: None) -> Path:
    """Download an archive or file, trying its mirrors in order.

    Args:
        archive: What.
        root: Data root.
        progress: Told how far it is.

    Returns:
        The verified file, in the workplace.

    Raises:
        DataNotFound: No mirror could be reached; the message has what each said.
        BadAnnotation: What came has another size or hash than the official file; it was deleted.
    """
    target = root / WORKPLACE / "downloads" / archive.name
    if target.is_file() and problem_of(target, archive.size, archive.sha256) is None:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".part")
    said: list[str] = []
    for url in archive.urls:
        try:
            _stream(url, partial, archive.size, progress)
        except (OSError, urllib.error.URLError) as exc:
            said.append(f"{url}: {exc}")
            continue
        problem = problem_of(partial, archive.size, archive.sha256)
        if problem is None:
            partial.replace(target)
            return target
        partial.unlink()
        said.append(f"{url}: {problem}")
    kind = BadAnnotation if any("expected" in one for one in said) else DataNotFound
    raise kind(
        f"{archive.name} could not be fetched ({'; '.join(said)}). What has arrived is kept: run the same command "
        f"again, or put the file into {target.parent} yourself"
    )


def install(source: Archive | Hub, root: Path, progress: Progress = lambda *_: None) -> str:
    """Fetch a source and put it where the readers look.

    Returns:
        One line that says what happened.

    Raises:
        DataNotFound, BadAnnotation: As `fetch` and `flmm_plugin.data.unpacking.unpack`.
    """
    if isinstance(source, Hub):
        return _from_hub(source, root)
    file = fetch(source, root, progress)
    if source.file is not None:
        target = root / source.file
        target.parent.mkdir(parents=True, exist_ok=True)
        file.replace(target)
        return f"{target}"
    folder = root / source.into
    written = unpack(file, folder)
    for name, into in source.inner.items():
        written += unpack(folder / name, root / into)
    return f"{written} files in {folder} (the archive stays in {file}; delete it when all is checked)"


def problem_of(path: Path, size: int | None, sha256: str | None) -> str | None:
    """What is wrong with a file, None if nothing is known to be."""
    actual = path.stat().st_size
    if size is not None and actual != size:
        return f"{actual} bytes, expected {size}"
    if sha256 is not None:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != sha256:
            return f"sha256 {found[:12]}..., expected {sha256[:12]}..."
    return None


def _stream(url: str, partial: Path, size: int | None, progress: Progress) -> None:
    """Append what is missing of a file; from the start where the server does not resume."""
    have = partial.stat().st_size if partial.is_file() else 0
    if size is not None and have == size:
        return
    if size is not None and have > size:
        partial.unlink()
        have = 0
    request = urllib.request.Request(url, headers={"User-Agent": "flmm-plugin", "Range": f"bytes={have}-"})
    try:
        answer: Any = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as exc:
        if exc.code == 416 and have:  # nothing is left: the part is the whole, or of another file; verified next
            return
        raise
    with answer:
        resumed = answer.status == 206
        have = have if resumed else 0
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length is not None else size
        with partial.open("ab" if resumed else "wb") as out:
            while chunk := answer.read(_CHUNK):
                out.write(chunk)
                have += len(chunk)
                progress(have, total)
    if total is not None and have < total:
        raise OSError(f"the connection ended after {have} of {total} bytes")


def _from_hub(source: Hub, root: Path) -> str:
    """Files of a hub data set, flat under ``source.into`` where patterns pick single files."""
    from huggingface_hub import snapshot_download

    target = root / source.into
    flat = len(source.patterns) == 1 and source.patterns[0].startswith("*")
    place = root / WORKPLACE / "hub" / source.repo if flat else target
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
        target.mkdir(parents=True, exist_ok=True)
        for path in found:
            path.replace(target / path.name)
    return f"{target}"
