"""The benchmark runs, checks what it times, and writes one row per arm with its provenance."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import ModuleType


def test_quick_run_writes_rows_and_holds_its_promises(script: ModuleType, tmp_path: Path) -> None:
    assert script.main(["--quick", "--phrases", "2", "--kv-heads", "2", "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "capture.json").read_text())
    assert record["checks"]["logits_bit_identical"] is True
    assert record["checks"]["rows_max_difference"] < 1e-5
    assert record["checks"]["hidden_max_difference"] < 1e-4
    lines = (tmp_path / "capture.csv").read_text().splitlines()
    told = [line for line in lines if line.startswith("# ")]
    rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    assert [row["arm"] for row in rows] == ["plain", "capture", "eager", "floor", "grounded"]
    assert rows[0]["times_plain"] == "1.0"
    assert "# kv_heads: 2" in told
    assert any(line.startswith("# torch: ") for line in told)


def test_a_ratio_is_the_median_within_rounds(script: ModuleType) -> None:
    # A slow second round hits both arms: the ratio of medians would be 1.5, each round's ratio is 1.5 or 2.
    assert script._ratio([2.0, 30.0, 2.0], [1.0, 20.0, 1.0]) == 2.0
