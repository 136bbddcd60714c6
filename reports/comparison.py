"""The paper's tables with measured rows beside the published ones, and a mark on whatever was measured differently.

Rows: the paper's, in its order; then every run, F-LMM's and stock adapters'; then differences. A number that was not
measured the way its column's reference protocol says, not on the whole official split, by another judge, or under
other conditions than the measured row above it, carries a mark whose sentence stands below the table. Differences are
computed only between numbers that may be compared; elsewhere stands a dash.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from flmm_plugin.reports.paper_numbers import PROTOCOLS, PaperNumber, numbers_of
from flmm_plugin.reports.runs import NOT_IDENTITY, Provenance, Run, TaskResult, differing_conditions, short_name
from flmm_plugin.reports.table_layouts import Column, Layout, Source

Kind = Literal["published", "flmm", "stock", "difference"]

NOT_WHOLE = "not the whole official split, or other data; the number of items stands under Runs"
PERHAPS_NOT_WHOLE = "its result file does not say whether the whole official split was scored"
EMBEDDED = "the embedded model on pictures of its own synthetic world: comparable with no published number"
#: Metrics that are a judge's word; the others of the same task are not.
_JUDGED = frozenset({"judged", "gpt_eval_score", "gpt_eval_llava_all"})
_PUBLISHED_JUDGE = "gpt-3.5-turbo-1106"


@dataclass(frozen=True)
class Mark:
    """Why a number does not simply stand beside its neighbours.

    Attributes:
        sentence: Printed below the table.
        blocks: Whether the number may not be compared at all: it is never the best and no difference is computed.
    """

    sentence: str
    blocks: bool = True


@dataclass(frozen=True)
class Measured:
    """Where a measured number comes from."""

    run: Run
    task: TaskResult
    metric: str
    source: Source


@dataclass(frozen=True)
class Cell:
    """One number of a table, or the lack of one (``value`` None: shown as a dash)."""

    column: Column
    value: float | None = None
    text: str = "-"
    marks: tuple[Mark, ...] = ()
    best: bool = False
    published: PaperNumber | None = None
    measured: Measured | None = None

    @property
    def comparable(self) -> bool:
        """Whether it may be compared with its column's reference."""
        return self.value is not None and not any(mark.blocks for mark in self.marks)

    @property
    def provenance(self) -> Provenance | None:
        """Conditions of a measured number."""
        return self.measured.task.provenance if self.measured else None

    @property
    def origin(self) -> str:
        """Where the number stands: a table of the paper, or a result file with task and metric."""
        if self.published:
            return self.published.source
        return (
            f"{self.measured.run.path.name}: {self.measured.task.task}, {self.measured.metric}" if self.measured else ""
        )


@dataclass(frozen=True)
class Row:
    """One row; ``group`` is its heading, ``variant`` tells rows of one label apart."""

    label: str
    variant: str
    group: str
    kind: Kind
    cells: tuple[Cell, ...]
    backbone: str = ""
    pair: str = ""
    harness: str = ""


@dataclass(frozen=True)
class ComparisonTable:
    """A finished table: rows under headings, and the sentences of its marks in order of their letters."""

    layout: Layout
    rows: tuple[Row, ...]
    marks: tuple[Mark, ...] = field(default=())

    def letters(self, cell: Cell) -> str:
        """The letters of a cell's marks, "" if it has none."""
        return ",".join(letter(self.marks.index(mark)) for mark in cell.marks)

    @property
    def measured(self) -> tuple[Measured, ...]:
        """Every measured number, row by row."""
        return tuple(cell.measured for row in self.rows for cell in row.cells if cell.measured)


def letter(index: int) -> str:
    """a, b, ... z, aa, ab, ...

    >>> letter(0), letter(25), letter(26)
    ('a', 'z', 'aa')
    """
    name = ""
    index += 1
    while index:
        index, place = divmod(index - 1, 26)
        name = chr(ord("a") + place) + name
    return name


def compare(layout: Layout, runs: Iterable[Run], *, published: bool = True) -> ComparisonTable:
    """The table of a layout from runs; without ``published``, measured rows alone."""
    printed = list(_published_rows(layout)) if published else []
    measured = _mark_conditions(list(_measured_rows(layout, runs)))
    rows = [*_with_best([*printed, *measured], layout), *_differences(layout, measured, printed)]
    order = dict.fromkeys(mark for row in rows for cell in row.cells for mark in cell.marks)
    return ComparisonTable(layout, tuple(rows), tuple(order))


# --- published rows ------------------------------------------------------------------------------------------------

_GROUPS = {
    "grounding": "Published: other models and methods",
    "specialised": "Published: specialised models",
    "ours": "Published: F-LMM",
}


