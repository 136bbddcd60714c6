"""The measurement of layers runs, and the page shows the committed numbers, which keep their bars."""

from __future__ import annotations

import csv
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("transformers.models.qwen3_5")
pytest.importorskip("transformers.models.kimi_linear")


def read(content: str) -> list[dict[str, str]]:
    return list(csv.DictReader(line for line in content.splitlines() if not line.startswith("#")))


def test_every_kind_is_measured(script: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "layers.csv"
    small = ["--tokens", "150", "--rows", "10", "--heads", "2", "--size", "16", "--rounds", "1"]
    assert script.main([*small, "--out", str(out)]) == 0
    rows = read(out.read_text())
    assert {row["layer"] for row in rows} == set(script.KINDS)
    assert all(float(row["error"]) < 1e-6 < float(row["scale"]) for row in rows)


def test_the_page_shows_the_committed_numbers_and_they_keep_the_bars(script: ModuleType) -> None:
    content = script.CSV.read_text()
    assert script.table(content) in script.PAGE.read_text()
    for row in read(content):
        assert (row["tokens"], row["rows"]) == ("3000", "40")
        assert float(row["error"]) <= 1e-6
        assert float(row["time"]) <= 2
