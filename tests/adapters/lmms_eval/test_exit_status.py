"""How evaluations end, with lmms-eval's evaluator and tracker replaced by ones that fail in every way."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flmm_plugin.adapters.lmms_eval import command, exit_status
from flmm_plugin.errors import FrozenWeightsChanged, OutputFailed, UnknownArgument


@pytest.fixture
def owed(monkeypatch: pytest.MonkeyPatch) -> exit_status.Run:
    """The state of a process that runs the ``lmms_eval`` command."""
    run = exit_status.Run()
    run.every_model = run.open = True
    monkeypatch.setattr(exit_status, "run", run)
    return run


def evaluate(outcome: Any, **given: Any) -> Any:
    def simple_evaluate(model: Any = None, use_cache: Any = None, cli_args: Any = None) -> Any:
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    given = {"model": object(), "cli_args": SimpleNamespace(config=""), **given}
    return exit_status._simple_evaluate(simple_evaluate, **given)


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (FrozenWeightsChanged("the seal is broken"), 2, "FrozenWeightsChanged: the seal is broken"),
        (RuntimeError("shapes"), 1, "failed: RuntimeError: shapes"),
        (OSError(28, "No space left on device"), 1, "No space left"),
        (sqlite3.OperationalError("database or disk is full"), 2, "OutputFailed: cannot write C"),
        (KeyboardInterrupt(), 130, "kept in C; the same line goes on"),
        (exit_status.Terminated(), 143, "terminated"),
    ],
)
def test_what_raises_ends_the_command(
    error: BaseException, status: int, said: str, owed: exit_status.Run, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        evaluate(error, use_cache="C")
    assert exit_.value.code == status
    shown = capsys.readouterr().err
    assert said in shown
    assert ("Traceback" in shown) == (status == 1)


def test_in_python_errors_are_raised_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exit_status, "run", exit_status.Run())
    with pytest.raises(FrozenWeightsChanged):
        evaluate(FrozenWeightsChanged("x"))


def test_a_sweep_goes_on_and_ends_with_a_status(owed: exit_status.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(RuntimeError):
        evaluate(RuntimeError("x"), cli_args=SimpleNamespace(config="sweep.yaml"))
    evaluate({"n-samples": {}}, cli_args=SimpleNamespace(config="sweep.yaml"))
    assert owed.close() == 1


@pytest.mark.parametrize(
    ("failed", "status", "said"), [({}, 0, ""), ({"mme": 3}, 0, "mme: 3 of 4"), ({"mme": 4}, 1, "mme: NONE of its 4")]
)
def test_failed_samples_are_said_last(
    failed: dict[str, int], status: int, said: str, owed: exit_status.Run, capsys: pytest.CaptureFixture[str]
) -> None:
    owed.unanswered = failed
    evaluate({"n-samples": {"mme": {"effective": 4}}})
    assert owed.close() == status
    assert said in capsys.readouterr().err


def test_an_evaluation_that_never_came_to_its_end_is_a_failure(owed: exit_status.Run) -> None:
    assert owed.close() == 1


def test_misspelt_tasks_get_the_nearest_name(owed: exit_status.Run, capsys: pytest.CaptureFixture[str]) -> None:
    manager = SimpleNamespace(all_tasks=["mme", "pope"])
    exit_status.match_or_end(manager, ["mme", "po*"], ["mme", "pope"])
    with pytest.raises(SystemExit) as exit_:
        exit_status.match_or_end(manager, ["mmee"], [])
    assert exit_.value.code == 2
    assert "'mmee'; did you mean 'mme'?" in capsys.readouterr().err
    with pytest.raises(UnknownArgument):
        exit_status.check_tasks(["mme"], ["mme", "zzz"])


class Tracker:
    """As `EvaluationTracker`: what cannot be written is a warning."""

    def __init__(self, folder: Path, content: str | None) -> None:
        self.output_path, self.date_id, self.content = str(folder), "now", content
        self.general_config_tracker = SimpleNamespace(model_name_sanitized="tiny")

    def save_results_aggregated(self, results: Any, samples: Any = None) -> None:
        self._write("now_results.json")

    def save_results_samples(self, task_name: str, samples: Any) -> None:
        self._write(f"now_samples_{task_name}.jsonl")

    def _write(self, name: str) -> None:
        if self.content is not None:
            path = Path(self.output_path) / "tiny" / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(self.content, encoding="utf-8")


@pytest.mark.parametrize(
    ("content", "results", "samples"),
    [(None, 1, 1), ("", 1, 1), ('{"a": 1', 1, 1), (json.dumps({}) + "\n", 0, 1), ("{}\n{}\n", 1, 0), ("{}\n{", 1, 1)],
)
def test_files_that_are_not_there_or_not_whole_are_a_failure(
    content: str | None,
    results: int,
    samples: int,
    tmp_path: Path,
    owed: exit_status.Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of_results = partial(exit_status._save_results_aggregated, Tracker.save_results_aggregated)
    of_samples = partial(exit_status._save_results_samples, Tracker.save_results_samples)
    cases: list[tuple[Callable[..., Any], dict[str, Any], int]] = [
        (of_results, {"results": {}}, results),
        (of_samples, {"task_name": "mme", "samples": [1, 2]}, samples),
    ]
    for save, given, status in cases:
        owed.open = owed.failed = False
        save(Tracker(tmp_path, content), **given)
        assert owed.close() == status
        if status:
            with monkeypatch.context() as patch:
                patch.setattr(owed, "every_model", False)
                with pytest.raises(OutputFailed):
                    save(Tracker(tmp_path, content), **given)


def test_a_task_without_samples_owes_no_file_of_samples(tmp_path: Path) -> None:
    assert exit_status._problem_of_samples(tmp_path / "now_samples_mme.jsonl", 0) == ""
    assert "not written" in exit_status._problem_of_samples(tmp_path / "now_samples_mme.jsonl", 1)


def test_the_command_passes_on_what_lmms_eval_ends_with(monkeypatch: pytest.MonkeyPatch) -> None:
    from lmms_eval.cli import dispatch

    def end(code: Any) -> int:
        def run() -> None:
            raise SystemExit(code)

        monkeypatch.setattr(dispatch, "main", run)
        monkeypatch.setattr(exit_status, "run", exit_status.Run())
        monkeypatch.setattr(sys, "argv", ["lmms_eval", "tasks", "list"])
        with pytest.raises(SystemExit) as exit_:
            command.main()
        return int(exit_.value.code or 0)

    assert [end(code) for code in (None, 0, 2, "no")] == [0, 0, 2, 1]


def test_no_tasks_is_no_success(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["lmms_eval", "--model", "flmm_tiny"])
    with pytest.raises(SystemExit) as exit_:
        command.main()
    assert exit_.value.code == 2
    assert "--tasks" in capsys.readouterr().err


# Loaded by Python itself at the start of a process: rank 1 does not come to its end.
BREAKS_RANK_1 = """
import os
if os.environ.get("RANK") == "1":
    from flmm_plugin.adapters.patching import AfterImport

    def lose(module):
        def chat_batch(self, *args, **kwargs):
            os.kill(os.getpid(), 9)

        def load(self, *args, **kwargs):
            raise RuntimeError("rank 1 cannot load")

        if os.environ["LOST_BY"] == "load":
            module.FlmmModel.load = load
        else:
            from flmm_plugin.grounded_lmm import GroundedLMM
            GroundedLMM.chat_batch = chat_batch

    AfterImport.place("flmm_plugin.adapters.lmms_eval.model", lose)
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("lost_by", ["kill", "load"])
def test_the_survivor_of_a_lost_rank_ends_with_a_failure(lost_by: str, tmp_path: Path) -> None:
    """Two processes without a launcher: nobody ends the survivor but itself."""
    (tmp_path / "sitecustomize.py").write_text(BREAKS_RANK_1, encoding="utf-8")
    line = [
        "-m",
        "lmms_eval",
        "--model",
        "flmm_tiny",
        "--tasks",
        "flmm_tiny_mme",
        "--limit",
        "4",
        "--model_args",
        "device=cpu",
    ]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    ranks = [
        subprocess.Popen(
            [sys.executable, *line], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env={**os.environ, "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                 "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true",
                 "LOST_BY": lost_by, "PYTHONPATH": str(tmp_path)},
        )
        for rank in "01"
    ]  # fmt: skip
    try:
        assert all(rank.wait(timeout=800) != 0 for rank in ranks)
    finally:
        for rank in ranks:
            rank.kill()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_readmes_line_works_in_an_empty_folder(tmp_path: Path) -> None:
    unset = ("FLMM_DATA", "FLMM_CACHE", "HF_HOME", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "HF_DATASETS_CACHE")
    env = {name: value for name, value in os.environ.items() if name not in unset}
    (tmp_path / "empty").mkdir()
    line = ["--model", "flmm_tiny", "--tasks", "mme,refcoco_seg", "--output_path", "out"]
    done = subprocess.run(
        [str(Path(sys.executable).parent / "lmms_eval"), *line], cwd=tmp_path / "empty",
        env={**env, "HOME": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "own world" in done.stderr.splitlines()[-1]
    result = json.loads(next((tmp_path / "empty" / "out").rglob("*_results.json")).read_text(encoding="utf-8"))
    assert result["results"]["mme"]["alias"] == "mme (world of shapes)"
    assert "not the benchmark" in result["configs"]["mme"]["metadata"]["data"]
    assert "not the benchmark" in result["configs"]["flmm_refcoco_val"]["metadata"]["data"]
    assert result["results"]["flmm_refcoco_val"]["complete,none"] == 0
    assert result["flmm"]["failed"] == {}
