"""Describe the files of a benchmark: sources, licences, sizes, places.

A *part* is one file or folder, looked for in several places under the data root because mirrors lay it out differently.
Sizes and hashes are those of the official archives; None where nobody states one. The records themselves stand in
``tasks/<folder>/benchmark.py``, one per benchmark (`flmm_plugin.tasks.benchmarks` finds them).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from flmm_plugin.data.root import DATA_ROOT_VARIABLE
from flmm_plugin.errors import DataNotFound
from flmm_plugin.fetching import WebFile


@dataclass(frozen=True)
class Archive:
    """One file on the web.

    Attributes:
        urls: Where it is, best first; the others are mirrors.
        size: Bytes of the download; None where nobody states them.
        sha256: Hexadecimal digest of the download; None where nobody states it.
        into: Folder under the root that it is unpacked into; "" for the root.
        file: Path under the root that it is saved as, for a file that is no archive.
        inner: Archives inside it that are unpacked too: name -> folder under the root.
    """

    urls: tuple[str, ...]
    size: int | None = None
    sha256: str | None = None
    into: str = ""
    file: str | None = None
    inner: Mapping[str, str] = field(default_factory=dict)

    @property
    def web(self) -> WebFile:
        """The download, under the name that it has at its first address."""
        return WebFile(self.urls, self.urls[0].rsplit("/", 1)[1], self.size, self.sha256)


@dataclass(frozen=True)
class Hub:
    """Files of a data set on the Hugging Face hub; `huggingface_hub` resumes and verifies."""

    repo: str
    into: str
    patterns: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part:
    """One file or folder that a benchmark needs.

    Attributes:
        what: Words that name it in listings and messages.
        places: Paths under the root; the first that exists counts. One with a suffix is a file, others are folders.
        licence: Terms of this part, or who states them.
        source: How to fetch it; None where a form must be filled in or a page be visited.
        how: What to do by hand, where `source` is None.
        optional: Whether every task of the benchmark runs without it.
        comes_along: Whether another part's archive brings it.
    """

    what: str
    places: tuple[str, ...]
    licence: str
    source: Archive | Hub | None = None
    how: str = ""
    optional: bool = False
    comes_along: bool = False

    @property
    def size(self) -> int | None:
        """Bytes of the download, if stated."""
        return self.source.size if isinstance(self.source, Archive) else None

    @property
    def origin(self) -> str:
        """Address of its source, or what to do by hand."""
        if isinstance(self.source, Archive):
            return self.source.urls[0]
        return f"hub data set {self.source.repo}" if isinstance(self.source, Hub) else self.how

    def found(self, root: Path) -> Path | None:
        """Return the first of its places under a root that exists, None if none does."""
        candidates = (root / place for place in self.places)
        return next((path for path in candidates if (path.is_file() if path.suffix else path.is_dir())), None)

    def path(self, root: Path, benchmark: str) -> Path:
        """Return where the part is under a root.

        Args:
            root: Data root, such as ``$FLMM_DATA``.
            benchmark: Name that ``flmm data download`` knows.

        Raises:
            DataNotFound: It is in none of its places; the message says where it comes from and how to get it.
        """
        found = self.found(root)
        if found is not None:
            return found
        looked = " and ".join(str(root / place) for place in self.places)
        origin = f" {'It comes from' if self.source else 'By hand:'} {self.origin}." if self.origin else ""
        raise DataNotFound(
            f"no {self.what}: looked for {looked}.{origin} Get it with: flmm data download {benchmark} --root "
            f"'{root}'; or set {DATA_ROOT_VARIABLE} to the folder that already holds it"
        )


@dataclass(frozen=True)
class Split:
    """One split as its reader sees it.

    Attributes:
        name: Name of the split, as the tasks' names have it.
        items: How many pictures, questions, ... its reader found.
        expected: How many the official split has; None where nobody states it.
        unit: What is counted: pictures, questions, ...
        pictures: Their files, each once, in order of use.
        notes: What the reader kept as it is, or left out, one line each.
    """

    name: str
    items: int
    expected: int | None
    unit: str
    pictures: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Benchmark:
    """All that this package knows about a benchmark; the one place where it is registered.

    Attributes:
        name: As given to ``flmm data``.
        title: Name and splits, as listings show them.
        tasks: What to give to ``lmms_eval --tasks``.
        paper: Authors, year and arXiv number.
        parts: Files and folders that it needs.
        splits: Names of the splits that a check reads.
        read: Reads one of them: (data root, split) -> what is there.
        headline: Metrics that stand for its tasks; the first one that a run printed counts.
        folders: Folders of ``tasks/`` whose tasks read it.
        kit: Name for VLMEvalKit's ``--data`` -> label of each task in it ("" where there is one) -> task.
        order: Place in listings: that of the paper's tables.
    """

    name: str
    title: str
    tasks: tuple[str, ...]
    paper: str
    parts: tuple[Part, ...]
    splits: tuple[str, ...]
    read: Callable[[Path, str], Split]
    headline: tuple[str, ...]
    folders: tuple[str, ...]
    kit: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    order: int = 0

    def as_json(self) -> dict[str, Any]:
        """Return what ``flmm data list --json`` prints of it."""
        described = {name: getattr(self, name) for name in ("name", "title", "tasks", "paper")}
        return {**described, "parts": [asdict(part) for part in self.parts]}

    @property
    def size(self) -> int:
        """Bytes of all downloads whose size is stated."""
        return sum(part.size or 0 for part in self.parts)

    def here(self, root: Path) -> str:
        """Return how many of the parts that its tasks cannot do without are under a root, e.g. ``3 of 5 parts``."""
        needed = [part for part in self.parts if not part.optional]
        return f"{sum(part.found(root) is not None for part in needed)} of {len(needed)} parts"

    def is_here(self, root: Path) -> bool:
        """Return whether every part that its tasks cannot do without is under a root."""
        return all(part.optional or part.found(root) is not None for part in self.parts)
