"""The demo's own logic: which commands it runs, in which environment, and when it says that chat is not the same."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from flmm_plugin import tiny
from flmm_plugin.adapters.lmms_eval import demo
from flmm_plugin.adapters.lmms_eval.agreement import Agreement, Sample
from flmm_plugin.errors import DataNotFound
from flmm_plugin.reports.runs import Provenance, Run, TaskResult

# Stands in for the `lmms_eval` command: notes how it was called and writes a run as lmms-eval does.
HARNESS = """
import json, os, pathlib, sys
argv = sys.argv[1:]
model, out = argv[argv.index("--model") + 1], pathlib.Path(argv[argv.index("--output_path") + 1])
called = {"argv": argv, "cwd": os.getcwd(), "env": {k: os.environ.get(k) for k in ("FLMM_DATA", "HF_HUB_OFFLINE")}}
pathlib.Path(os.environ["CALLS"]).open("a").write(json.dumps(called) + "\\n")
out.mkdir(parents=True)
results = {"mme": {"alias": "mme", "mme_perception_score,none": 150.0}}
if model == "flmm_tiny":
    results["flmm_refcoco_val"] = {"cIoU,none": 51.25, "cIoU_stderr,none": "N/A"}
(out / "1_results.json").write_text(json.dumps(
    {"results": results, "config": {"model": model, "model_args": None}, "total_evaluation_time_seconds": "1"}))
last = os.environ.get("STOCK_SAYS", "No") if model == "llava_hf" else "No"
with (out / "1_samples_mme.jsonl").open("w") as file:
    for number, answer in enumerate(["Yes", last]):
        file.write(json.dumps({"doc_id": number, "input": f"q{number}", "target": "Yes", "resps": answer}) + "\\n")
sys.exit(int(os.environ.get("HARNESS_EXIT", "0")))
"""
FLMM = """
import json
print(json.dumps({"controls": {"right phrase": 0.8}}))
"""


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The demo with stand-ins for the installed commands and the page; returns the file that notes every call."""
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    for name, code in (("lmms_eval", HARNESS), ("flmm", FLMM)):
        script = scripts / name
        script.write_text(f"#!{sys.executable}\n{code}")
        script.chmod(0o755)
    monkeypatch.setattr(demo, "script", lambda name: str(scripts / name))
    monkeypatch.setattr(tiny, "tiny_path", lambda: tmp_path / "checkpoint")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls.jsonl"))
    page = types.ModuleType("flmm_plugin.adapters.lmms_eval.demo_page")
    written: dict[str, Any] = {}

    def write(out: Path, **content: Any) -> Path:
        written.update(content)
        (out / "page.json").write_text(json.dumps({name: content[name] for name in ("table", "masks", "controls")}))
        return out / "index.html"

    page.write = write  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, page.__name__, page)
    import flmm_plugin.adapters.lmms_eval as package

    monkeypatch.setattr(package, "demo_page", page, raising=False)
    return tmp_path / "calls.jsonl"


def calls(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_advertised_line_is_what_runs(stage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demo"
    assert demo.main(["--out", str(out), "--pictures", "2"]) == 0
    ours, stock = calls(stage)
    assert ours["argv"][:4] == ["--model", "flmm_tiny", "--tasks", "mme,refcoco_seg"]
    assert stock["argv"][:6] == [
        "--model", "llava_hf", "--model_args", f"pretrained={tmp_path / 'checkpoint'},device=cpu,device_map=cpu",
        "--tasks", "mme",
    ]  # fmt: skip
    for call in (ours, stock):
        assert "--log_samples" in call["argv"]
        assert call["cwd"] == str(out)
        assert call["env"] == {"FLMM_DATA": str(out / "data"), "HF_HUB_OFFLINE": "1"}
    said = capsys.readouterr()
    assert "$ lmms_eval --model flmm_tiny --tasks mme,refcoco_seg" in said.err
    assert "2 of 2" in said.out
    assert "51.25" in said.out
    page = json.loads((out / "page.json").read_text())
    assert page["controls"] == {"controls": {"right phrase": 0.8}}
    assert page["masks"] == [["split", "cIoU"], ["flmm_refcoco_val", "51.25"]]
    assert [row[0] for row in page["table"]] == ["task", "mme", "mme"]


def test_the_world_is_there_in_the_official_layouts(stage: Path, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    demo.main(["--out", str(out), "--pictures", "2"])
    assert (out / "data/coco/refcoco/instances.json").exists()
    assert len(list((out / "data/coco/train2014").glob("*.jpg"))) == 3 * 2
    assert (out / "lmms-lab-encoder/MME/data/test-00000-of-00001.parquet").exists()


def test_one_differing_answer_fails_the_demo(
    stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STOCK_SAYS", "no")
    assert demo.main(["--out", str(tmp_path / "demo"), "--pictures", "1"]) == 1
    said = capsys.readouterr()
    assert "1 of 2" in said.out
    assert "'No'" in said.out
    assert "'no'" in said.out
    assert "NOT what it is without the plugin" in said.err


def test_a_failing_harness_names_its_log(
    stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HARNESS_EXIT", "3")
    assert demo.main(["--out", str(tmp_path / "demo"), "--pictures", "1"]) == 1
    error = capsys.readouterr().err
    assert "exited with 3" in error
    assert str(tmp_path / "demo/logs/flmm.txt") in error


def test_earlier_results_are_not_read_again(stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "demo"
    stale = out / "results/flmm/9_results.json"
    stale.parent.mkdir(parents=True)
    stale.write_text("not a run")
    assert demo.main(["--out", str(out), "--pictures", "1"]) == 0
    assert not stale.exists()


def test_missing_weights_end_it_before_anything_is_written(
    stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent() -> Path:
        raise DataNotFound("no weights: flmm tiny train")

    monkeypatch.setattr(tiny, "tiny_path", absent)
    assert demo.main(["--out", str(tmp_path / "demo")]) == 1
    assert "DataNotFound: no weights: flmm tiny train" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


def run_of(model: str, scores: dict[str, dict[str, float]]) -> Run:
    unknown = Provenance(harness="", file="")
    tasks = {task: TaskResult(task, found, None, None, None, {}, unknown) for task, found in scores.items()}
    return Run(Path(), "lmms-eval", model, "", True, {}, tasks)


def test_one_table_of_both_runs_and_one_of_splits() -> None:
    sample = Sample("q", "Yes")
    scores = {
        "mme": {"p": 1234.56}, "refcoco_seg": {},
        "flmm_refcoco_val": {"cIoU": 60.0, "P@0.5": 70.0}, "flmm_refcoco_testA": {"cIoU": 61.25, "items": 4.0},
    }  # fmt: skip
    ours = run_of("flmm_tiny", scores)
    stock = run_of("llava_hf", {"mme": {"p": 1234.56}})
    table = demo.comparison(ours, stock, Agreement(1, 2, ((sample, sample),)))
    assert table[1:] == [["mme", "p", "1235", "1235"], ["mme", "answers that are the same string", "1 of 2", ""]]
    assert demo.mask_table(ours) == [
        ["split", "cIoU", "P@0.5", "items"],
        ["flmm_refcoco_val", "60", "70", ""],
        ["flmm_refcoco_testA", "61.25", "", "4"],
    ]
    assert demo.as_text([["a", "bb"], ["ccc", "d"]]) == "a    bb\nccc  d "
