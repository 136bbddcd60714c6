"""A finished table as Markdown, LaTeX, HTML, or CSV with one line per number and its whole provenance."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from flmm_plugin.errors import UnknownArgument
from flmm_plugin.reports.comparison import Cell, ComparisonTable, Row, letter
from flmm_plugin.reports.runs import Provenance

if TYPE_CHECKING:
    import pandas as pd

FORMATS = ("md", "csv", "latex", "html")


def render(tables: Sequence[ComparisonTable], form: str) -> str:
    """Tables in one of `FORMATS`, ending with a newline.

    Raises:
        UnknownArgument: There is no such format.
    """
    if form not in FORMATS:
        raise UnknownArgument(f"no format {form!r}; known: {', '.join(FORMATS)}")
    if form == "csv":
        return frame(tables).to_csv(index=False, lineterminator="\n")
    one: dict[str, Callable[[ComparisonTable], str]] = {"md": markdown, "latex": latex, "html": fragment}
    return "\n".join(one[form](table) for table in tables)


def title_of(table: ComparisonTable) -> str:
    """Number and title."""
    return f"Table {table.layout.table}. {table.layout.title}"


def headers(table: ComparisonTable) -> list[str]:
    """One heading per column, with its group where the column's own name would not be clear alone."""
    groups = {column.group for column in table.layout.columns}
    return [
        column.header if column.header.startswith(column.group) or len(groups) == 1 or column.group == "QA"
        else f"{column.group} {column.header}" if column.group not in ("RES",) else column.header
        for column in table.layout.columns
    ]  # fmt: skip


def name_of(row: Row) -> str:
    """Label and variant of a row."""
    return f"{row.label}, {row.variant}" if row.variant else row.label


def frame(tables: Sequence[ComparisonTable]) -> pd.DataFrame:
    """One line per number: table, row, column, value, marks, where it stands, and its provenance.

    `pandas.DataFrame.pivot` gives the printed form back:
    ``frame(tables).pivot(index=["group", "row"], columns="column", values="value")``.
    """
    import pandas as pd  # here: the parser of `flmm` reads FORMATS at every start

    lines = [
        {
            "table": table.layout.table,
            "group": row.group,
            "row": name_of(row),
            "column": cell.column.name,
            "value": cell.text,
            "best": "yes" if cell.best else "",
            "marks": "; ".join(mark.sentence for mark in cell.marks),
            "origin": cell.origin,
            **dict((cell.provenance or Provenance()).items()),
        }
        for table in tables
        for row in table.rows
        for cell in row.cells
        if cell.value is not None
    ]
    names = ["table", "group", "row", "column", "value", "best", "marks", "origin", *dict(Provenance().items())]
    return pd.DataFrame(lines, columns=names, dtype=str)


# --- Markdown ------------------------------------------------------------------------------------------------------


def markdown(table: ComparisonTable) -> str:
    """GitHub's tables: headings of groups in italics, best in bold, marks as superscripts, sentences below."""
    lines = [f"### {title_of(table)}", "", _md_row(["Model", *headers(table)])]
    lines.append("|---|" + "--:|" * len(table.layout.columns))
    for group, rows in by_group(table):
        lines.append(_md_row([f"*{_md(group)}*", *("" for _ in table.layout.columns)]))
        lines.extend(_md_row([_md(name_of(row)), *(_md_cell(table, cell) for cell in row.cells)]) for row in rows)
    lines += ["", "Bold: best of the numbers that may be compared. A dash: not measured, or not to be compared."]
    lines += [f"<sup>{letter(place)}</sup> {_md(mark.sentence)}.  " for place, mark in enumerate(table.marks)]
    if table.measured:
        lines += [
            "",
            f"Runs of table {table.layout.table} (a dash: the file does not record it):",
            "",
            *_md_runs(table),
        ]
    return "\n".join([*lines, ""])


def _md_cell(table: ComparisonTable, cell: Cell) -> str:
    text = f"**{cell.text}**" if cell.best else cell.text
    marks = table.letters(cell)
    return f"{text}<sup>{marks}</sup>" if marks else text


def _md_runs(table: ComparisonTable) -> Iterator[str]:
    names = list(dict(Provenance().items()))
    yield _md_row(["number", *(name.replace("_", " ") for name in names)])
    yield "|---|" + "---|" * len(names)
    for label, provenance in conditions(table):
        yield _md_row([_md(label), *(_md(value) or "-" for _, value in provenance.items())])


def conditions(table: ComparisonTable) -> Iterator[tuple[str, Provenance]]:
    """Which numbers, and how they were measured: once per row of the table and task of the harness."""
    seen: dict[tuple[str, Provenance], list[str]] = {}
    for row in table.rows:
        for cell in row.cells:
            if cell.measured is not None and cell.provenance is not None:
                columns = seen.setdefault((f"{name_of(row)}: {cell.measured.task.task}", cell.provenance), [])
                columns.append(cell.column.name)
    for (label, provenance), columns in seen.items():
        yield f"{label} ({', '.join(columns)})", provenance


