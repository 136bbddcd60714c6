"""The paper's tables with measured rows beside the printed ones, and marks on what was measured differently.

Rows are the paper's, in its order; then every run, F-LMM's and stock adapters'; then differences. A number is marked,
and a sentence below the table says why, if it was not measured by its column's reference protocol, not on the whole
official split, by another judge, or under other conditions than the measured row above it. Differences are computed
only between numbers that may be compared; elsewhere stands a dash. A difference from the paper, or its dash, carries
every reason that the result file gives for it: protocol, documents, precision, preprocessing, heads, refiner.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from flmm_plugin.reports.paper_numbers import PROTOCOLS, PaperNumber, numbers_of
from flmm_plugin.reports.runs import NOT_IDENTITY, Provenance, Run, TaskResult, differing_conditions, short_name
from flmm_plugin.reports.table_layouts import Column, Layout, Source
from flmm_plugin.reports.templating import letter

Kind = Literal["published", "flmm", "stock", "difference"]

NOT_WHOLE = "not the whole official split, or other data; the number of items stands under Runs"
PERHAPS_NOT_WHOLE = "its result file does not say whether the whole official split was scored"
EMBEDDED = "the embedded model on pictures of its own synthetic world: comparable with no published number"
#: Tables whose rows of one model differ in their variant: only rows of equal variant are subtracted.
VARIANT_TABLES = ("4", "5a", "5b")
_PUBLISHED_JUDGE = "gpt-3.5-turbo-1106"
#: Metrics that a judge gives; others of the same task are computed.
_JUDGED = frozenset({"judged", "gpt_eval_score", "gpt_eval_llava_all"})
#: How the paper's released heads refine masks, as result files say it: names of facts and their values.
_PAPER_HEADS = {"sam": "vit_l", "prompts": "mask + box + text", "merge": "mean"}
_SAM_NAMES = {"vit_b": "SAM ViT-B", "vit_l": "SAM ViT-L", "vit_h": "SAM ViT-H"}
_GROUPS = {
    "grounding": "Published: other models and methods",
    "specialised": "Published: specialised models",
    "ours": "Published: F-LMM",
}


@dataclass(frozen=True)
class Mark:
    """Reason why a number does not simply stand beside its neighbours.

    Attributes:
        sentence: Text that is printed below the table.
        blocks: Whether the number may not be compared at all: it is never the best and no difference is computed.
    """

    sentence: str
    blocks: bool = True


@dataclass(frozen=True)
class Measured:
    """Origin of a measured number."""

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
        """Return whether it may be compared with the numbers of its column's reference protocol."""
        return self.value is not None and not any(mark.blocks for mark in self.marks)

    @property
    def provenance(self) -> Provenance:
        """Conditions of a measured number; empty for others."""
        return self.measured.task.provenance if self.measured else Provenance()

    @property
    def origin(self) -> str:
        """Place of the number: a table of the paper, or a result file with task and metric."""
        if self.published:
            return self.published.source
        found = self.measured
        return f"{found.run.path.name}: {found.task.task}, {found.metric}" if found else ""


@dataclass(frozen=True)
class Row:
    """One row; ``group`` is its heading, ``variant`` distinguishes rows of one label."""

    label: str
    variant: str
    group: str
    kind: Kind
    cells: tuple[Cell, ...]
    backbone: str = ""
    pair: str = ""
    harness: str = ""

    @property
    def name(self) -> str:
        """Label and variant."""
        return f"{self.label}, {self.variant}" if self.variant else self.label


