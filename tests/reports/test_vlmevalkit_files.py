"""VLMEvalKit's folders, laid out as both kits lay them out."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
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
    score(model, model.name, "Other", "_score.json", json.dumps({"cIoU": 0.753, "errors": 0, "note": "x"}))
    score(model, model.name, "Other", ".tsv", 'index\tprediction\n0\t"a\nb"\n1\tc\n')
    (run,) = read_results([tmp_path])
    assert run.flmm
    assert run.tasks["Other"].n == 2
    assert run.tasks["Other"].metrics == {"cIoU": 0.753, "errors": 0}


def own_benchmark(model: Path, record: object = None) -> None:
    """RefCOCO's two splits as this package's data set leaves them."""
    numbers = {"val.cIoU": 75.25, "val.items": 9, "val.complete": 0, "testA.cIoU": 79.5}
    score(model, model.name, "RefCOCO_SEG", "_score.json", json.dumps(numbers))
    made_of = {
        label: {"task": f"flmm_refcoco_{label}", "annotations": "sha256:0123456789abcdef0123"}
        for label in ("val", "testA")
    }
    score(model, model.name, "RefCOCO_SEG", "_flmm_tasks.json", json.dumps(made_of))
    if record is not None:
        score(model, model.name, "RefCOCO_SEG", "_flmm.json", json.dumps(record))


OURS = {
    "versions": {"vlmeval": "0.0.20", "torch": "2.15.0"}, "kernel": "sdpa", "dtype": "float32", "batch_size": 1,
    "device": "cpu", "processes": 2, "heads": {"sha256": "ab" * 32},
    "options": {"name": "flmm_llava", "heads": "h.safetensors", "pretrained": "a/llava-1.5-7b-hf"},
}  # fmt: skip


def test_a_benchmark_of_this_package_is_read_as_its_tasks_with_their_record(tmp_path: Path) -> None:
    own_benchmark(tmp_path / "mine", OURS)
    (run,) = read_results([tmp_path])
    assert (run.flmm, run.model, run.backbone) == (True, "flmm_llava", "llava-1.5-7b")
    task = run.tasks["flmm_refcoco_val"]
    assert (task.metrics["cIoU"], task.n, task.complete) == (75.25, 9, False)
    assert run.tasks["flmm_refcoco_testA"].metrics == {"cIoU": 79.5}
    said = task.provenance
    assert (said.harness, said.kernel, said.processes) == ("VLMEvalKit (ms-vlmeval 0.0.20)", "sdpa", "2")
    assert said.n == "9 (partial)"
    assert said.not_recorded() == ()
    row = next(row for row in compare(LAYOUTS["A2"], [run]).rows if row.kind == "flmm")
    assert [cell.text for cell in row.cells if cell.value is not None] == ["75.2", "79.5"]


def test_both_harnesses_stand_in_one_table_with_their_difference(
    tmp_path: Path, write_run: Callable[..., Path]
) -> None:
    own_benchmark(tmp_path / "kit" / "mine", OURS)
    metadata = {"flmm_refcoco_val": [{"annotations": "sha256:0123456789abcdef0123"}]}
    arguments = "pretrained=a/llava-1.5-7b-hf,heads=h.safetensors"
    write_run(
        "theirs", "flmm_llava", {"flmm_refcoco_val": {"cIoU": 75.0, "items": 9, "complete": 0}},
        arguments=arguments, metadata=metadata, record={"heads": {"sha256": "ab" * 32}},
    )  # fmt: skip
    table = compare(LAYOUTS["A2"], read_results([tmp_path / "kit", tmp_path / "theirs"]), published=False)
    labels = [row.label for row in table.rows if row.kind == "flmm"]
    assert sorted(labels) == ["F-LMM (LLaVA-1.5-7B) in VLMEvalKit", "F-LMM (LLaVA-1.5-7B) in lmms-eval"]
    (difference,) = [row for row in table.rows if row.kind == "difference"]
    assert difference.label == "F-LMM (LLaVA-1.5-7B) in VLMEvalKit minus F-LMM (LLaVA-1.5-7B) in lmms-eval"
    assert [cell.text for cell in difference.cells if cell.value is not None] == ["+0.2"]


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    model = tmp_path / "flmm_llava"
    own_benchmark(model)
    score(model, model.name, "RefCOCO_SEG", "_flmm.json", "{")
    with pytest.raises(DataNotFound, match=r"RefCOCO_SEG_flmm\.json"):
        read_results([tmp_path])


def test_foreign_and_damaged_files(tmp_path: Path) -> None:
    score(tmp_path / "a", "another", "MME", "_score.csv", "x\n1\n")
    with pytest.raises(DataNotFound, match="holds"):
        read_results([tmp_path])
    score(tmp_path / "m", "m", "MME", "_score.json", '{"perception": 1')
    with pytest.raises(DataNotFound, match="evaluate again"):
        read_results([tmp_path])
