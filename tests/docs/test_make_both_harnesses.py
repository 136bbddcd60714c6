"""The page of both harnesses: the same tasks in each, and the difference of their numbers."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from flmm_plugin.adapters.vlmevalkit.benchmarks import BENCHMARKS

ROOT = Path(__file__).resolve().parents[2]


def leave_results(work: Path) -> None:
    """What both harnesses leave of one task; the kit's cIoU is higher by 1.5."""
    kit, lmms = work / "vlmevalkit" / "flmm_tiny", work / "lmms_eval"
    kit.mkdir(parents=True)
    lmms.mkdir()
    stem = "flmm_tiny_RefCOCO_SEG_TINY"
    (kit / f"{stem}_score.json").write_text(json.dumps({"cIoU": 81.5, "items": 5, "complete": 0}))
    (kit / f"{stem}_flmm_tasks.json").write_text(json.dumps({"": {"task": "flmm_tiny_refcoco", "annotations": ""}}))
    content = {
        "results": {"flmm_tiny_refcoco": {"cIoU,none": 80.0, "items,none": 5, "complete,none": 0}},
        "config": {"model": "flmm_tiny", "model_args": ""}, "n-samples": {"flmm_tiny_refcoco": {"effective": 2}},
    }  # fmt: skip
    (lmms / "20260101_000000_results.json").write_text(json.dumps(content))


def test_both_harnesses_are_asked_for_the_same_tasks(script: ModuleType, tmp_path: Path) -> None:
    made_of = {task for name in script.DATA if name in BENCHMARKS for task in BENCHMARKS[name].values()}
    assert made_of < set(script.TASKS)
    assert [Path(command[0]).name for command in script.commands(tmp_path)] == ["lmms_eval", "flmm-vlmeval"]
    leave_results(tmp_path)
    (left,) = script.commands(tmp_path)
    assert left[0].endswith("flmm-vlmeval"), "lmms-eval's result is there; the kit goes on by itself"


def test_the_page_shows_both_rows_and_their_difference(script: ModuleType, tmp_path: Path) -> None:
    leave_results(tmp_path)
    lines = script.written(tmp_path).splitlines()
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in lines if line.startswith("| F-LMM")}
    name = "F-LMM (embedded model) in "
    assert "81.5" in rows[f"{name}VLMEvalKit, synthetic world"]
    assert "80.0" in rows[f"{name}lmms-eval, synthetic world"]
    assert "+1.5" in rows[f"{name}VLMEvalKit minus {name}lmms-eval, synthetic world"]


def test_without_the_kit_it_says_where_its_environment_is_described(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert script.main(["--work", str(tmp_path)]) == 1
    assert "docs/vlmevalkit.md" in capsys.readouterr().err