@dataclass(frozen=True)
class ComparisonTable:
    """A finished table: rows under headings, and the marks in order of their letters."""

    layout: Layout
    rows: tuple[Row, ...]
    marks: tuple[Mark, ...] = field(default=())

    def letters(self, cell: Cell) -> str:
        """Return the letters of a cell's marks, "" if it has none."""
        return ",".join(letter(self.marks.index(mark)) for mark in cell.marks)

    @property
    def measured(self) -> tuple[Measured, ...]:
        """Every measured number, row by row."""
        return tuple(cell.measured for row in self.rows for cell in row.cells if cell.measured)

    @property
    def groups(self) -> dict[str, list[Row]]:
        """Rows by heading, in order of the headings' first appearance."""
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            found.setdefault(row.group, []).append(row)
        return found

    @property
    def conditions(self) -> list[tuple[str, Provenance]]:
        """Names of measured numbers and how they were measured, once per row of the table and task of the harness."""
        seen: dict[tuple[str, Provenance], list[str]] = {}
        for row in self.rows:
            for cell in row.cells:
                if cell.measured is not None:
                    key = f"{row.name}: {cell.measured.task.task}", cell.provenance
                    seen.setdefault(key, []).append(cell.column.name)
        return [(f"{label} ({', '.join(columns)})", provenance) for (label, provenance), columns in seen.items()]


def compare(layout: Layout, runs: Iterable[Run], *, published: bool = True) -> ComparisonTable:
    """Fill a layout from runs.

    Args:
        layout: One of `LAYOUTS`; it names the columns and what fills them.
        runs: Measured runs, oldest first: of a task that was run twice, the newest number counts.
        published: Whether to add the paper's rows, and differences from them.
    """
    printed = list(_published_rows(layout)) if published else []
    measured = _mark_conditions(_measured_rows(layout, runs))
    rows = [*_mark_best([*printed, *measured]), *_differences(layout, measured, printed)]
    order = dict.fromkeys(mark for row in rows for cell in row.cells for mark in cell.marks)
    return ComparisonTable(layout, tuple(rows), tuple(order))


# --- published rows ------------------------------------------------------------------------------------------------


def _published_rows(layout: Layout) -> Iterator[Row]:
    by_row: dict[tuple[str, str, str], dict[str, PaperNumber]] = {}
    for one in numbers_of(layout.table):
        by_row.setdefault((one.row, one.variant, one.group), {})[one.column] = one
    for (name, variant, group), numbers in by_row.items():
        cells = tuple(_published_cell(column, numbers.get(column.name)) for column in layout.columns)
        backbone = next(iter(numbers.values())).backbone
        title = "Published: general-purpose LMMs" if layout.table == "A1" and group == "ours" else _GROUPS[group]
        yield Row(name, variant, title, "published", cells, backbone)


def _published_cell(column: Column, number: PaperNumber | None) -> Cell:
    if number is None:
        return Cell(column)
    marks = () if number.protocol == column.protocol else (Mark(PROTOCOLS[number.protocol]),)
    return Cell(column, number.number, number.value, marks, published=number)


# --- measured rows -------------------------------------------------------------------------------------------------


def _measured_rows(layout: Layout, runs: Iterable[Run]) -> Iterator[Row]:
    """Make rows of F-LMM's runs, each followed by the stock runs of the same weights; then of other stock runs."""
    by_model: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        by_model.setdefault(run.identity, []).append(run)
    groups = sorted(by_model.values(), key=lambda found: (found[-1].pair, not found[-1].flmm))
    labels = _labels([found[-1] for found in groups])
    for found, label in zip(groups, labels, strict=True):
        last = found[-1]
        for variant in layout.variants:
            cells = tuple(_measured_cell(column, found, variant) for column in layout.columns)
            if any(cell.value is not None for cell in cells):
                name = ", ".join(part for part in (variant, _variant_of(last, layout.table)) if part)
                kind: Kind = "flmm" if last.flmm else "stock"
                yield Row(label, name, "Measured", kind, cells, last.backbone, last.pair, last.harness)


#: Facts about heads that follow from which heads they are; named last when rows are distinguished.
_MINOR = ("heads.sha256", "heads.created_by", "heads.data", "heads.backbone", "heads.released")


