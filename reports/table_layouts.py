"""Read the layouts of the paper's tables: their columns, and which task and metric of a harness fills each.

``table_columns.csv`` has one line per column of a table. Its *protocol* is that of F-LMM's own printed numbers there.
``table_sources.csv`` has one line per way to fill a column, in order of preference. A task may measure the same thing
by another protocol (one expression at a time instead of all of an image, say): it fills a row of its own, named by its
``variant``, and its numbers carry a mark.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources

from flmm_plugin.errors import UnknownArgument
from flmm_plugin.reports.runs import Run, TaskResult

#: Names that ``--table`` takes; the paper prints 5a and 5b as one table.
TABLE_NAMES = ("1", "2", "3", "4", "5", "6", "A1", "A2", "A3")
_TITLES = {
    "1": "Question answering, referring expression segmentation (cIoU) and panoptic narrative grounding",
    "2": "Reasoning segmentation (gIoU)",
    "3": "Grounded conversation generation",
    "4": "Visual chain-of-thought reasoning",
    "5a": "Prompts of the mask refiner, on PNG",
    "5b": "SAM variants, on PNG",
    "6": "Keyword selection",
    "A1": "More question answering",
    "A2": "Referring expression segmentation (cIoU), all splits",
    "A3": "Panoptic narrative grounding",
}


@dataclass(frozen=True)
class Source:
    """One way to fill a column.

    Attributes:
        tasks: Names of tasks that measure it.
        metrics: Names of the metric; the first that the task has counts.
        protocol: How the task measures, a key of `flmm_plugin.reports.paper_numbers.PROTOCOLS`.
        variant: Name of the row it belongs to, "" for the run's plain row.
        harness: Harness of the task; a task of this package (``flmm_...``) belongs to both.
        scale: Factor to the column's unit; ``fraction``: 100 for values of at most 1 (some data sets of VLMEvalKit
            write percentages as shares of 1), else 1.
        visual_cot: Visual chain of thought that the run must have answered with, or ``none``; "": any.
    """

    tasks: tuple[str, ...]
    metrics: tuple[str, ...]
    protocol: str
    variant: str
    harness: str
    scale: str
    visual_cot: str

    def read(self, run: Run) -> tuple[TaskResult, str, float] | None:
        """Return task, metric and value in the column's unit; None if the run has no such number."""
        # This package's own tasks are the same in every harness: the same documents, requests and scoring.
        if run.harness != self.harness and not self.tasks[0].startswith("flmm_"):
            return None
        if self.visual_cot not in ("", run.visual_cot or "none"):
            return None
        for name, task in run.tasks.items():
            for metric in self.metrics if name in self.tasks else ():
                if metric in task.metrics:
                    return task, metric, task.metrics[metric] * self._factor(task.metrics[metric])
        return None

    def _factor(self, value: float) -> float:
        if self.scale == "fraction":
            return 100.0 if abs(value) <= 1 else 1.0
        return float(self.scale or 1)


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        name: Name of the column in ``paper_numbers.csv``, such as ``RefCOCO val``.
        group: Heading above the column's own.
        header: Heading of the column itself.
        digits: Decimals of a measured number.
        protocol: Protocol of F-LMM's printed numbers, a key of `PROTOCOLS`.
        tasks: lmms-eval tasks that fill it by that protocol; `flmm reproduce` runs them.
        needs_flmm: Whether only a model that gives masks can fill it.
        sources: Ways to fill it, in order of preference per variant.
    """

    name: str
    group: str
    header: str
    digits: int
    protocol: str
    tasks: tuple[str, ...]
    needs_flmm: bool
    sources: tuple[Source, ...]


@dataclass(frozen=True)
class Layout:
    """One table: its number in the paper, title and columns."""

    table: str
    title: str
    columns: tuple[Column, ...]

    @property
    def variants(self) -> tuple[str, ...]:
        """Variants of its sources in order of first appearance, the plain one first."""
        names = dict.fromkeys(source.variant for column in self.columns for source in column.sources)
        return tuple(sorted(names, key=lambda name: name != ""))

    @property
    def tasks(self) -> tuple[str, ...]:
        """lmms-eval tasks that fill it, in the order of its columns."""
        return tuple(dict.fromkeys(task for column in self.columns for task in column.tasks))

    @property
    def mask_tasks(self) -> frozenset[str]:
        """Those of its tasks that only a model which answers with masks can do."""
        return frozenset(task for column in self.columns if column.needs_flmm for task in column.tasks)

    @property
    def caption(self) -> str:
        """Number and title."""
        return f"Table {self.table}. {self.title}"

    @property
    def headings(self) -> list[str]:
        """Heading of every column, with its group where the column's own heading would not be clear alone."""
        found = []
        for column in self.columns:
            alone = len({other.group for other in self.columns}) == 1 or column.group in ("QA", "RES")
            clear = alone or column.header.startswith(column.group)
            found.append(column.header if clear else f"{column.group} {column.header}")
        return found

    def column(self, name: str) -> Column:
        """Return the column of that name."""
        return next(column for column in self.columns if column.name == name)


def _lines(name: str) -> Iterator[dict[str, str]]:
    text = (resources.files("flmm_plugin.reports") / name).read_text(encoding="utf-8")
    yield from csv.DictReader(text.splitlines())


def _read_layouts() -> dict[str, Layout]:
    sources: dict[str, list[Source]] = {}
    for line in _lines("table_sources.csv"):
        tasks, metrics = tuple(line.pop("tasks").split("|")), tuple(line.pop("metrics").split("|"))
        sources.setdefault(line.pop("column"), []).append(Source(tasks, metrics, **line))
    columns: dict[str, list[Column]] = {}
    for line in _lines("table_columns.csv"):
        column = Column(
            name=line["column"],
            group=line["group"],
            header=line["heading"],
            digits=int(line["digits"]),
            protocol=line["protocol"],
            tasks=tuple(line["tasks"].split("|")),
            needs_flmm=line["answers"] == "masks",
            sources=tuple(sources[line["column"]]),
        )
        columns.setdefault(line["table"], []).append(column)
    return {table: Layout(table, title, tuple(columns[table])) for table, title in _TITLES.items()}


LAYOUTS: Mapping[str, Layout] = _read_layouts()


def layouts_of(names: Iterable[str]) -> list[Layout]:
    """Return layouts by the names that ``--table`` takes, in the paper's order for ``all``.

    Raises:
        UnknownArgument: There is no such table.
    """
    wanted: list[str] = []
    for name in names:
        key = name.strip().upper().removeprefix("TABLE")
        if key == "ALL":
            wanted += LAYOUTS
        elif key == "5":
            wanted += ("5a", "5b")
        else:
            key = key.lower() if key.startswith("5") else key
            if key not in LAYOUTS:
                raise UnknownArgument(
                    f"the paper has no table {name!r} of numbers; known: {', '.join(TABLE_NAMES)}, all"
                )
            wanted.append(key)
    return [LAYOUTS[name] for name in dict.fromkeys(wanted)]
