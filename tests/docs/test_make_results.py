"""README's numbers come from committed CSV files, and the CSV from what was measured."""

from __future__ import annotations

import csv
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from flmm_plugin.reports import tables

ROOT = Path(__file__).resolve().parents[2]
MEASURED = {
    "seed": 5,
    "scenes": 2,
    "provenance": {"torch": "2.15.0", "heads_sha256": "abc"},
    "rows": [{"method": "ours", "a": 0.12345, "n": 7}, {"method": "whole image", "a": None, "n": 7}],
}


def test_csv_holds_rows_and_where_they_come_from(script: ModuleType, tmp_path: Path) -> None:
    text = script.as_csv(MEASURED["rows"], {"method": "method", "a": "A, cIoU", "n": "phrases"}, MEASURED)
    assert text.splitlines() == [
        "# flmm tiny evaluate --seed 5 --scenes 2 --json",
        "# torch: 2.15.0",
        "# heads_sha256: abc",
        'method,"A, cIoU",phrases',
        "ours,0.123,7",
        "whole image,,7",
    ]
    (tmp_path / "t.csv").write_text(text)
    assert "| ours | 0.123 | 7 |" in tables.from_csv(tmp_path / "t.csv")


def measured(seed: int, exact: float, heads: str = "aa") -> dict[str, Any]:
    row = {
        "method": "frozen LMM + heads",
        **{f"{place}_{which}_ciou": 0.7 for place in ("caption", "question") for which in ("decoder", "refined")},
    }
    return {
        "seed": seed,
        "scenes": 3,
        "provenance": {"heads_sha256": heads},
        "chat": {"count": {"exact": exact, "chance": 0.2, "n": 3}},
        "captions": {"precision": 1.0, "recall": 0.5, "n": 2},
        "grounding": [row, {"method": "whole image"}],
    }


def test_bars_stand_beside_both_measurements(script: ModuleType) -> None:
    text = script.bars(measured(1, 0.25), measured(2, 0.75))
    assert "# flmm tiny evaluate --seed 2 --scenes 3 --json" in text
    rows = list(csv.DictReader(line for line in text.splitlines() if not line.startswith("#")))
    assert rows[0] == {"what": "chat: count", "bar": "0.9", "seed 1": "0.250", "seed 2": "0.750"}
    assert [row["bar"] for row in rows[-4:]] == ["0.65", "0.75", "0.65", "0.75"]


@pytest.mark.parametrize(("seed", "heads", "says"), [(1, "aa", "seed 1"), (2, "bb", "different heads")])
def test_bars_compare_other_scenes_and_the_same_heads(script: ModuleType, seed: int, heads: str, says: str) -> None:
    with pytest.raises(SystemExit, match=says):
        script.bars(measured(1, 0.25), measured(seed, 0.75, heads))


def test_the_picture_replaces_what_was_between_the_markers(script: ModuleType) -> None:
    readme = f"top\n{script.PICTURE_BEGIN}\nold\n{script.PICTURE_END}\nbottom\n"
    once = script.with_picture(readme)
    assert "docs/images/grounded.png" in once
    assert "old" not in once
    assert once.startswith("top\n")
    assert once.endswith("\nbottom\n")
    assert script.with_picture(once) == once
    with pytest.raises(SystemExit, match="picture"):
        script.with_picture("no markers")


def test_readme_has_the_places_that_are_filled() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for mark in ("<!-- picture:begin -->", "<!-- picture:end -->", "<!-- table:tiny -->", "<!-- /table:tiny -->"):
        assert readme.count(mark) == 1


def test_readme_shows_exactly_the_committed_numbers() -> None:
    """Before the first measurement the places are empty; afterwards they equal the CSV files."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    if (ROOT / "docs" / "results" / "tiny.csv").exists():
        assert tables.fill(readme, ROOT) == readme
    else:
        between = readme.split("<!-- table:tiny -->")[1].split("<!-- /table:tiny -->")[0]
        assert between.strip() == "", "a table without a result file"


def test_paths_are_left_out(script: ModuleType) -> None:
    record = {"a": ["/some/where/flmm_tiny", 1], "b": {"c": "relative/path", "d": None}}
    assert script.scrubbed(record) == {"a": ["flmm_tiny", 1], "b": {"c": "relative/path", "d": None}}