def _labels(runs: Sequence[Run]) -> list[str]:
    """Return a label for each run; where several would be equal, two options in which the runs differ are added."""
    labels = []
    for run in runs:
        alike = [other for other in runs if other.label == run.label]
        names = {name for other in alike for name in other.options} - NOT_IDENTITY - {"visual_cot"}
        ordered = sorted(names, key=lambda name: (name in _MINOR, name))
        differing = [name for name in ordered if len({other.options.get(name) for other in alike}) > 1]
        shown = [f"{name}={short_name(run.options[name])}" for name in differing if name in run.options][:2]
        label = f"{run.label} in {run.harness}" if len({other.harness for other in alike}) > 1 else run.label
        labels.append(f"{label} [{'; '.join(shown)}]" if shown else label)
    distinct = {(label, run.visual_cot) for label, run in zip(labels, runs, strict=True)}
    if len(distinct) == len(runs):
        return labels
    return [f"{label} (run {place})" for place, label in enumerate(labels, start=1)]


def _variant_of(run: Run, table: str) -> str:
    """Return what distinguishes rows of one model in a table, beside the tasks that were run."""
    if table == "4":
        return ""
    if table == "5a":
        return run.options.get("heads.prompts", "")
    if table == "5b":
        return _SAM_NAMES.get(run.options.get("heads.sam", ""), "")
    return f"visual CoT {run.visual_cot}" if run.visual_cot else ""


def _measured_cell(column: Column, runs: Sequence[Run], variant: str) -> Cell:
    """Return the newest number of a column in the rows of a variant."""
    for run in reversed(runs):
        for source in column.sources:
            found = source.read(run) if source.variant == variant else None
            if found is not None:
                task, metric, value = found
                measured = Measured(run, task, metric, source)
                marks = tuple(_marks(column, measured))
                return Cell(column, value, f"{value:.{column.digits}f}", marks, measured=measured)
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


def _mark_conditions(rows: Iterable[Row]) -> list[Row]:
    """Mark what differs, column by column, from the first measured row that has a number there."""
    first: dict[tuple[str, str], tuple[str, Measured]] = {}
    marked = []
    for row in rows:
        cells = []
        for cell in row.cells:
            if cell.measured is not None:
                # Another protocol has a mark of its own, and is compared with numbers of its own protocol only.
                key = (cell.column.name, cell.measured.source.protocol)
                known = first.setdefault(key, (row.name, cell.measured))
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
    missing = one.task.provenance.not_recorded()
    if missing:
        names = ", ".join(what.replace("_", " ") for what in missing)
        yield Mark(f"its result file does not record: {names}", blocks=False)


def same_documents(one: Measured, other: Measured) -> bool:
    """Return whether both were scored on the same documents, as far as the files say: by hash, else by number."""
    first, second = one.task.provenance, other.task.provenance
    kinds = first.data.partition(":")[0], second.data.partition(":")[0]
    if first.data and second.data and kinds[0] == kinds[1]:
        return (first.data, first.n) == (second.data, second.n)
    return one.task.n == other.task.n


def _mark_best(rows: list[Row]) -> list[Row]:
    """Mark the highest of the comparable numbers of each column; every number here is better when higher."""
    best: dict[str, float] = {}
    for cell in (cell for row in rows for cell in row.cells):
        if cell.value is not None and cell.comparable:
            best[cell.column.name] = max(cell.value, best.get(cell.column.name, cell.value))
    return [
        replace(
            row,
            cells=tuple(
                replace(cell, best=cell.comparable and cell.value == best[cell.column.name]) for cell in row.cells
            ),
        )
        for row in rows
    ]


# --- differences ---------------------------------------------------------------------------------------------------


def _differences(layout: Layout, measured: Sequence[Row], printed: Sequence[Row]) -> Iterator[Row]:
    for one, other, name, documents in _pairs(layout, measured, printed):
        pairs = list(zip(one.cells, other.cells, strict=True))
        cells = tuple(_minus(a, b, documents) for a, b in pairs)
        if other.kind == "published":
            own = set() if layout.table in VARIANT_TABLES else set(_PAPER_HEADS)
            cells = tuple(_explained(cell, a, b, own) for cell, (a, b) in zip(cells, pairs, strict=True))
        if any(cell.value is not None or cell.marks for cell in cells):
            yield Row(f"{one.label} minus {name}", one.variant, "Differences", "difference", cells)


