"""The measurement of boxes runs, and its rules do what they are called."""

from __future__ import annotations

import csv
from pathlib import Path
from types import ModuleType

import numpy as np

from flmm_plugin.records import SPECK, mask_box, thing_box


def test_the_rule_that_was_chosen_is_the_one_that_is_measured(script: ModuleType) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        mask = rng.random((12, 16)) > 0.8
        assert thing_box(mask) == mask_box(script.larger_parts(mask, SPECK))


def test_a_few_scenes_make_a_table(script: ModuleType, tmp_path: Path) -> None:
    assert script.main(["--scenes", "1", "--out", str(tmp_path / "boxes.csv")]) == 0
    lines = (tmp_path / "boxes.csv").read_text().splitlines()
    rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    assert {row["masks"] for row in rows} == {"predicted", "coarse", "true"}
    assert {row["alone"] for row in rows if row["rule"] == "all pixels" and row["masks"] == "true"} == {"1.000"}
