"""``flmm-vlmeval`` without the kit: what it finds, adds and refuses, and how a run is judged."""

from __future__ import annotations

import doctest
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import flmm_plugin
from flmm_plugin.adapters.answering.defaults import DEFAULTS
from flmm_plugin.adapters.vlmevalkit import benchmarks, command, command_line, inference, messages, outcomes
from flmm_plugin.adapters.vlmevalkit.run_files import KEY, DataSetRun
from flmm_plugin.errors import OutputFailed, ToolNotFound, UnknownArgument
from flmm_plugin.tasks.task_files import task_files


def test_every_name_is_made_of_tasks_that_exist() -> None:
    known = task_files()
    assert {task for tasks in benchmarks.BENCHMARKS.values() for task in tasks.values()} <= set(known)
    for name, splits in {"RefCOCO_SEG": 3, "RefCOCO+_SEG": 3, "RefCOCOg_SEG": 2, "PNG": 1, "GCG": 2, "ReasonSeg": 2,
                         "VisCoT": 6}.items():  # fmt: skip
        tasks = benchmarks.BENCHMARKS[name]
        assert len(tasks) == splits
        if splits > 1:
            assert {label: benchmarks.BENCHMARKS[f"{name}_{label}"][""] for label in tasks} == tasks
    assert doctest.testmod(benchmarks).failed == 0


