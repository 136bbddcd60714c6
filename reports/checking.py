"""Find numbers of a table that no result file supports.

`unsupported` checks a table that was written earlier (Markdown, CSV, LaTeX or HTML of `flmm report`, edited or not):
every number in it must still stand in a result file, or in the paper's tables. `gaps` checks a layout: it names the
paper's F-LMM numbers that no run reproduces.
"""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from flmm_plugin import files
from flmm_plugin.errors import DataNotFound
from flmm_plugin.reports.comparison import VARIANT_TABLES, ComparisonTable
from flmm_plugin.reports.runs import named
from flmm_plugin.reports.table_layouts import LAYOUTS
from flmm_plugin.reports.templating import TEX

_NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?")
_PLAIN = {written: character for character, written in TEX.items()}
_TEX_CHARACTER = re.compile("|".join(re.escape(written) for written in sorted(_PLAIN, key=len, reverse=True)))


@dataclass(frozen=True)
class Unsupported:
    """A number that nothing supports: its place, its text, and the reason."""

    table: str
    row: str
    column: str
    shown: str
    why: str

    def __str__(self) -> str:
        return f"table {self.table}, {self.row}, {self.column}: {self.shown} {self.why}"


@dataclass(frozen=True)
class Shown:
    """A number read from a written table; ``text`` is as it stands there, without marks."""

    table: str
    group: str
    row: str
    column: str
    text: str


def unsupported(written: Iterable[Shown], tables: Sequence[ComparisonTable]) -> list[Unsupported]:
    """Return numbers of a written table that the result files (and the paper) do not give.

    Args:
        written: Numbers of an earlier table, as `read_table` returns them.
        tables: The same tables, made anew from the result files at hand.
    """
    made = {table.layout.table for table in tables}
    rows = {(table.layout.table, row.group, row.name): row for table in tables for row in table.rows}
    found = []
    for one in written:
        row = rows.get((one.table, one.group, one.row))
        known = {cell.column.name: cell.text for cell in row.cells if cell.value is not None} if row else {}
        if one.table not in made:
            why = f"was not checked: give --table {one.table}"
        elif row is None:
            why = "is supported by no result file: no run given here makes this row"
        elif one.column not in known:
            why = "is supported by no result file: the runs given here have no number there"
        elif not _same_number(known[one.column], one.text):
            why = f"is supported by no result file: they give {known[one.column]}"
        else:
            continue
        found.append(Unsupported(one.table, one.row, one.column, one.text, why))
    return found


def gaps(table: ComparisonTable) -> list[Unsupported]:
    """Return the paper's F-LMM numbers that no run gives, or only numbers that may not be compared with them."""
    found = []
    for row in table.rows:
        if row.kind != "published" or not row.backbone:
            continue
        runs = [one for one in table.rows if one.kind in ("flmm", "stock") and one.backbone == row.backbone]
        if table.layout.table in VARIANT_TABLES:
            runs = [one for one in runs if one.variant == row.variant]
        for place, cell in enumerate(row.cells):
            measured = [one.cells[place] for one in runs if one.cells[place].value is not None]
            if cell.value is None or any(one.comparable for one in measured):
                continue
            reasons = sorted({mark.sentence for one in measured for mark in one.marks if mark.blocks})
            why = "is reproduced by no result file" + (f": {'; '.join(reasons)}" if reasons else "")
            found.append(Unsupported(table.layout.table, row.name, cell.column.name, cell.text, why))
    return found


def _same_number(one: str, other: str) -> bool:
    """Compare two printed numbers; ``75.0`` and ``75`` are the same."""
    try:
        return float(one) == float(other)
    except ValueError:
        return one == other


# --- reading what was written --------------------------------------------------------------------------------------


def read_table(path: Path) -> list[Shown]:
    """Read every number of a file that `flmm report` wrote; its content tells the format.

    Raises:
        DataNotFound: There is no such file, it holds no table of `flmm report`, or it is cut off or damaged.
    """
    if not path.is_file():
        raise DataNotFound(f"there is no {path} to check; write it first: flmm report RESULTS --table 1 --out {path}")
    text = files.read_text(path, DataNotFound)
    with named(path, "table of flmm report"):
        if text.startswith("table,"):
            shown = list(_csv(text))
        elif "<table" in text:
            shown = list(_html(text))
        elif r"\begin{tabular}" in text:
            shown = list(_latex(text))
        else:
            shown = list(_markdown(text))
    if not shown:
        raise DataNotFound(f"{path} holds no table of flmm report; give a file that its --out wrote")
    return shown


