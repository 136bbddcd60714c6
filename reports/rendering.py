"""Write finished tables as Markdown, LaTeX, HTML, or CSV with one line per number and its whole provenance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from flmm_plugin.errors import UnknownArgument
from flmm_plugin.reports.comparison import ComparisonTable
from flmm_plugin.reports.runs import Provenance
from flmm_plugin.reports.templating import fill

if TYPE_CHECKING:
    import pandas as pd

FORMATS = ("md", "csv", "latex", "html")
_TEMPLATES = {"md": "table.md", "latex": "table.tex", "html": "table.html"}


def render(tables: Sequence[ComparisonTable], form: str) -> str:
    """Return tables in one of `FORMATS`, ending with a newline.

    Raises:
        UnknownArgument: There is no such format.
    """
    if form not in FORMATS:
        raise UnknownArgument(f"no format {form!r}; known: {', '.join(FORMATS)}")
    if form == "csv":
        return frame(tables).to_csv(index=False, lineterminator="\n")
    return "\n".join("".join(fill(_TEMPLATES[form], table=table)) for table in tables)


def frame(tables: Sequence[ComparisonTable]) -> pd.DataFrame:
    """Return one line per number: table, row, column, value, marks, where it stands, and its provenance.

    `pandas.DataFrame.pivot` gives the printed form back:
    ``frame(tables).pivot(index=["group", "row"], columns="column", values="value")``.
    """
    import pandas as pd  # here: the parser of `flmm` reads FORMATS at every start

    lines = [
        {
            "table": table.layout.table,
            "group": row.group,
            "row": row.name,
            "column": cell.column.name,
            "value": cell.text,
            "best": "yes" if cell.best else "",
            "marks": "; ".join(mark.sentence for mark in cell.marks),
            "origin": cell.origin,
            **dict(cell.provenance.items()),
        }
        for table in tables
        for row in table.rows
        for cell in row.cells
        if cell.value is not None or cell.marks
    ]
    names = ["table", "group", "row", "column", "value", "best", "marks", "origin", *dict(Provenance().items())]
    return pd.DataFrame(lines, columns=names, dtype=str)
