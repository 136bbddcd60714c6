"""Output that commands share: columns, Markdown tables, files, and help texts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flmm_plugin.cli import output
from flmm_plugin.command_line import Parser


def test_columns_are_aligned_without_trailing_spaces() -> None:
    assert output.aligned([("name", "needs"), ("flmm_tiny", "")]) == "name       needs\nflmm_tiny"


def test_a_pipe_in_a_cell_is_escaped() -> None:
    assert output.markdown_table(["a", "b"], [["x|y", "1"]]) == "| a | b |\n|---|---|\n| x\\|y | 1 |"


def test_results_go_to_standard_output_and_notes_beside_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output.print_json({"é": 1})
    output.write(tmp_path / "out.md", "text")
    said = capsys.readouterr()
    assert json.loads(said.out) == {"é": 1}
    assert said.err == f"wrote {tmp_path / 'out.md'}\n"
    assert (tmp_path / "out.md").read_text() == "text"


def test_help_keeps_lines_of_examples_and_wraps_a_sentence() -> None:
    parser = Parser(prog="x", description="word " * 60, epilog="examples:\n  x a        first\n  x b        second")
    text = parser.format_help()
    assert "  x a        first\n  x b        second" in text
    assert max(map(len, text.splitlines())) <= 120
