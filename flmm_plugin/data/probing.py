"""Every split of a benchmark through its own reader, as a run would read it: how many items, which pictures.

One function per benchmark; `check` and `prepare` share them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from flmm_plugin.datasets.problems import counted
from flmm_plugin.errors import UnknownArgument


@dataclass(frozen=True)
class Split:
    """One split as its reader sees it.

    Attributes:
        name: As in task names.
        items: How many were read.
        expected: How many the official split has; None where nobody states it.
        unit: What is counted.
        pictures: Their files, each once, in order of use.
        notes: What the reader kept as it is, or left out, one line each.
    """

    name: str
    items: int
    expected: int | None
    unit: str
    pictures: tuple[Path, ...]
    notes: tuple[str, ...] = ()


#: A split's name, and what reads it.
Probe = tuple[str, Callable[[], Split]]


def splits_of(benchmark: str, root: Path) -> Iterator[Probe]:
    """The splits of a benchmark, each read only when its function is called."""
    if benchmark not in _PROBES:
        raise UnknownArgument(f"nothing reads {benchmark!r}; known: {', '.join(_PROBES)}")
    yield from _PROBES[benchmark](root)


def _refer(name: str, splits: tuple[str, ...]) -> Callable[[Path], Iterator[Probe]]:
    def probes(root: Path) -> Iterator[Probe]:
        for split in splits:
            yield split, lambda split=split: read(root, split)  # type: ignore[misc]

    def read(root: Path, split: str) -> Split:
        from flmm_plugin.datasets.refer import ReferDataset

        dataset = ReferDataset(root, name, split)
        official = dataset.official_size
        notes = tuple(f"{count} times: {kind}" for kind, count in counted(dataset.problems).items())
        pictures = tuple(dict.fromkeys(item.image_path for item in dataset))
        return Split(split, len(dataset), None if official is None else official.refs, "refs", pictures, notes)

    return probes


def _png(root: Path) -> Iterator[Probe]:
    def read() -> Split:
        from flmm_plugin.datasets.png import PngDataset

        dataset = PngDataset(root, "val")
        notes = tuple(str(problem) for problem in dataset.problems)
        files = [path for one in dataset for path in (one.image_path, one.map_path)]
        return Split("val", dataset.told, None, "narratives", tuple(dict.fromkeys(files)), notes)

    yield "val", read


def _reasonseg(root: Path) -> Iterator[Probe]:
    def read(split: str) -> Split:
        from flmm_plugin.datasets.reasonseg import ReasonSegDataset

        dataset = ReasonSegDataset(root, split)
        pictures = tuple(item.image_path for item in dataset)
        notes = tuple(map(str, dataset.problems))
        return Split(split, len(dataset), dataset.official_size, "pictures", pictures, notes)

    for split in ("val", "test"):
        yield split, lambda split=split: read(split)  # type: ignore[misc]


def _gcg(root: Path) -> Iterator[Probe]:
    def read(split: str) -> Split:
        from flmm_plugin.datasets.grandf import GranDfDataset

        dataset = GranDfDataset(root, split)
        pictures = tuple(item.image_path for item in dataset)
        return Split(split, len(dataset), None, "pictures", pictures, dataset.notes)

    for split in ("val", "test"):
        yield split, lambda split=split: read(split)  # type: ignore[misc]


def _viscot(root: Path) -> Iterator[Probe]:
    def read(name: str) -> Split:
        from flmm_plugin.datasets.viscot import VisCotDataset

        dataset = VisCotDataset(root, name)
        notes = tuple(f"the box of question {number} is reversed" for number in dataset.reversed_boxes)
        pictures = tuple(dict.fromkeys(item.image_path for item in dataset))
        return Split(name, len(dataset), dataset.official_size.records, "questions", pictures, notes)

    from flmm_plugin.datasets.viscot import TABLE_SETS

    for name in TABLE_SETS:
        yield name, lambda name=name: read(name)  # type: ignore[misc]


def _parquet(repo: str, expected: int) -> Callable[[Path], Iterator[Probe]]:
    """A hub data set: rows are counted from the files' footers, pictures are inside them."""

    def read(root: Path) -> Split:
        import pyarrow as pa
        import pyarrow.parquet as pq

        from flmm_plugin.errors import BadAnnotation, DataNotFound

        folder = root / repo / "data"
        files = sorted(folder.glob("test-*.parquet"))
        if not files:
            raise DataNotFound(f"no test-*.parquet in {folder}; get it with: flmm data download, run in that root")
        try:
            rows = sum(int(pq.ParquetFile(file).metadata.num_rows) for file in files)
        except (OSError, pa.ArrowException) as exc:
            raise BadAnnotation(f"a parquet file in {folder} is damaged ({exc}); delete it and download again") from exc
        return Split("test", rows, expected, "questions", ())

    def probes(root: Path) -> Iterator[Probe]:
        yield "test", lambda: read(root)

    return probes


_PROBES: Mapping[str, Callable[[Path], Iterator[Probe]]] = {
    "refcoco": _refer("refcoco", ("val", "testA", "testB")),
    "refcoco+": _refer("refcoco+", ("val", "testA", "testB")),
    "refcocog": _refer("refcocog", ("val", "test")),
    "png": _png,
    "reasonseg": _reasonseg,
    "gcg": _gcg,
    "viscot": _viscot,
    "pope": _parquet("lmms-lab-encoder/POPE", 9000),
    "mme": _parquet("lmms-lab-encoder/MME", 2374),
}