def test_help_and_listing_name_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--help"]) == 0
    said = capsys.readouterr().out
    assert "examples:" in said
    assert "exit status:" in said
    assert command.main(["list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in (*DEFAULTS, *benchmarks.BENCHMARKS, "MMBench_TINY"))


def test_no_judge_is_asked_without_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "LOCAL_LLM", "AZURE_OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    assert command_line.judge_default(["--data", "MME"]) == ["--judge", "exact_matching"]
    assert command_line.judge_default(["--judge=gpt-4o-mini"]) == []
    assert command_line.judge_default(["--judge-base-url", "x"]) == []
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    assert command_line.judge_default(["--data", "MME"]) == []


def test_model_arguments_are_taken_out_and_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLMM_MODEL_ARGS", "")
    words = ["--data", "MME", "--model-args", "heads=h.safetensors,dtype=float32", "--limit", "3"]
    assert command._take_model_arguments(words) == ["--data", "MME", "--limit", "3"]
    assert os.environ["FLMM_MODEL_ARGS"] == "heads=h.safetensors,dtype=float32"
    with pytest.raises(UnknownArgument, match="did you mean 'dtype'"):
        command._take_model_arguments(["--model-args=dtyp=float32"])
    with pytest.raises(UnknownArgument, match="needs arguments"):
        command._take_model_arguments(["--model-args", "--limit"])


def test_what_cannot_be_is_said_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PRED_FORMAT", raising=False)
    (tmp_path / "file").touch()
    entries = {
        "key": {"class": "FlmmBenchmark", "dataset": "PNG"}, "PGN": {"class": "FlmmBenchmark", "dataset": "PGN"},
        "PNG": {"class": "FlmmBenchmark", "dataset": "PNG"},
    }  # fmt: skip
    models = {
        "mine": {"class": "FLMM", "name": "flmm_llava"}, "typo": {"class": "FLMM", "name": "flmm_lava"},
        "odd": {"class": "FLMM", "name": "flmm_llava", "head": "x"},
    }  # fmt: skip
    for model, data, said in [
        ("mine", "key", "must be 'PNG'"), ("mine", "PGN", "did you mean 'PNG'"),
        ("typo", "PNG", "did you mean 'flmm_llava'"),
        ("odd", "PNG", "did you mean 'heads'"),
    ]:  # fmt: skip
        content = {"model": {model: models[model]}, "data": {data: entries[data]}}
        (tmp_path / "c.json").write_text(json.dumps(content))
        with pytest.raises(UnknownArgument, match=said):
            command_line.checked(["--config", "c.json"])
    (tmp_path / "c.json").write_text(json.dumps({"models": {}}))
    whole = ["--model", "flmm_tiny", "--data", "PNG"]
    for words, said in [
        (["--config", "c.json"], "no configuration"), (["--config", "none.json"], "no configuration"),
        (["--config", "c.json", "--data", "PNG"], "leave --model and --data out"),
        (["--model", "flmm_tiny"], "--data is missing"), (["--data", "PNG"], "--model is missing"),
        (["--model", "flmm_tny", "--data", "PNG"], "did you mean 'flmm_tiny'"),
        ([*whole, "--limit", "0"], "at least 1"),
        ([*whole, "--api-mode"], "leave --api-mode out"),
    ]:  # fmt: skip
        assert command.main(words) == 2
        printed = capsys.readouterr().err
        assert said in printed
        assert printed.count("\n") == 1
    with pytest.raises(OutputFailed, match="file"):
        command_line.checked([*whole, "--work-dir", "file"])
    assert command_line.checked(["--model", "Qwen2-VL-7B-Instruct", "mine", "--data", "MME"]).models[1] == "mine"
    assert doctest.testmod(command_line).failed == 0


def test_masks_go_into_tsv_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for chosen, fits in {"tsv": True, "": True, "TSV": True, "xlsx": False, "json": False, "csv": False}.items():
        monkeypatch.setenv("PRED_FORMAT", chosen)
        words = ["--model", "flmm_tiny", "--data", "MME", "PNG"]
        if fits:
            command_line.checked(words)
            continue
        with pytest.raises(UnknownArgument, match=f"PRED_FORMAT is '?{chosen}"):
            command_line.checked(words)
        if chosen != "csv":
            command_line.checked(words[:-1])


def test_what_is_missing_is_one_screen_before_the_kit_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "run.py"
    script.write_text("raise SystemExit('the kit was imported')")
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "VLMEVALKIT_RUN": str(script),
        "FLMM_CACHE": str(tmp_path / "cache"),
        "FLMM_OFFLINE": "",
    }.items():
        monkeypatch.setenv(name, value)
    for name in ("PRED_FORMAT", "FLMM_DATA", "FLMM_MODEL_ARGS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    words = ["--no-fetch", "--model", "flmm_deepseekvl", "--data"]
    assert command.main([*words, "MME", "PNG"]) == 2
    said = capsys.readouterr().err
    for word in ("deepseek-community/deepseek-vl-1.3b-chat", "heads", "flmm data download png", "NotReady"):
        assert word in said
    assert os.environ["FLMM_OFFLINE"] == "1"
    assert command.main([*words, "MME"]) == 2
    said = capsys.readouterr().err
    assert "deepseek-vl-1.3b-chat" in said
    assert "heads" not in said, "a run that only chats needs none"
    entries = {"model": {"mine": {"class": "FLMM", "name": "flmm_llava", "heads": "none"}}, "data": {"MME": {}}}
    (tmp_path / "c.json").write_text(json.dumps(entries))
    assert command.main(["--config", "c.json"]) == 2
    assert "llava-hf/llava-1.5-7b-hf" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="the kit was imported"):
        command.main(["--model", "flmm_tiny", "--data", "RefCOCO_SEG_TINY"])


def test_a_program_with_the_hook_gets_the_same_screen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLMM_OFFLINE", "")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(command, "refuse_unknown_names", lambda _: None)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(sys, "argv", ["run.py", "--model", "flmm_llava", "--no-fetch", "--data", "MME"])
    with pytest.raises(SystemExit):
        command._begin_hooked()
    assert "llava-hf/llava-1.5-7b-hf" in capsys.readouterr().err
    assert "--no-fetch" not in sys.argv


def kit(folder: Path, *, inside: bool) -> Path:
    """A package named like the kit, with run.py where ms-vlmeval or a clone has it."""
    package = folder / "vlmeval"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('the kit was imported')")
    script = (package if inside else folder) / "run.py"
    script.write_text("")
    return script


@pytest.mark.parametrize("inside", [True, False])
def test_run_is_found_in_both_kits_without_importing_them(
    tmp_path: Path, inside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VLMEVALKIT_RUN", raising=False)
    script = kit(tmp_path, inside=inside)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert command.find_run() == script


def test_no_kit_is_an_error_that_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VLMEVALKIT_RUN", str(tmp_path / "none.py"))
    with pytest.raises(ToolNotFound, match="is no file"):
        command.find_run()
    monkeypatch.delenv("VLMEVALKIT_RUN")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(sys, "meta_path", [])
    monkeypatch.delitem(sys.modules, "vlmeval", raising=False)
    with pytest.raises(ToolNotFound, match="environment"):
        command.find_run()
    monkeypatch.undo()
    assert command.main(["exec"]) == 2
    assert "say what to run" in capsys.readouterr().err


def test_the_hook_waits_for_the_kit_and_lets_another_sitecustomize_run(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('mine ran')")
    code = (
        "import sys\n"
        "waiting = [one.name for one in sys.meta_path if type(one).__name__ == 'AfterImport']\n"
        "print(waiting, 'torch' in sys.modules, 'lmms_eval' in sys.modules)\n"
    )
    path = f"{command.HOOK_FOLDER}:{tmp_path}:{Path(flmm_plugin.__file__).parents[1]}"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": path, "PATH": ""}, capture_output=True, text=True,
        timeout=60, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.stdout.splitlines() == ["mine ran", "['vlmeval.config'] False False"], done.stderr


def test_an_executed_command_fails_where_a_combination_failed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {"model_name": "m", "dataset_name": "D", "status": "done"}
    code = (
        "from flmm_plugin.adapters.vlmevalkit import outcomes\n"
        "import sys\n"
        f"outcomes.note(**{state!r}, error_message=sys.argv[1])\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(flmm_plugin.__file__).parents[1]))
    assert command.execute([sys.executable, "-c", code, "no such file"]) == 1
    assert "m x D: FAILED: no such file" in capfd.readouterr().err
    assert command.execute([sys.executable, "-c", code, ""]) == 0
    assert command.execute([sys.executable, "-c", "raise SystemExit(3)"]) == 3


def test_a_process_with_the_hook_ends_with_the_status_of_its_combinations(tmp_path: Path) -> None:
    code = (
        "import atexit, sys\n"
        "from flmm_plugin.adapters.vlmevalkit import outcomes\n"
        "outcomes.report_at_the_end()\n"
        "atexit.register(lambda: print('others first', flush=True))\n"
        "state = {'model_name': 'm', 'dataset_name': 'D', 'status': 'done', 'error_message': sys.argv[1]}\n"
        "outcomes.note(**state)\n"
    )
    for problem, ending, status, said in [
        ("broken", "", 1, "flmm: m x D: FAILED: broken"), ("", "", 0, "flmm: m x D: done"),
        ("broken", "raise KeyError('x')", 1, "KeyError: 'x'"),
        ("broken", "raise KeyboardInterrupt", -2, "KeyboardInterrupt"),
    ]:  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", code + ending, problem], capture_output=True, text=True, cwd=tmp_path, check=False
        )
        assert (done.returncode, done.stdout.strip()) == (status, "others first")
        assert said in done.stderr
    assert "FAILED" not in done.stderr, "an interrupt has a line of its own"


def test_outcomes_are_the_last_ones_and_count_failed_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcomes, "_outcomes", {})
    results = tmp_path / "m_D.tsv"
    rows = ["index\tprediction", "0\tYes", f"1\t{messages.failure('BadImage: x')}"]
    results.write_text("\n".join(rows))

    def note(**state: Any) -> None:
        outcomes.note(model_name="m", **state)

    note(dataset_name="D", status="pending", prediction_file=str(results))
    assert outcomes.summary()[1] == 1, "what was begun and did not end has no result"
    note(dataset_name="D", status="done", metrics_source={})
    lines, status = outcomes.summary()
    assert status == 0
    assert "1 of 2 samples FAILED" in lines[0]
    note(dataset_name="PGN", status="done", skip_reason="invalid_dataset")
    note(dataset_name="F", status="done", skip_reason="mode_infer")
    lines, status = outcomes.summary()
    assert status == 1
    assert [line for line in lines if "FAILED: invalid_dataset; did you mean 'PNG'?" in line]
    assert "1 of 3 combinations" in lines[-1]
    note(dataset_name="PGN", status="pending")
    note(dataset_name="PGN", status="done", metrics_source={})
    assert outcomes.summary()[1] == 0


class Data:
    """What a run needs to know of a data set of the kit's: rows, and what is asked about each."""

    dataset_name = "MME"

    def __init__(self, rows: int = 3, question: str = "Is it red?") -> None:
        self.data = pd.DataFrame({"index": range(rows), "question": question, "answer": "Yes"})

    def build_prompt(self, row: Any) -> list[dict[str, str]]:
        return [{"type": "text", "value": f"{row['index']} {row['question']}"}]


def a_run(folder: Path, heads: str) -> DataSetRun:
    folder.mkdir(parents=True, exist_ok=True)
    return DataSetRun(folder, "flmm_tiny", "MME", {"heads": heads, "dtype": "float32"})


def held(run: DataSetRun, data: Data | None = None) -> set[str]:
    """What a run would go on from, or its refusal."""
    asked = data or Data()
    return run.held(run.folder / "flmm_tiny_MME.tsv", asked.data["index"], run.keys(asked), run.journal())


def finish(run: DataSetRun, data: Data | None = None, **replies: str) -> None:
    """Write a result file as the kit does, with failed samples where ``replies`` says so."""
    asked = data or Data()
    table = asked.data.assign(**{KEY: list(run.keys(asked).values())}, prediction="Yes")
    for row, reply in replies.items():
        table.loc[int(row.strip("_")), "prediction"] = reply
    table.to_csv(run.folder / "flmm_tiny_MME.tsv", sep="\t", index=False)
    run.record({"kernel": "sdpa"}, {"name": "flmm_tiny"})


def test_answers_of_another_model_or_to_other_data_are_refused_and_stale_judgements_removed(tmp_path: Path) -> None:
    folder = tmp_path / "flmm_tiny"
    run = a_run(folder, "a")
    assert held(run) == set()
    finish(run, Data(2), _1=messages.failure("BadImage: x"))
    assert held(run) == {"0"}, "a failed sample is asked again, and rows that were left out are asked now"
    record = json.loads((folder / "flmm_tiny_MME_flmm.json").read_text())
    assert (record["kernel"], record["decided_by"]["heads"]) == ("sdpa", "a")
    for other, data, said in [
        (a_run(folder, "b"), Data(), r"other options \(heads\).*--work-dir"),
        (run, Data(question="Is it blue?"), "to other data of the name MME"),
    ]:
        with pytest.raises(UnknownArgument, match=said):
            held(other, data)
    finish(run)
    with pytest.raises(UnknownArgument, match="leaves out 2"):
        held(run, Data(1))
    kept = ["flmm_tiny_MME.tsv", "flmm_tiny_MME_flmm.json", "flmm_tiny_MME_TINY_score.csv", "flmm_tiny_MMEx_score.csv"]
    stale = ["_auxmatch.tsv", "_tmp.pkl", "_score.csv", "_acc.csv", "_exact_matching_result.pkl", "_gpt-4o_result.tsv"]
    for name in [*kept, *(f"flmm_tiny_MME{ending}" for ending in stale)]:
        (folder / name).touch()
    run.remove_stale()
    assert sorted(path.name for path in folder.iterdir()) == sorted(kept)


def test_rows_that_do_not_say_whose_they_are_are_refused(tmp_path: Path) -> None:
    run = a_run(tmp_path / "flmm_tiny", "a")
    (run.folder / "flmm_tiny_MME.tsv").write_text("index\tprediction\n0\tYes\n")
    with pytest.raises(UnknownArgument, match="nothing says"):
        held(run)


def test_what_a_killed_run_left_is_continued_by_the_same_model_alone(tmp_path: Path) -> None:
    folder = tmp_path / "flmm_tiny"
    killed, other = a_run(folder, "a"), a_run(folder, "b")
    killed.journal().add("x", "1")
    assert other.journal().get("x") is None  # the kit has nothing yet that it would continue
    held(other)
    (folder / "01_MME.pkl").touch()  # what it writes every tenth answer
    with pytest.raises(UnknownArgument, match="killed"):
        held(other)
    held(killed)
    assert killed.journal().get("x") == "1"
    (folder / "flmm_tiny_MME_PREV.pkl").touch()
    killed.drop_partial_files(folder / "flmm_tiny_MME.tsv")
    assert not list(folder.glob("*.pkl")), "they do not say whose answers they hold"


def test_answers_of_an_earlier_start_s_folder_are_taken_over_by_the_same_model_alone(tmp_path: Path) -> None:
    starts = [tmp_path / "flmm_tiny" / f"T2026010{day}-000000" for day in (1, 2)]
    finish(a_run(starts[0], "a"))
    fresh, same = a_run(starts[1], "c"), a_run(starts[1], "a")
    assert held(fresh) == set(), "without --reuse nothing is taken over"
    # With --reuse the kit copies the newest, and nothing of this package's.
    (starts[1] / "flmm_tiny_MME.tsv").write_bytes((starts[0] / "flmm_tiny_MME.tsv").read_bytes())
    with pytest.raises(UnknownArgument, match=r"other options \(heads\)"):
        held(fresh)
    assert held(same) == {"0", "1", "2"}


def test_a_run_removes_its_own_journal_and_what_other_numbers_of_processes_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "flmm_tiny" / "T20260101-000000"
    folder.mkdir(parents=True)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    run = a_run(folder, "a")
    journal = run.journal()
    journal.add("x", "1")
    assert journal.path == tmp_path / "flmm_tiny" / "1of2_MME.flmm.jsonl", "of all starts, not of this one's folder"
    names = ["0of2_MME", "0of1_MME", "0of1_MME_TINY"]
    for name in names:
        (folder.parent / f"{name}.flmm.jsonl").touch()
    for partial in ("02_MME", "12_MME", "01_MME", "24_MME", "01_MME_TINY"):
        (folder / f"{partial}.pkl").touch()
    run.forget()
    assert sorted(path.stem for path in folder.iterdir()) == ["01_MME_TINY", "02_MME", "12_MME"]
    left = sorted(path.name.split(".")[0] for path in folder.parent.glob("*.jsonl"))
    assert left == ["0of1_MME_TINY", "0of2_MME"]


def test_all_processes_go_on_or_none_does(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def gathered(thing: Any) -> list[Any]:
        said.append(thing)
        return ["", "RuntimeError: out of memory", ""] if others_fail else [thing]

    monkeypatch.setattr(inference, "_gathered", gathered)
    others_fail = False
    assert inference._together(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        inference._together(lambda: 1 // 0)
    assert said == ["", "ZeroDivisionError: integer division or modulo by zero"], "the others hear of it"
    others_fail = True
    with pytest.raises(inference.ProcessFailed, match="process 1: RuntimeError: out of memory"):
        inference._together(lambda: 7)