def _csv(text: str) -> Iterator[Shown]:
    reader = csv.DictReader(io.StringIO(text))
    for line in reader:
        if None in line or None in line.values():
            raise ValueError(f"line {reader.line_num} has not as many cells as there are headings")
        if _NUMBER.fullmatch(line["value"]):
            yield Shown(line["table"], line["group"], line["row"], line["column"], line["value"])


def _markdown(text: str) -> Iterator[Shown]:
    table, group, names = "", "", 0
    for number, line in enumerate(text.splitlines(), start=1):
        title = re.match(r"#+ Table (\w+)\.", line)
        if title:
            table, group, names = title[1], "", 0
        if not table or not line.startswith("|"):
            names = 0 if not line.startswith("|") else names
            continue
        cells = [_plain_markdown(cell) for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not names:
            names = len(cells) if cells[:1] == ["Model"] else 0
        elif len(cells) != names or not line.rstrip().endswith("|"):
            raise ValueError(f"line {number} has not as many cells as there are headings")
        elif cells[0].startswith("*") and cells[0].endswith("*") and not any(cells[1:]):
            group = cells[0].strip("*")
        else:
            yield from _numbers(table, group, cells)


def _plain_markdown(cell: str) -> str:
    bare = re.sub(r"<sup>.*?</sup>", "", cell).strip()
    bare = bare[2:-2] if bare.startswith("**") and bare.endswith("**") else bare
    return html.unescape(re.sub(r"\\([\\`*_\[\]|~])", r"\1", bare))


def _latex(text: str) -> Iterator[Shown]:
    if text.count(r"\begin{tabular}") != text.count(r"\end{tabular}"):
        raise ValueError("a table has no end")
    table = group = ""
    for line in text.splitlines():
        title = re.search(r"\(table (\w+) of arXiv", line)
        if title:
            table = title[1]
        heading = re.match(r"\\multicolumn\{\d+\}\{l\}\{\\textit\{(.*)\}\} ", line)
        if heading:
            group = heading[1]
        if heading or not line.endswith(r" \\"):
            continue
        cells = []
        for cell in re.split(r"(?<!\\)&", line.removesuffix(r"\\")):
            bare = re.sub(r"\$\^\{[a-z,]*\}\$", "", cell).strip()
            bare = re.sub(r"^\\textbf\{(.*)\}$", r"\1", bare)
            cells.append(_TEX_CHARACTER.sub(lambda found: _PLAIN[found[0]], bare))
        if cells[0] != "Model":
            yield from _numbers(table, group, cells)


def _html(text: str) -> Iterator[Shown]:
    if text.count("<table") != text.count("</table>"):
        raise ValueError("a table has no end")
    for table, content in re.findall(r'<table data-table="(\w+)">(.*?)</table>', text, re.DOTALL):
        for group, body in re.findall(
            r'<tbody><tr class="group"><th[^>]*>(.*?)</th></tr>(.*?)</tbody>', content, re.DOTALL
        ):
            for row in re.findall(r"<tr [^>]*>(.*?)</tr>", body, re.DOTALL):
                cells = re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)
                bare = [re.sub(r"<[^>]*>", "", re.sub(r"<sup>.*?</sup>", "", cell)) for cell in cells]
                yield from _numbers(table, html.unescape(group), [html.unescape(cell) for cell in bare])


def _numbers(table: str, group: str, cells: Sequence[str]) -> Iterator[Shown]:
    """Return the numbers of one row by the layout's columns; columns beyond those are named by their place."""
    layout = LAYOUTS.get(table)
    names = [column.name for column in layout.columns] if layout else []
    for place, cell in enumerate(cells[1:]):
        if _NUMBER.fullmatch(cell):
            yield Shown(table, group, cells[0], names[place] if place < len(names) else f"column {place + 2}", cell)