def _published_rows(layout: Layout) -> Iterator[Row]:
    numbers = numbers_of(layout.table)
    for name, variant, group in dict.fromkeys((one.row, one.variant, one.group) for one in numbers):
        of_row = {one.column: one for one in numbers if (one.row, one.variant, one.group) == (name, variant, group)}
        cells = tuple(_published_cell(column, of_row.get(column.name)) for column in layout.columns)
        backbone = next(iter(of_row.values())).backbone
        title = "Published: general-purpose LMMs" if layout.table == "A1" and group == "ours" else _GROUPS[group]
        yield Row(name, variant, title, "published", cells, backbone)


def _published_cell(column: Column, number: PaperNumber | None) -> Cell:
    if number is None:
        return Cell(column)
    marks = () if number.protocol == column.protocol else (Mark(PROTOCOLS[number.protocol]),)
    return Cell(column, number.number, number.value, marks, published=number)


# --- measured rows -------------------------------------------------------------------------------------------------


def _measured_rows(layout: Layout, runs: Iterable[Run]) -> Iterator[Row]:
    """F-LMM's runs first, each followed by the stock runs of the same weights, then the other stock runs."""
    grouped: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        grouped.setdefault(run.identity, []).append(run)
    same = sorted(grouped.values(), key=lambda found: (found[-1].pair, not found[-1].flmm))
    labels = labels_of([found[-1] for found in same])
    for found, label in zip(same, labels, strict=True):
        for arm in layout.arms:
            cells = tuple(_measured_cell(column, found, arm) for column in layout.columns)
            if any(cell.value is not None for cell in cells):
                last = found[-1]
                variant = ", ".join(part for part in (arm, variant_of(last, layout.table)) if part)
                kind: Kind = "flmm" if last.flmm else "stock"
                yield Row(label, variant, "Measured", kind, cells, last.backbone, last.pair, last.harness)


#: Facts about heads that follow from which heads they are; named last when rows are told apart.
_MINOR = ("heads.sha256", "heads.created_by", "heads.data", "heads.backbone")


def labels_of(runs: Sequence[Run]) -> list[str]:
    """A label for each run; where several runs would have the same, what differs in their options is added."""
    labels = []
    for run in runs:
        alike = [other for other in runs if other.label == run.label]
        names = sorted({name for other in alike for name in other.options}, key=lambda name: (name in _MINOR, name))
        told = [name for name in names if name not in NOT_IDENTITY and name != "visual_cot"]  # a variant says that
        differing = [name for name in told if len({other.options.get(name) for other in alike}) > 1]
        said = "; ".join([f"{name}={short_name(run.options[name])}" for name in differing if name in run.options][:2])
        label = f"{run.label} in {run.harness}" if len({other.harness for other in alike}) > 1 else run.label
        labels.append(f"{label} [{said}]" if said else label)
    clash = {(label, run.visual_cot) for label, run in zip(labels, runs, strict=True)}
    if len(clash) == len(runs):
        return labels
    return [f"{label} (run {place})" for place, label in enumerate(labels, start=1)]


def variant_of(run: Run, table: str) -> str:
    """What tells apart rows of one model in this table."""
    if table == "4":  # its rows are told apart by the tasks and by Source.visual_cot
        return ""
    if table == "5a":
        return run.options.get("heads.prompts", "")
    if table == "5b":
        return {"vit_b": "SAM ViT-B", "vit_l": "SAM ViT-L", "vit_h": "SAM ViT-H"}.get(
            run.options.get("heads.sam", ""), ""
        )
    return f"visual CoT {run.visual_cot}" if run.visual_cot else ""


def _measured_cell(column: Column, runs: Sequence[Run], arm: str) -> Cell:
    # Newest first: a task that was run again counts once.
    for run in reversed(runs):
        for source in column.sources:
            found = source.read(run) if source.arm == arm else None
            if found is not None:
                task, metric, value = found
                measured = Measured(run, task, metric, source)
                return Cell(
                    column, value, f"{value:.{column.digits}f}", tuple(_marks(column, measured)), measured=measured
                )
    return Cell(column)


def _marks(column: Column, measured: Measured) -> Iterator[Mark]:
    if measured.source.protocol != column.protocol:
        harness = measured.source.protocol in ("lmms_eval", "vlmevalkit")
        yield Mark(PROTOCOLS[measured.source.protocol], blocks=not harness)
    if measured.run.embedded and measured.source.protocol != "tiny_world":
        yield Mark(EMBEDDED)
    if measured.task.complete is False:
        yield Mark(NOT_WHOLE)
    elif measured.task.complete is None:
        yield Mark(PERHAPS_NOT_WHOLE, blocks=False)
    judge = measured.task.provenance.judge if measured.metric in _JUDGED else ""
    if judge and not (column.protocol == "viscot_judged" and judge.startswith(_PUBLISHED_JUDGE)):
        yield Mark(f"judged by {judge}")
    encoder = measured.task.metadata.get("sentence_encoder")
    if encoder and column.header == "recall" and "bert-base-uncased" not in str(encoder):
        yield Mark(f"phrases compared by {encoder}, not by bert-base-uncased")


