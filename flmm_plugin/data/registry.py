"""Describe the files of a benchmark: sources, licences, sizes, places.

A *part* is one file or folder, looked for in several places under the data root because mirrors lay it out differently.
Parts that come in one archive have the same source. Sizes and hashes are those of the official archives; None where
nobody states one. The records themselves stand in ``tasks/<folder>/benchmark.py``, one per benchmark
(`flmm_plugin.tasks.benchmarks` finds them).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
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
class Pictures:
    """Pictures on the web: one by one, or all of them in an archive.

    Attributes:
        address: Address of one, with ``{name}`` where its file name goes.
        archive: Archive that holds all of them.
        count: Number of pictures in the archive.
        used: How many of them the splits of all benchmarks here show together, about.
    """

    address: str
    archive: Archive
    count: int
    used: int

    def worth_the_archive(self, pictures: int) -> bool:
        """Return whether so many pictures are most of the archive."""
        return 2 * pictures > self.count

    def size(self, pictures: int) -> int | None:
        """Return the bytes to fetch for so many pictures; of single ones by their mean size in the archive."""
        if self.archive.size is None or self.worth_the_archive(pictures):
            return self.archive.size
        return self.archive.size * pictures // self.count


@dataclass(frozen=True)
class Hub:
    """Files of a data set on the Hugging Face hub; `huggingface_hub` resumes and verifies."""

    repo: str
    into: str
    patterns: tuple[str, ...] = ()
    size: int | None = None  # bytes of the download; None where nobody states them


@dataclass(frozen=True)
class DriveFolder:
    """Archives in a folder of Google Drive, found there by their names.

    Attributes:
        address: Address of the folder, ``https://drive.google.com/drive/folders/<ID>``.
        into: Folder under the root that they are unpacked into.
        names: File names of those that are needed; none: all of them.
    """

    address: str
    into: str
    names: tuple[str, ...] = ()


Source = Archive | Pictures | Hub | DriveFolder


@dataclass(frozen=True)
class Part:
    """One file or folder that a benchmark needs.

    Attributes:
        what: Words that name it in listings and messages.
        places: Paths under the root; the first that exists counts. One with a suffix is a file, others are folders. An
            absolute path is a file or a folder wherever the root is.
        licence: Terms of this part, or who states them.
        source: How to fetch it; None where a form must be filled in or a page be visited.
        how: What to do by hand, where `source` is None or does not answer.
        optional: Whether every task of the benchmark runs without it.
        splits: Splits or sets of the benchmark that need it; none: all of them.
    """

    what: str
    places: tuple[str, ...]
    licence: str
    source: Source | None = None
    how: str = ""
    optional: bool = False
    splits: tuple[str, ...] = ()

    @property
    def size(self) -> int | None:
        """Bytes of the download, if stated; of pictures that can be had one by one those of the archive."""
        source = self.source.archive if isinstance(self.source, Pictures) else self.source
        return source.size if isinstance(source, Archive | Hub) else None

    @property
    def origin(self) -> str:
        """Address of its source, or what to do by hand."""
        if isinstance(self.source, Archive):
            return self.source.urls[0]
        if isinstance(self.source, Pictures):
            return f"{self.source.archive.urls[0]}, or one by one"
        if isinstance(self.source, DriveFolder):
            return f"{', '.join(self.source.names) or 'all archives'} of {self.source.address}"
        return f"hub data set {self.source.repo}" if isinstance(self.source, Hub) else self.how

    def serves(self, splits: Iterable[str]) -> bool:
        """Return whether one of these splits needs it."""
        return not self.splits or not set(self.splits).isdisjoint(splits)

    def place(self, root: Path) -> Path:
        """Return where it is under a root, or where it will be once it is fetched."""
        return self.found(root) or root / self.places[0]

    def found(self, root: Path) -> Path | None:
        """Return the first of its places under a root that exists, None if none does."""
        return next((root / place for place in self.places if _is_there(root, place)), None)

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


def _is_there(root: Path, place: str) -> bool:
    path = root / place
    if Path(place).is_absolute():
        return path.exists()
    return path.is_file() if path.suffix else path.is_dir()


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
        splits: Names of the splits that its tasks read.
        read: Reads one of them: (data root, split) -> what is there; the pictures may be missing.
        headline: Metrics that stand for its tasks; the first one that a run printed counts.
        folders: Folders of ``tasks/`` whose tasks read it.
        kit: Name for VLMEvalKit's ``--data`` -> label of each task in it ("" where there is one) -> task.
        order: Place in listings: that of the paper's tables.
        training: Names of the splits that only the training reads.
        pictures: Split -> how many pictures it shows; a split that is not named may show all.
        documents: Task -> how many documents it has, where that is published.
        scenes: Splits that the synthetic scenes of the embedded model have too.
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
    training: tuple[str, ...] = ()
    pictures: Mapping[str, int] = field(default_factory=dict)
    documents: Mapping[str, int] = field(default_factory=dict)
    scenes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return what ``flmm data list --json`` prints of it."""
        described = {name: getattr(self, name) for name in ("name", "title", "tasks", "paper")}
        return {**described, "parts": [asdict(part) for part in self.parts]}

    def parts_of(self, splits: Iterable[str] = ()) -> list[Part]:
        """Return the parts that these splits need; none: the splits of its tasks."""
        asked = tuple(splits) or self.splits
        return [part for part in self.parts if part.serves(asked)]

    def size(self, splits: tuple[str, ...]) -> int:
        """Return the bytes of all downloads for some splits whose size is stated."""
        sizes: dict[str, int] = {}
        for part in self.parts_of(splits):
            if isinstance(part.source, Pictures):
                sizes[part.origin] = part.source.size(self.shown(part.source, splits)) or 0
            else:
                sizes[part.origin] = part.size or 0  # parts of one archive count once
        return sum(sizes.values())

    def shown(self, source: Pictures, splits: Iterable[str]) -> int:
        """Return how many pictures some splits show, as far as that is known without the annotations."""
        return min(source.used, sum(self.pictures.get(split, source.count) for split in splits))

    def here(self, root: Path) -> str:
        """Return how many of the parts that its tasks cannot do without are under a root, e.g. ``3 of 5 parts``."""
        needed = [part for part in self.parts_of() if not part.optional]
        return f"{sum(part.found(root) is not None for part in needed)} of {len(needed)} parts"

    def is_here(self, root: Path) -> bool:
        """Return whether every part that its tasks cannot do without is under a root."""
        return all(part.optional or part.found(root) is not None for part in self.parts_of())
