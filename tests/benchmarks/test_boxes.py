"""The measurement of boxes runs, and its rules do what they are called."""

from __future__ import annotations

import csv
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from flmm_plugin.records import SPECK, mask_box, thing_box

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "boxes.py"


@pytest.fixture
def boxes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_boxes", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_the_rule_that_was_chosen_is_the_one_that_is_measured(boxes: ModuleType) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        mask = rng.random((12, 16)) > 0.8
        assert thing_box(mask) == mask_box(boxes.larger_parts(mask, SPECK))


def test_a_few_scenes_make_a_table(boxes: ModuleType, tmp_path: Path) -> None:
    assert boxes.main(["--scenes", "1", "--out", str(tmp_path / "boxes.csv")]) == 0
    lines = (tmp_path / "boxes.csv").read_text().splitlines()
    rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    assert {row["masks"] for row in rows} == {"predicted", "coarse", "true"}
    assert {row["alone"] for row in rows if row["rule"] == "all pixels" and row["masks"] == "true"} == {"1.000"}