def _mark_conditions(rows: list[Row]) -> list[Row]:
    """Mark what differs, column by column, from the first measured row that has a number there."""
    first: dict[tuple[str, str], tuple[str, Measured]] = {}
    marked = []
    for row in rows:
        cells = []
        for cell in row.cells:
            if cell.measured is not None:
                name = ", ".join(part for part in (row.label, row.variant) if part)
                # Another protocol has a mark of its own and is held against its like alone.
                key = (cell.column.name, cell.measured.source.protocol)
                known = first.setdefault(key, (name, cell.measured))
                if known[1] is not cell.measured:
                    cell = replace(cell, marks=(*cell.marks, *_unlike(cell.measured, *known)))
            cells.append(cell)
        marked.append(replace(row, cells=tuple(cells)))
    return marked


def _unlike(one: Measured, name: str, other: Measured) -> Iterator[Mark]:
    if not same_documents(one, other):
        yield Mark(f"scored on other documents than {name}")
    for what in differing_conditions(other.task.provenance, one.task.provenance):
        yield Mark(f"measured differently from {name}: {what}", blocks=False)
    unsaid = one.task.provenance.not_recorded()
    if unsaid:
        said = ", ".join(what.replace("_", " ") for what in unsaid)
        yield Mark(f"its result file does not record: {said}", blocks=False)


def same_documents(one: Measured, other: Measured) -> bool:
    """Whether both were scored on the same documents, as far as the files say: by hash, else by number."""
    first, second = one.task.provenance, other.task.provenance
    kinds = first.data.partition(":")[0], second.data.partition(":")[0]
    if first.data and second.data and kinds[0] == kinds[1]:
        return (first.data, first.n) == (second.data, second.n)
    return one.task.n == other.task.n


def _with_best(rows: list[Row], layout: Layout) -> list[Row]:
    """The highest of the comparable numbers of each column is the best; every number here is better when higher."""
    top: list[float | None] = []
    for place in range(len(layout.columns)):
        values = [row.cells[place].value for row in rows if row.cells[place].comparable]
        top.append(max((value for value in values if value is not None), default=None))
    return [
        replace(
            row,
            cells=tuple(
                replace(cell, best=cell.comparable and cell.value == top[place]) for place, cell in enumerate(row.cells)
            ),
        )
        for row in rows
    ]


# --- differences ---------------------------------------------------------------------------------------------------


#: Tables whose rows of one model differ in their variant: only equal ones are subtracted.
VARIANTS = ("4", "5a", "5b")


def _differences(layout: Layout, measured: list[Row], printed: list[Row]) -> Iterator[Row]:
    ours = [row for row in measured if row.kind == "flmm"]
    for row in ours:
        same = (one for one in measured if one.kind == "stock" and (one.pair, one.variant) == (row.pair, row.variant))
        for stock in same:
            cells = tuple(_minus(a, b, stock=True) for a, b in zip(row.cells, stock.cells, strict=True))
            if any(cell.value is not None for cell in cells):
                yield Row(f"{row.label} minus {stock.label}", row.variant, "Differences", "difference", cells)
    for row in (one for one in ours if one.harness == "lmms-eval"):
        for other in ours:
            if other.harness == row.harness or (other.pair, other.variant) != (row.pair, row.variant):
                continue
            cells = tuple(_minus(a, b, stock=True) for a, b in zip(other.cells, row.cells, strict=True))
            if any(cell.value is not None for cell in cells):
                yield Row(f"{other.label} minus {row.label}", row.variant, "Differences", "difference", cells)
    for row in measured:
        for paper in (one for one in printed if one.backbone and one.backbone == row.backbone):
            if paper.variant and paper.variant != row.variant and layout.table in VARIANTS:
                continue
            cells = tuple(_minus(a, b, stock=False) for a, b in zip(row.cells, paper.cells, strict=True))
            if any(cell.value is not None for cell in cells):
                yield Row(f"{row.label} minus published", row.variant, "Differences", "difference", cells)


def _minus(one: Cell, other: Cell, *, stock: bool) -> Cell:
    """Their difference; a dash where they must not be compared. Equal numbers give ``0``, without decimals."""
    if one.value is None or other.value is None:
        return Cell(one.column)
    if stock:
        allowed = (
            one.measured is not None and other.measured is not None and same_documents(one.measured, other.measured)
        )
    else:
        allowed = one.comparable and other.comparable
    if not allowed:
        return Cell(one.column)
    value = one.value - other.value
    return Cell(one.column, value, "0" if value == 0 else f"{value:+.{one.column.digits}f}")
