"""VLMEvalKit's folders, laid out as both kits lay them out."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from flmm_plugin.errors import DataNotFound
from flmm_plugin.reports.comparison import PERHAPS_NOT_WHOLE, compare
from flmm_plugin.reports.result_files import read_results
from flmm_plugin.reports.table_layouts import LAYOUTS


def score(folder: Path, model: str, data: str, ending: str, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{model}_{data}{ending}"
    path.write_text(text, encoding="utf-8")
    return path


def test_dated_runs_with_links_are_read_once_and_the_newest_counts(tmp_path: Path) -> None:
    model = tmp_path / "outputs" / "llava_v1.5_7b"
    old = score(
        model / "T20260101-000000", model.name, "MME", "_score.csv", '"perception","reasoning"\n"1400.0","300.0"\n'
    )
    os.utime(old, (1, 1))
    new = score(
        model / "T20260202-000000", model.name, "MME", "_score.csv", '"perception","reasoning"\n"1506.0","348.0"\n'
    )
    (model / new.name).symlink_to(new)
    score(model / "T20260202-000000", model.name, "MMBench_DEV_EN", "_acc.csv", "split,Overall,AR\nNone,0.643,0.7\n")
    score(model / "T20260202-000000", model.name, "POPE", "_score.csv",
          "split,Overall,acc\nadversarial,80,81.0\nOverall,85.0,85.9\n")  # fmt: skip
    (model / "T20260202-000000" / "status.json").write_text("{}")
    runs = read_results([tmp_path])
    assert [(run.harness, run.model, run.backbone) for run in runs] == [("VLMEvalKit", model.name, "llava-1.5-7b")]
    table = compare(LAYOUTS["A1"], runs)
    row = next(row for row in table.rows if row.kind == "stock")
    assert {c.column.name: c.text for c in row.cells if c.value is not None} == {
        "MME perception": "1506", "MME cognition": "348", "MMBench": "64.3", "POPE": "85.9",
    }  # fmt: skip
    said = {mark.sentence for c in row.cells for mark in c.marks}
    assert any("VLMEvalKit" in sentence for sentence in said)
    assert PERHAPS_NOT_WHOLE in said  # the kit can be told a limit, and does not write it down
    assert row.cells[0].provenance.not_recorded() == ("kernel", "dtype", "batch_size", "device")


def test_flat_folder_json_scores_and_number_of_predictions(tmp_path: Path) -> None:
    model = tmp_path / "flmm_llava_1.5_7b"
    score(model, model.name, "RefCOCO_SEG_val", "_score.json", json.dumps({"cIoU": 0.753, "errors": 0, "note": "x"}))
    score(model, model.name, "RefCOCO_SEG_val", ".tsv", 'index\tprediction\n0\t"a\nb"\n1\tc\n')
    (run,) = read_results([tmp_path])
    assert run.flmm
    assert run.tasks["RefCOCO_SEG_val"].n == 2
    table = compare(LAYOUTS["A2"], [run])
    cell = next(row for row in table.rows if row.kind == "flmm").cells[0]
    assert cell.text == "75.3"


def test_foreign_and_damaged_files(tmp_path: Path) -> None:
    score(tmp_path / "a", "another", "MME", "_score.csv", "x\n1\n")
    with pytest.raises(DataNotFound, match="holds no result file"):
        read_results([tmp_path])
    score(tmp_path / "m", "m", "MME", "_score.json", '{"perception": 1')
    with pytest.raises(DataNotFound, match="evaluate again"):
        read_results([tmp_path])
