"""The table of retrained heads comes from measurements, and tells no machine's paths."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def measured(script: ModuleType, number: float, heads: str) -> dict[str, Any]:
    row = {"method": script.MEASURED, "n": 9, **dict.fromkeys(script.HEADINGS, number)}
    control = {"method": "whole image", "n": 9, **dict.fromkeys(script.HEADINGS, 0.0)}
    return {
        "seed": 1, "scenes": 2, "grounding": [control, row], "keywords": {"f1": number},
        "provenance": {"heads_sha256": heads},
    }  # fmt: skip


def test_both_heads_stand_in_the_table_with_what_made_them(script: ModuleType) -> None:
    record = {
        "result": {"steps": 3, "seconds": 1.6}, "data": {"samples": 4, "phrases": 5}, "frozen": ["f" * 64],
    }  # fmt: skip
    text = script.table(measured(script, 0.51234, "aa"), measured(script, 0.5, "bb"), record)
    lines = text.splitlines()
    assert lines[0] == "# flmm train flmm_tiny: 3 steps, 2 s"
    assert "# heads_sha256: aa" in lines
    assert lines[-2] == "flmm train flmm_tiny,0.512,0.512,0.512,0.512,0.512,0.512,0.512,9"
    assert lines[-1] == "shipped,0.500,0.500,0.500,0.500,0.500,0.500,0.500,9"
    assert "heads_sha256 bb" in text


def test_paths_are_left_out(script: ModuleType) -> None:
    record = {"a": ["/some/where/flmm_tiny", 1], "b": {"c": "relative/path", "d": None}}
    assert script.scrubbed(record) == {"a": ["flmm_tiny", 1], "b": {"c": "relative/path", "d": None}}


def test_only_what_both_measured_stands_in_the_panel_s_table(script: ModuleType) -> None:
    rows = [
        "task,metric,documents,run",
        "flmm_tiny_png,AR,25,67.44",
        "flmm_tiny_png,AR_stuff,25,0.12",
        "other,AR,2,1.00",
    ]
    controls = "\n".join(["# seed: 3", *rows])
    found = {"results": {"flmm_tiny_png": {"AR,none": 88.123, "AR_stuff,none": "N/A", "alias": "flmm_tiny_png"}}}
    lines = script.panel_table(found, controls).splitlines()
    assert "# panel: seed: 3" in lines
    assert lines[-2:] == [
        "task,metric,documents,flmm train flmm_tiny,shipped",
        "flmm_tiny_png,AR,25,88.12,67.44",
    ]
