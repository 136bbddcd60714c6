"""Check that the data of a benchmark is complete and undamaged; each missing or damaged file is named.

Cheap checks come first: each part is in one of its places, with the official size and hash where those are known; each
split reads as a run would read it, with the official number of items; each picture is there, not empty, and complete at
both ends (``deep``: decoded).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from flmm_plugin.content_hashes import path_digest
from flmm_plugin.data.registry import Archive, Benchmark, Part, Split
from flmm_plugin.errors import FlmmError
from flmm_plugin.fetching import problem_of
from flmm_plugin.file_kinds import is_web_page, kind_of
from flmm_plugin.images import open_image

Status = Literal["ok", "note", "bad"]

# First bytes -> last bytes, and how far they may be from the end: some cameras write bytes behind it.
_ENDS = {b"\xff\xd8": (b"\xff\xd9", 64), b"\x89PNG\r\n\x1a\n": (b"IEND\xaeB`\x82", 12)}


@dataclass(frozen=True)
class Finding:
    """One line of a check.

    Attributes:
        status: ``ok``; ``note``: runs as it is; ``bad``: a run would fail or its number would not be the official one.
        what: Name of the part, split or file.
        detail: What was found, and the fix if it is bad.
    """

    status: Status
    what: str
    detail: str


def check(benchmark: Benchmark, root: Path, splits: tuple[str, ...] = (), *, deep: bool = False) -> Iterator[Finding]:
    """Look at everything a benchmark needs under a root; a terminal shows how many pictures are done.

    Args:
        benchmark: Its parts are looked for, its splits read.
        root: Data root, such as ``$FLMM_DATA``.
        splits: Only these, with the parts and pictures that they need; none: the splits of its tasks.
        deep: Decode every picture; minutes for thousands of them.
    """
    for part in benchmark.parts_of(splits):
        yield _part(part, root, benchmark.name)
    damages: dict[Path, str | None] = {}
    for name in splits or benchmark.splits:
        try:
            split = benchmark.read(root, name)
        except FlmmError as exc:
            yield Finding("bad", f"split {name}", f"{type(exc).__name__}: {exc}")
            continue
        yield _count(split)
        for note in split.notes:
            yield Finding("note", f"split {name}", note)
        yield from _pictures(split, damages, deep)


def _part(part: Part, root: Path, name: str) -> Finding:
    found = part.found(root)
    if found is None:
        fix = f"flmm data download {name} --root '{root}'" if part.source is not None else part.how
        status: Status = "note" if part.optional else "bad"
        return Finding(status, part.what, f"missing: none of {', '.join(part.places)} under {root}; {fix}")
    if found.is_dir():
        entries = sum(1 for _ in found.iterdir())
        if entries == 0:
            return Finding("bad", part.what, f"{found} is empty; {part.how or 'download it again'}")
        return Finding("ok", part.what, f"{found} ({entries} files)")
    source = part.source
    if isinstance(source, Archive) and source.file is not None:
        problem = problem_of(found, source.size, source.sha256)
        if problem is not None:
            # Another release of an annotation file may be what somebody wants: a run goes on, and says its hash.
            detail = f"{found} is {kind_of(found)} of {problem}: not the official file, or damaged"
            return Finding("bad", part.what, f"{detail}; delete it and download again")
        return Finding("ok", part.what, f"{found} (size and sha256 as official)")
    with found.open("rb") as file:
        beginning = file.read(512)
    if not beginning or is_web_page(beginning):
        return Finding("bad", part.what, f"{found} is {kind_of(found)}; delete it and download again")
    return Finding("ok", part.what, f"{found} ({found.stat().st_size} bytes)")


def _count(split: Split) -> Finding:
    what, found = f"split {split.name}", f"{split.items} {split.unit}"
    if split.expected is None:
        return Finding("ok", what, f"{found} (no official number is published)")
    if split.items == split.expected:
        return Finding("ok", what, f"{found}, as official")
    return Finding("bad", what, f"{found}, the official split has {split.expected}; get the official files")


def _pictures(split: Split, damages: dict[Path, str | None], deep: bool) -> Iterator[Finding]:
    """Check the pictures of a split, apart from those that another split has shown already."""
    damaged = 0
    for path in tqdm(split.pictures, desc=split.name, unit="picture", disable=None, leave=False):
        if path not in damages:
            damages[path] = _damage(path, deep)
        if damages[path] is not None:
            damaged += 1
            yield Finding("bad", f"picture {path}", str(damages[path]))
    if split.pictures:
        total = len(split.pictures)
        yield Finding(
            "bad" if damaged else "ok", f"pictures of {split.name}", f"{total - damaged} of {total} are whole"
        )


def _damage(path: Path, deep: bool) -> str | None:
    """Return what is wrong with a picture, None if nothing was found."""
    if not path.is_file():
        return f"{kind_of(path)}; delete it and download again" if path.exists() else "missing; download again"
    if deep:
        try:
            open_image(path)
        except FlmmError as exc:
            return str(exc)
        return None
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        file.seek(max(0, size - 64))
        tail = file.read()
    for start, (end, within) in _ENDS.items():
        if head.startswith(start):
            return None if end in tail[-within:] else "truncated: its end is missing; delete it and download again"
    return f"{kind_of(path)}, neither JPEG nor PNG; delete it and download again"


def data_digests(root: Path, benchmarks: Iterable[Benchmark]) -> dict[str, str]:
    """Hash every part of the benchmarks that is under a data root; the keys name its path."""
    places = {place for benchmark in benchmarks for part in benchmark.parts for place in part.places}
    return {f"data {place}": path_digest(root / place) for place in sorted(places) if (root / place).exists()}
