"""Print and write what commands find: JSON, aligned columns, Markdown tables, files."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from flmm_plugin import files


def print_json(content: Any) -> None:
    """Print plain data as indented JSON on standard output."""
    print(json.dumps(content, indent=1, ensure_ascii=False))


def note(line: str) -> None:
    """Print a line on standard error, where it does not mix with results."""
    print(line, file=sys.stderr)


def write(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all, and say so on standard error.

    Raises:
        OutputFailed: The file cannot be written.
    """
    files.write(path, content)
    note(f"wrote {path}")


def aligned(rows: Iterable[Sequence[str]]) -> str:
    """Return rows of cells as text with columns of equal width, two spaces apart."""
    listed = list(rows)
    widths = [max(map(len, column)) for column in zip(*listed, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in listed
    )


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; pipes in cells are escaped."""
    lines = ["| " + " | ".join(headings) + " |", "|---" * len(headings) + "|"]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)
