"""Fill tables of Markdown files from committed CSV files, and check them; no number is typed twice.

A place for a table in a Markdown file::

    <!-- table:tiny -->
    <!-- /table:tiny -->

is filled from ``docs/results/tiny.csv`` (or the path in ``<!-- table:docs/results/tiny.csv -->``), relative to the
repository's root, which is the nearest folder above the file that has a ``setup.cfg``.

    python -m flmm_plugin.reports.tables README.md            fill
    python -m flmm_plugin.reports.tables --check README.md    exit 1 if anything would change
"""

from __future__ import annotations

import argparse
import io
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from flmm_plugin import files
from flmm_plugin.errors import DataNotFound, FlmmError

RESULTS = Path("docs") / "results"
_OPEN = re.compile(r"^<!-- table:(?P<name>[^\s>]+) -->[ \t]*$", re.MULTILINE)


def markdown(table: pd.DataFrame, *, digits: Mapping[str, int] | None = None) -> str:
    """Return a data frame as a Markdown table: numbers to the right, empty cells for missing values, pipes escaped.

    Args:
        table: Data frame of numbers and text; its index is not shown.
        digits: Decimals of a column; others are shown as they are stored.

    >>> print(markdown(pd.DataFrame({"run": ["trained", "random"], "cIoU": [0.75, 0.1]}), digits={"cIoU": 2}))
    | run | cIoU |
    |---|--:|
    | trained | 0.75 |
    | random | 0.10 |
    """
    shown = table.astype(object).where(table.notna(), "")
    for name, decimals in (digits or {}).items():
        shown[name] = [value if value == "" else f"{value:.{decimals}f}" for value in shown[name]]
    return _markdown(shown, [pd.api.types.is_numeric_dtype(table[name]) for name in table.columns])


def _markdown(table: pd.DataFrame, right: Sequence[bool]) -> str:
    """Return a Markdown table of cells as they are; ``right`` tells which columns are aligned to the right."""
    lines = [list(map(str, table.columns)), *table.to_numpy().tolist()]
    rows = [
        "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines
    ]
    rows.insert(1, "|" + "|".join("--:" if number else "---" for number in right) + "|")
    return "\n".join(rows)


def read_csv(path: Path) -> pd.DataFrame:
    """Read a result file with every cell as it is written.

    Lines that begin with ``#`` are provenance, not data.

    Raises:
        DataNotFound: There is no such file, or it is damaged.
    """
    if not path.is_file():
        raise DataNotFound(f"no result file {path}; make it first (`make docs`), or correct the name in the marker")
    # Whole lines only: pandas' own `comment` would also cut a cell that has a # in it.
    lines = [line for line in files.read_text(path, DataNotFound).splitlines() if not line.startswith("#")]
    try:
        return pd.read_csv(io.StringIO("\n".join(lines)), dtype=str, keep_default_na=False)
    except ValueError as exc:
        raise DataNotFound(f"{path} is no table ({exc}); make it again (`make docs`)") from exc


def from_csv(path: Path) -> str:
    """Return a CSV file as a Markdown table, its digits untouched."""
    table = read_csv(path)
    numbers = table.replace("", None).apply(pd.to_numeric, errors="coerce")
    right = [(numbers[name].notna() | (table[name] == "")).all() and numbers[name].notna().any() for name in table]
    return _markdown(table, [bool(one) for one in right])


def fill(text: str, root: Path) -> str:
    """Return Markdown with every marked table replaced by its CSV's content.

    Raises:
        DataNotFound: A marker names a CSV file that is not there.
        FlmmError: A marker is never closed.
    """
    out, position = [], 0
    for match in _OPEN.finditer(text):
        if match.start() < position:
            continue
        name = match["name"]
        closing = f"<!-- /table:{name} -->"
        end = text.find(closing, match.end())
        if end < 0:
            raise FlmmError(f"table {name!r} is never closed: put {closing} on a line of its own after it")
        path = root / name if name.endswith(".csv") else root / RESULTS / f"{name}.csv"
        out += [text[position : match.end()], "\n", from_csv(path), "\n"]
        position = end
    return "".join([*out, text[position:]])


def main(argv: Sequence[str] | None = None) -> int:
    """Fill or check the tables of Markdown files; return 0 if all are up to date now."""
    parser = argparse.ArgumentParser(
        prog="python -m flmm_plugin.reports.tables", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("files", nargs="+", type=Path, help="Markdown files")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a table is out of date")
    args = parser.parse_args(argv)
    stale = []
    for path in args.files:
        try:
            before = files.read_text(path, DataNotFound)
            after = fill(before, _root_of(path))
        except (FlmmError, OSError) as exc:
            print(f"{path}: {exc}", file=sys.stderr)
            return 2
        if before == after:
            continue
        stale.append(path)
        if not args.check:
            files.write(path, after)
            print(f"{path}: tables filled")
    if args.check and stale:
        names = " ".join(str(path) for path in stale)
        print(f"out of date: {names}; run: python -m flmm_plugin.reports.tables {names}", file=sys.stderr)
        return 1
    return 0


def _root_of(path: Path) -> Path:
    for folder in path.resolve().parents:
        if (folder / "setup.cfg").is_file():
            return folder
    return path.resolve().parent


if __name__ == "__main__":
    sys.exit(main())
