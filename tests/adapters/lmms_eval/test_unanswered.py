"""Requests without an answer, scored by lmms-eval's own tasks."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest

from flmm_plugin.adapters.lmms_eval.unanswered import NoAnswer, earn_nothing

task_module = pytest.importorskip("lmms_eval.api.task")
INF = float("inf")


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "choice", random.choice)
    monkeypatch.setattr(task_module.ConfigurableTask, "process_results", task_module.ConfigurableTask.process_results)
    earn_nothing()


def stock_task(output_type: str, gold: Any, process_results: Any = None, metrics: Any = ("acc",)) -> Any:
    """A task of lmms-eval's own class, without data."""
    task = object.__new__(task_module.ConfigurableTask)
    task.OUTPUT_TYPE = output_type
    task._config = SimpleNamespace(process_results=process_results, doc_to_choice=None, repeats=1)
    task._metric_fn_list = dict.fromkeys(metrics)
    task._higher_is_better = dict.fromkeys(metrics, True)
    task.multiple_input = task.multiple_target = False
    task.doc_to_choice = lambda doc: ["Yes", "No"]
    task.doc_to_target = lambda doc: gold
    return task


@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize("gold", [0, 1])
def test_a_failed_choice_is_never_the_chosen_one(gold: int, as_text: bool) -> None:
    metrics = ("acc", "acc_norm", "exact_match", "f1")
    task = stock_task("multiple_choice", gold, metrics=metrics)

    def scored(*losses: float) -> dict[str, Any]:
        pairs: list[Any] = [(loss, False) for loss in losses]
        result: dict[str, Any] = task.process_results({}, [str(pair) for pair in pairs] if as_text else pairs)
        return result

    assert scored(0.1, 2.0)["acc"] == 1 - gold
    for losses in ((INF, INF), (INF, 1.0), (1.0, INF), (float("nan"), 1.0)):
        failed = scored(*losses)
        assert [failed[name] for name in metrics[:3]] == [0, 0, 0]
        assert failed["f1"][0] != failed["f1"][1]


def test_an_option_is_not_drawn_for_a_failed_request() -> None:
    def mmmu_like(doc: Any, results: list[str]) -> dict[str, Any]:
        picked = results[0] or random.choice(["A"])
        return {"acc": {"score": float(picked == "A"), "parsed": picked}, "inside": 1.0 if results[0] in "A" else 0.0}

    task = stock_task("generate_until", "A", mmmu_like)
    # An empty answer of the model is an answer.
    assert task.process_results({}, [""]) == {"acc": {"score": 1.0, "parsed": "A"}, "inside": 1.0}
    failed = task.process_results({}, [NoAnswer()])
    assert failed == {"acc": {"score": 0.0, "parsed": ""}, "inside": 0.0}
    assert random.choice(["A"]) == "A"


def test_mme_and_pope_give_a_failed_request_nothing() -> None:
    from lmms_eval.tasks.mme.utils import mme_process_results
    from lmms_eval.tasks.pope.utils import pope_process_results

    doc = {"question_id": "1", "category": "color", "answer": "Yes"}
    for score in (mme_process_results, pope_process_results):
        task = stock_task("generate_until", "Yes", score)
        assert [one["score"] for one in task.process_results(doc, [NoAnswer().strip()]).values()] == (
            [0.0] * len(task.process_results(doc, ["yes"]))
        )


def test_the_worst_of_an_error_rate_is_left_as_it_was_found() -> None:
    task = stock_task("generate_until", "A", lambda doc, results: {"wer": 1.0, "acc": -3.0}, ("wer", "acc"))
    task._higher_is_better["wer"] = False
    assert task.process_results({}, [NoAnswer()]) == {"wer": 1.0, "acc": -3.0}
