"""Tables in Markdown come from CSV files, and a stale one is noticed."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from flmm_plugin.errors import DataNotFound, FlmmError
from flmm_plugin.reports.tables import fill, from_csv, main, markdown

CSV = "# made by a test\narm,cIoU,n,note\ntrained,0.750,600,\nrandom,0.1,600,a|b #2\n"
TABLE = "| arm | cIoU | n | note |\n|---|--:|--:|---|\n| trained | 0.750 | 600 |  |\n| random | 0.1 | 600 | a\\|b #2 |"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / "setup.cfg").touch()
    (tmp_path / "docs" / "results").mkdir(parents=True)
    (tmp_path / "docs" / "results" / "tiny.csv").write_text(CSV)
    (tmp_path / "README.md").write_text("# x\n\n<!-- table:tiny -->\nold\n<!-- /table:tiny -->\n\nafter\n")
    return tmp_path


def test_digits_are_those_of_the_file(repository: Path) -> None:
    assert from_csv(repository / "docs" / "results" / "tiny.csv") == TABLE


def test_fill_then_check_then_change(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    readme = repository / "README.md"
    assert main(["--check", str(readme)]) == 1
    assert "old" in readme.read_text()
    assert "out of date" in capsys.readouterr().err
    assert main([str(readme)]) == 0
    assert readme.read_text() == f"# x\n\n<!-- table:tiny -->\n{TABLE}\n<!-- /table:tiny -->\n\nafter\n"
    assert main(["--check", str(readme)]) == 0
    (repository / "docs" / "results" / "tiny.csv").write_text(CSV.replace("0.750", "0.751"))
    assert main(["--check", str(readme)]) == 1


def test_several_tables_and_a_path_as_name(repository: Path) -> None:
    (repository / "other.csv").write_text("a\n1\n")
    text = "<!-- table:tiny -->\n<!-- /table:tiny -->\nmid\n<!-- table:other.csv -->\nx\n<!-- /table:other.csv -->\n"
    filled = fill(text, repository)
    assert TABLE in filled
    assert "| a |\n|--:|\n| 1 |" in filled
    assert "\nmid\n" in filled
    assert "x\n" not in filled
    assert fill(filled, repository) == filled


def test_missing_csv_and_unclosed_marker(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataNotFound, match=r"absent\.csv"):
        fill("<!-- table:absent -->\n<!-- /table:absent -->", repository)
    with pytest.raises(FlmmError, match="closed"):
        fill("<!-- table:tiny -->\n", repository)
    (repository / "README.md").write_text("<!-- table:tiny -->\n")
    assert main([str(repository / "README.md")]) == 2
    assert "never closed" in capsys.readouterr().err


def test_data_frame_with_decimals_and_gaps() -> None:
    table = pd.DataFrame({"arm": ["a|b", "c"], "cIoU": [0.5, None], "n": [3, 4]})
    assert markdown(table, digits={"cIoU": 2}) == (
        "| arm | cIoU | n |\n|---|--:|--:|\n| a\\|b | 0.50 | 3 |\n| c |  | 4 |"
    )