def _pairs(layout: Layout, measured: Sequence[Row], printed: Sequence[Row]) -> Iterator[tuple[Row, Row, str, bool]]:
    """Return rows to subtract, the name of the second, and whether both must have been scored on the same documents.

    F-LMM minus stock of the same weights, VLMEvalKit minus lmms-eval of the same model, measured minus published.
    """
    ours = [row for row in measured if row.kind == "flmm"]
    for row in ours:
        for other in measured:
            if other.kind == "stock" and (other.pair, other.variant) == (row.pair, row.variant):
                yield row, other, other.label, True
    for row in (one for one in ours if one.harness == "lmms-eval"):
        for other in ours:
            if other.harness != row.harness and (other.pair, other.variant) == (row.pair, row.variant):
                yield other, row, row.label, True
    for row in measured:
        for paper in printed:
            if not paper.backbone or paper.backbone != row.backbone:
                continue
            if layout.table not in VARIANT_TABLES or paper.variant in ("", row.variant):
                yield row, paper, "published", False


def _explained(cell: Cell, one: Cell, paper: Cell, facts: set[str]) -> Cell:
    """Add the reasons that a measured and a published number may differ for, as far as the result file records them.

    Args:
        cell: Their difference, or the dash in its place.
        one: The measured number, with its run.
        paper: The published number of the same column.
        facts: Those of `_PAPER_HEADS` that the table does not vary.
    """
    if one.measured is None or one.value is None or paper.value is None:
        return cell
    reasons = [*_marks(one.column, one.measured), *paper.marks]
    reasons += [Mark(text, blocks=False) for text in _own_conditions(one.measured, one.column.needs_flmm, facts)]
    return replace(cell, marks=tuple(dict.fromkeys(reasons)))


def _own_conditions(measured: Measured, masks: bool, facts: set[str]) -> Iterator[str]:
    """Name the conditions of a run that the paper does not state, or states otherwise."""
    provenance, options = measured.task.provenance, measured.run.options
    bits = [bits for bits in ("4", "8") if options.get(f"load_in_{bits}bit", "").lower() in ("true", "1", "yes")]
    if bits:
        yield f"precision: weights quantised to {bits[0]} bits"
    said = provenance.dtype or "not recorded in the result file"
    yield f"precision: {said}; the paper does not state its own"
    if not masks:
        return
    # MGM's stock processor is the paper's preprocessing.
    if provenance.preprocessing == "stock" and not measured.run.backbone.startswith("mgm"):
        yield "preprocessing: pictures as the stock processor makes them, not as for the released heads"
    if not options.get("heads.released"):
        made_by = options.get("heads.created_by") or "of unknown origin"
        digest = f", SHA-256 {provenance.heads}" if provenance.heads else ""
        yield f"heads: not the released ones, but {made_by}{digest}"
    for name, value in _PAPER_HEADS.items():
        found = options.get(f"heads.{name}", value)
        if name in facts and found != value:
            yield f"refiner: {name} {found}, the paper's {value}"


def _minus(one: Cell, other: Cell, same: bool) -> Cell:
    """Return the difference of two cells; a dash where they must not be compared, ``0`` for equal numbers.

    With ``same`` it is enough, and needed, that both were scored on the same documents.
    """
    if one.value is None or other.value is None:
        return Cell(one.column)
    if same:
        allowed = bool(one.measured and other.measured and same_documents(one.measured, other.measured))
    else:
        allowed = one.comparable and other.comparable
    if not allowed:
        return Cell(one.column)
    value = one.value - other.value
    return Cell(one.column, value, "0" if value == 0 else f"{value:+.{one.column.digits}f}")
