"""``flmm reproduce``: the right commands, nothing twice, one failing task costs one column."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import pytest

from flmm_plugin.adapters.answering.defaults import DEFAULTS
from flmm_plugin.adapters.preservation import stock
from flmm_plugin.cli import main, reproduce
from flmm_plugin.reports.table_layouts import LAYOUTS

#: Stands in for lmms_eval: appends its arguments to a file, and writes a result file unless a task may not succeed.
FAKE = """
import json, pathlib, sys
words = dict(zip(sys.argv[1::1], sys.argv[2::1]))
folder = pathlib.Path(words["--output_path"])
calls = folder.parents[1] / "calls.txt"
with calls.open("a") as out:
    out.write(words["--model"] + " " + words["--tasks"] + "\\n")
tasks = words["--tasks"].split(",")
broken = json.loads((folder.parents[1] / "broken.json").read_text())
if set(tasks) & set(broken):
    sys.exit(0)  # as lmms-eval does when it fails
folder.mkdir(parents=True, exist_ok=True)
content = {
    "results": {task: {"cIoU,none": 50.0, "mme_perception_score,none": 1000.0} for task in tasks},
    "config": {"model": words["--model"], "model_args": words.get("--model_args", "")},
}
(folder / f"{len(list(folder.iterdir()))}_results.json").write_text(json.dumps(content))
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A work folder whose lmms_eval is the stand-in; ``broken.json`` lists tasks that give no result."""
    program = tmp_path / "lmms_eval"
    program.write_text(f"#!{sys.executable}\n{FAKE}")
    program.chmod(0o755)
    monkeypatch.setattr(reproduce, "script", lambda: str(program))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    out = tmp_path / "out"
    out.mkdir()
    (out / "broken.json").write_text("[]")
    return out


def calls(out: Path) -> list[str]:
    path = out / "calls.txt"
    return path.read_text().splitlines() if path.exists() else []


def go(out: Path, *words: str) -> int:
    tasks = "mme,flmm_refcoco_val,flmm_refcocog_val"
    return main(["reproduce", "table1", "--backbones", "flmm_tiny", "--tasks", tasks, "--out", str(out), *words])


def test_everything_in_one_process_then_nothing_twice(fake: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert go(fake) == 0
    assert calls(fake) == ["flmm_tiny mme,flmm_refcoco_val,flmm_refcocog_val"]
    for name in ("table1.md", "table1.csv", "table1.tex", "report.html"):
        assert (fake / name).is_file()
    assert "| F-LMM (embedded model) | 1000" in (fake / "table1.md").read_text()
    assert go(fake) == 0
    assert len(calls(fake)) == 1
    assert "all results are there" in capsys.readouterr().err


def test_a_task_that_fails_costs_its_column_alone_and_is_tried_again_later(
    fake: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (fake / "broken.json").write_text(json.dumps(["flmm_refcocog_val"]))
    assert go(fake) == 1
    assert calls(fake)[1:] == ["flmm_tiny mme", "flmm_tiny flmm_refcoco_val", "flmm_tiny flmm_refcocog_val"]
    assert "no result: flmm_tiny: flmm_refcocog_val" in capsys.readouterr().err
    assert "50.0" in (fake / "table1.md").read_text()
    (fake / "broken.json").write_text("[]")
    assert go(fake) == 0
    assert calls(fake)[4:] == ["flmm_tiny flmm_refcocog_val"]


def test_a_part_is_not_the_whole(fake: Path) -> None:
    assert go(fake, "--limit", "4") == 0
    assert go(fake) == 0
    assert len(calls(fake)) == 2


def test_stock_arm_gets_the_chat_tasks(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Which adapter it is, is the business of `flmm preserve`, and asking transformers costs seconds.
    monkeypatch.setattr(stock, "adapter_for", lambda arguments: ("llava_hf", ""))
    monkeypatch.setattr(reproduce, "_cuda", lambda: False)
    assert go(fake, "--stock", "--dry-run") == 0
    args = argparse.Namespace(backbones=["flmm_tiny"], stock=True, limit=None)
    jobs = reproduce.planned(args, ("mme", "flmm_refcoco_val"), LAYOUTS["1"].mask_tasks, fake)
    assert [(job.model, job.tasks) for job in jobs] == [
        ("flmm_tiny", ("mme", "flmm_refcoco_val")),
        ("llava_hf", ("mme",)),
    ]
    assert "pretrained=" in jobs[1].arguments
    assert "device_map=cpu" in jobs[1].arguments
    monkeypatch.setattr(stock, "adapter_for", lambda arguments: (stock.PLAIN, "none works"))
    assert len(reproduce.planned(args, ("mme",), LAYOUTS["1"].mask_tasks, fake)) == 1


def test_a_stock_adapter_gets_a_process_per_task_and_all_runs_share_their_answers(fake: Path) -> None:
    args = argparse.Namespace(batch_size=1, limit=None, device=None, data=None, no_fetch=False)
    job = reproduce.Job("llava_hf", "pretrained=x", ("mme", "pope"), fake / "runs" / "stock")
    assert reproduce.complete(job, args, fake) == ()
    assert calls(fake) == ["llava_hf mme", "llava_hf pope"]
    assert "LMMS_CACHE_RUN_ID" not in reproduce.environment(args).keys() - os.environ.keys()


def test_dry_run_prints_commands_that_a_shell_takes(fake: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = "flmm_llava:pretrained=a/b c,heads=x.safetensors"
    assert main(["reproduce", "A2", "--backbones", spec, "--dry-run", "--out", str(fake)]) == 0
    line = capsys.readouterr().out
    assert line.startswith("lmms_eval --model flmm_llava --tasks flmm_refcoco_val,flmm_refcoco_testA")
    assert "--model_args 'pretrained=a/b c,heads=x.safetensors'" in line
    assert "--use_cache" in line
    assert calls(fake) == []


def test_names_of_the_paper_mean_model_checkpoint_and_released_heads() -> None:
    every = reproduce.specs_of(["all"])
    assert len(every) == 10
    own = {f"{name}:pretrained={model.pretrained}" for name, model in DEFAULTS.items()}
    assert len(own & set(every)) == 5
    assert reproduce.specs_of(["DeepSeekVL-1.3B,llava-1.6-7b", "hpt-air", "flmm_llava:heads=a,sam=none"]) == [
        "flmm_deepseekvl:pretrained=deepseek-community/deepseek-vl-1.3b-chat",
        "flmm_llava_next:pretrained=llava-hf/llava-v1.6-vicuna-7b-hf",
        "flmm_hpt:pretrained=HyperGAI/HPT",
        "flmm_llava:heads=a,sam=none",
    ]


def test_what_all_backbones_need_is_listed_once_before_anything_runs(
    fake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FLMM_CACHE", str(tmp_path / "cache"))
    names = "deepseek-vl-1.3b,llava-1.5-7b"
    words = ["reproduce", "table1", "--backbones", names, "--tasks", "flmm_refcoco_val", "--out", str(fake)]
    assert main([*words, "--no-fetch"]) == 2
    said = capsys.readouterr().err
    for name in ("refcoco", "DeepSeekVL-1.3B", "LLaVA-1.5-7B", "deepseek-vl-1.3b-chat", "llava-1.5-7b-hf"):
        assert name in said
    assert said.count("sam_vit_l_0b3195.pth)") == 1
    assert calls(fake) == []


def test_judged_tasks_need_a_key(
    fake: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["reproduce", "table1", "--backbones", "flmm_tiny", "--dry-run", "--out", str(fake)]
    assert main(words) == 0
    captured = capsys.readouterr()
    assert "mmvet" not in captured.out
    assert "left out, for want of a judge (set OPENAI_API_KEY): mmvet, llava_in_the_wild" in captured.err
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    main(words)
    assert "mmvet,llava_in_the_wild" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["table9", "--backbones", "flmm_tiny"], "no table"),
        (["table1", "--backbones", "flmm_lava"], "did you mean 'flmm_llava'?"),
        (
            ["table1", "--backbones", "flmm_tiny", "--tasks", "gqa"],
            "'gqa' fills no column of this table; its tasks: mme",
        ),
    ],
)
def test_errors_name_the_fix(fake: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", *words, "--out", str(fake)]) == 2
    assert said in capsys.readouterr().err


def test_a_damaged_result_file_is_named(fake: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert go(fake) == 0
    (damaged,) = (fake / "runs" / "flmm_tiny").glob("*_results.json")
    damaged.write_text(damaged.read_text()[:40])
    assert go(fake) == 2
    assert damaged.name in capsys.readouterr().err


def test_every_task_that_a_table_needs_exists() -> None:
    """By name, among this plugin's tasks and lmms-eval's."""
    from importlib import util

    from flmm_plugin.cli.listing import tasks

    ours = {task["name"] for task in tasks()}
    home = Path(str(util.find_spec("lmms_eval").origin)).parent / "tasks"
    needed = {task for layout in LAYOUTS.values() for task in layout.tasks}
    folders = ("mme", "mmbench", "mmvet", "llava-in-the-wild", "pope", "gqa", "vqav2", "ai2d")
    files = (path for folder in folders for path in (home / folder).glob("*.yaml"))
    stock = "\n".join(path.read_text(encoding="utf-8") for path in files)
    absent = [
        name for name in needed if name not in ours and f'"{name}"' not in stock and f"task: {name}\n" not in stock
    ]
    assert absent == []


def test_a_job_may_have_options_of_its_own(tmp_path: Path) -> None:
    args = argparse.Namespace(batch_size=1, limit=None, device=None)
    job = reproduce.Job("llava_hf", "pretrained=x", ("mme",), tmp_path / "stock", ("--force_simple",))
    words = reproduce.command_of(job, job.tasks, args, tmp_path)
    assert words[words.index("--force_simple") + 1 :][:2] == ["--model_args", "pretrained=x"]


def go_with(out: Path, heads: Path, *words: str) -> int:
    spec = f"flmm_tiny:heads={heads}"
    return main(["reproduce", "table1", "--backbones", spec, "--tasks", "flmm_refcoco_val", "--out", str(out), *words])


def test_results_of_heads_that_were_replaced_are_not_taken_for_new_ones(
    fake: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    heads = tmp_path / "heads.safetensors"
    heads.write_bytes(b"one")
    times = heads.stat()
    assert go_with(fake, heads) == 0 == go_with(fake, heads)
    assert len(calls(fake)) == 1
    heads.write_bytes(b"two")
    os.utime(heads, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert go_with(fake, heads) == 0
    assert len(calls(fake)) == 2
    assert "changed: heads;" in capsys.readouterr().err
    assert len(list(fake.glob("runs/*.before-*/*_results.json"))) == 1


@pytest.mark.parametrize("changed", ["annotation", "picture"])
def test_results_of_other_data_are_not_taken_for_new_ones(fake: Path, tmp_path: Path, changed: str) -> None:
    root = tmp_path / "data"
    annotation, picture = root / "coco/refcoco/instances.json", root / "coco/train2014/1.jpg"
    for path in (annotation, picture):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    assert go(fake, "--data", str(root)) == 0
    (annotation if changed == "annotation" else picture).write_text("[1]")
    assert go(fake, "--data", str(root)) == 0
    assert len(calls(fake)) == 2


def test_results_that_do_not_say_what_they_are_made_of_are_set_aside(fake: Path) -> None:
    assert go(fake) == 0
    (fake / "runs" / "flmm_tiny" / "made_of.json").unlink()
    assert go(fake) == 0
    assert len(calls(fake)) == 2


def test_a_task_of_which_every_document_failed_has_no_result(fake: Path) -> None:
    assert go(fake) == 0
    (results,) = (fake / "runs" / "flmm_tiny").glob("*_results.json")
    content = json.loads(results.read_text())
    content["n-samples"] = {"mme": {"effective": 4}, "flmm_refcoco_val": {"effective": 4}}
    content["flmm"] = {"failed": {"mme": 4, "flmm_refcoco_val": 3}}
    results.write_text(json.dumps(content))
    assert go(fake) == 0
    assert calls(fake)[1:] == ["flmm_tiny mme"]


def test_a_process_that_fails_after_its_results_is_a_failure(
    fake: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = Path(reproduce.script())
    program.write_text(program.read_text() + "sys.exit(3)\n")
    assert go(fake) == 1
    assert "ended with 3" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["out", "runs", "table1.md", "disk", "data"])
def test_places_are_checked_before_anything_is_run(
    fake: Path, place: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = []
    if place == "table1.md":
        (fake / place).mkdir()
    elif place == "disk":
        monkeypatch.setattr(reproduce.shutil, "disk_usage", lambda path: argparse.Namespace(free=1 << 20))
    elif place == "data":
        words = ["--data", str(fake / "nowhere")]
    else:
        fake = fake / "file" if place == "out" else fake
        (fake if place == "out" else fake / "runs").write_text("a file")
    assert go(fake, *words) == 2
    said = capsys.readouterr().err
    assert ("DataNotFound" if place == "data" else "OutputFailed") in said
    assert place == "out" or calls(fake) == []


def test_what_is_said_to_who_stops_it_names_the_folder() -> None:
    args = argparse.Namespace(table="table1", out=None)
    assert "reproduce/table1" in reproduce.stopped(args)
