"""Reading back what lmms-eval wrote: the newest run, its scores, and answers compared string by string."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from flmm_plugin.adapters.lmms_eval.agreement import answers, compare_answers, newest_run
from flmm_plugin.errors import DataNotFound


def write_run(folder: Path, answers: list[str], *, date: str = "20260101_000000", score: float = 1.5) -> Path:
    """A run as lmms-eval 0.7.3 lays it out (shape taken from a real one)."""
    inner = folder / "org__model"
    inner.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {
        "results": {
            "mme": {
                "alias": "mme",
                "mme_perception_score,none": score,
                "mme_perception_score_stderr,none": "N/A",
                "mme_perception_score_stderr_clt,none": 0.0,
            }
        },
        "config": {"model": "llava_hf", "model_args": "pretrained=x"},
        "total_evaluation_time_seconds": "9.01",
    }
    path = inner / f"{date}_results.json"
    path.write_text(json.dumps(results))
    lines = [
        {"doc_id": i, "input": f"question {i}", "target": "Yes", "resps": answer, "filtered_resps": answer.strip()}
        for i, answer in enumerate(answers)
    ]
    for line in lines:  # lmms-eval leaves "resps" out where the filters changed nothing
        if line["resps"] == line["filtered_resps"]:
            del line["resps"]
    (inner / f"{date}_samples_mme.jsonl").write_text("".join(json.dumps(line) + "\n" for line in reversed(lines)))
    return path


def test_scores_and_samples_come_back(tmp_path: Path) -> None:
    write_run(tmp_path, ["Yes", " no"])
    run = newest_run(tmp_path)
    assert {task: found.metrics for task, found in run.tasks.items()} == {"mme": {"mme_perception_score": 1.5}}
    assert sorted(answers(run, "mme")) == [0, 1]
    assert answers(run, "mme")[1].answer == " no", "raw answers, not stripped ones"
    assert (run.model, run.options) == ("llava_hf", {"pretrained": "x"})


def test_the_newest_run_is_read(tmp_path: Path) -> None:
    old = write_run(tmp_path, ["Yes"], score=1.0)
    write_run(tmp_path, ["Yes"], date="20250101_000000", score=2.0)
    os.utime(old, (1, 1))
    assert newest_run(tmp_path).tasks["mme"].metrics["mme_perception_score"] == 2.0


def test_answers_are_compared_exactly(tmp_path: Path) -> None:
    write_run(tmp_path / "a", ["Yes", "no", "yes "])
    write_run(tmp_path / "b", ["Yes", "no", "yes"])
    agreement = compare_answers(newest_run(tmp_path / "a"), newest_run(tmp_path / "b"), "mme")
    assert (agreement.equal, agreement.total) == (2, 3)
    assert [(ours.answer, theirs.answer) for ours, theirs in agreement.differing] == [("yes ", "yes")]


def test_runs_on_different_documents_are_not_compared(tmp_path: Path) -> None:
    write_run(tmp_path / "a", ["Yes", "no"])
    write_run(tmp_path / "b", ["Yes"])
    with pytest.raises(DataNotFound, match="same --limit"):
        compare_answers(newest_run(tmp_path / "a"), newest_run(tmp_path / "b"), "mme")


def test_missing_runs_and_samples_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataNotFound, match="--output_path"):
        newest_run(tmp_path)
    write_run(tmp_path, ["Yes"])
    with pytest.raises(DataNotFound, match="--log_samples"):
        answers(newest_run(tmp_path), "pope")
