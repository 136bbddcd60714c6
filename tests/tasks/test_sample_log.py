"""What lmms-eval sums, and what its sample log keeps beside it."""

from __future__ import annotations

from typing import Any

from flmm_plugin.tasks.sample_log import DocumentScores


def test_only_metrics_are_items_but_a_log_gets_everything() -> None:
    scores = DocumentScores({"cIoU": {"I": [1], "U": [2]}, "reference": {"phrases": ["a"]}})
    logged: dict[str, Any] = {"doc_id": 0}
    logged.update(scores)  # as lmms-eval writes its log
    assert logged["reference"] == {"phrases": ["a"]} == {**scores}["reference"]
    assert [name for name, _ in scores.items()] == ["cIoU"]  # as lmms-eval collects its metrics


def test_a_score_may_be_added_later() -> None:
    scores = DocumentScores({"reference": {}})
    scores["judged"] = 1.0
    assert dict(scores.items()) == {"judged": 1.0}
