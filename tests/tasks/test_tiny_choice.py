"""Answers by log-likelihood on the world: the smallest loss is the choice."""

from __future__ import annotations

from typing import Any

import pytest

from flmm_plugin.tasks.tiny import choice


@pytest.mark.parametrize(
    ("losses", "answer", "right"),
    [
        ([0.1, 0.9], "Yes", True),
        ([0.9, 0.1], "Yes", False),
        ([0.9, 0.1], "no", True),
        ([0.5, 0.5], "Yes", True),  # of equal ones the first
        ([float("inf"), float("inf")], "No", False),  # nothing could be read
    ],
)
def test_the_smallest_loss_is_the_choice(losses: list[float], answer: str, right: bool) -> None:
    scored = choice.score({"answer": answer}, [(loss, False) for loss in losses])["acc"]
    assert scored["right"] is right
    assert scored["losses"] == losses
    # As lmms-eval 0.7.3 hands them over.
    assert choice.score({"answer": answer}, [str((loss, False)) for loss in losses])["acc"] == scored


def test_the_share_of_right_answers() -> None:
    samples: list[dict[str, Any]] = [{"right": True}, {"right": False}, {"right": True}, {"right": True}]
    assert choice.accuracy(samples) == 75
    assert choice.accuracy([]) == 0