def by_group(table: ComparisonTable) -> Iterator[tuple[str, list[Row]]]:
    """Rows under their headings, in order of the headings' first appearance."""
    groups: dict[str, list[Row]] = {}
    for row in table.rows:
        groups.setdefault(row.group, []).append(row)
    yield from groups.items()


def _md_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _md(text: str) -> str:
    """Text that Markdown shows as it is, whatever a model or a folder is called."""
    plain = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", plain)


# --- LaTeX ---------------------------------------------------------------------------------------------------------

_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
}  # fmt: skip


def latex(table: ComparisonTable) -> str:
    """A ``table`` environment with booktabs' rules; provenance follows as comments."""
    columns = table.layout.columns
    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table*}",
        rf"\caption{{{_tex(table.layout.title)} (table {table.layout.table} of arXiv 2406.05821, rows added).}}",
        r"\centering\small",
        rf"\begin{{tabular}}{{l{'r' * len(columns)}}}",
        r"\toprule",
        " & ".join(["Model", *(_tex(name) for name in headers(table))]) + r" \\",
    ]
    for group, rows in by_group(table):
        lines += [r"\midrule", rf"\multicolumn{{{len(columns) + 1}}}{{l}}{{\textit{{{_tex(group)}}}}} \\"]
        lines += [
            " & ".join([_tex(name_of(row)), *(_tex_cell(table, cell) for cell in row.cells)]) + r" \\" for row in rows
        ]
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [
        rf"\par\footnotesize $^{{{letter(place)}}}$ {_tex(mark.sentence)}." for place, mark in enumerate(table.marks)
    ]
    lines += [r"\end{table*}", *(f"% {label}: {_one_line(line.as_line())}" for label, line in conditions(table))]
    return "\n".join([*lines, ""])


def _tex_cell(table: ComparisonTable, cell: Cell) -> str:
    number = _tex(cell.text) if cell.text != "-" else "--"
    text = rf"\textbf{{{number}}}" if cell.best else number
    marks = table.letters(cell)
    return f"{text}$^{{{marks}}}$" if marks else text


def _tex(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in " ".join(text.split()))


def _one_line(text: str) -> str:
    return " ".join(text.split())


# --- HTML ----------------------------------------------------------------------------------------------------------


def fragment(table: ComparisonTable) -> str:
    """A ``<table>`` with its sentences; each number's origin and provenance is its tooltip. All text is escaped.

    Every group is a ``<tbody>`` of its own, so that sorting keeps published, measured and difference rows apart.
    """
    heads = "".join(
        f'<th scope="col"><button type="button">{_h(name)}</button></th>' for name in ["Model", *headers(table)]
    )
    span = len(table.layout.columns) + 1
    bodies = "\n".join(
        f'<tbody><tr class="group"><th colspan="{span}" scope="rowgroup">{_h(group)}</th></tr>\n'
        + "\n".join(_html_row(table, row) for row in rows)
        + "</tbody>"
        for group, rows in by_group(table)
    )
    notes = "".join(
        f"<li><sup>{letter(place)}</sup> {_h(mark.sentence)}.</li>" for place, mark in enumerate(table.marks)
    )
    runs = "".join(f"<li><b>{_h(label)}</b>: {_h(line.as_line())}</li>" for label, line in conditions(table))
    return (
        f'<div class="wide"><table data-table="{_h(table.layout.table)}"><caption>{_h(title_of(table))}</caption>\n'
        f"<thead><tr>{heads}</tr></thead>\n{bodies}</table></div>\n"
        + (f'<ul class="marks">{notes}</ul>\n' if notes else "")
        + (f'<details class="runs"><summary>Runs, with provenance</summary><ul>{runs}</ul></details>\n' if runs else "")
    )


def _html_row(table: ComparisonTable, row: Row) -> str:
    cells = "".join(_html_cell(table, cell) for cell in row.cells)
    return f'<tr class="{row.kind}"><th scope="row">{_h(name_of(row))}</th>{cells}</tr>'


def _html_cell(table: ComparisonTable, cell: Cell) -> str:
    if cell.value is None:
        return '<td class="number">-</td>'
    text = f"<b>{_h(cell.text)}</b>" if cell.best else _h(cell.text)
    marks = table.letters(cell)
    line = cell.provenance.as_line() if cell.provenance else ""
    title = "\n".join(part for part in (cell.origin, line, *(mark.sentence for mark in cell.marks)) if part)
    sup = f"<sup>{marks}</sup>" if marks else ""
    return f'<td class="number" data-value="{cell.value!r}" title="{_h(title)}">{text}{sup}</td>'


def _h(text: str) -> str:
    return html.escape(text, quote=True)
