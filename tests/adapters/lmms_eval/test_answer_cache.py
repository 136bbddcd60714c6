"""lmms-eval's own response cache with a run that is killed: what was answered is not asked again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lmms_eval.api.instance import Instance
from lmms_eval.caching.response_cache import ResponseCache

from flmm_plugin.adapters.lmms_eval.answer_cache import RUN_ID, fill_as_answers_come


class Killed(BaseException):
    """Stands for the end of a process: nothing catches it."""


class Stock:
    """Hands over all answers at once, and is killed before the third."""

    def __init__(self, lives: int = 2) -> None:
        self.asked: list[str] = []
        self.lives = lives

    def generate_until(self, requests: list[Instance]) -> list[str]:
        return list(self.each(requests))

    def each(self, requests: list[Instance]) -> Iterator[str]:
        for request in requests:
            if len(self.asked) == self.lives:
                raise Killed
            self.asked.append(request.args[0])
            yield f"answer to {request.args[0]}"


class Ours(Stock):
    """Hands them over one by one."""

    answers_with_masks = True
    answers = Stock.each


def evaluate(model: Any, folder: Path) -> list[str]:
    """One process of lmms-eval, as far as its cache is concerned."""
    requests = [
        Instance("generate_until", (f"question {n}", {"temperature": 0}, None, n, "some", "test"), 0,
                 {"task": "some", "doc_id": n, "repeats": 1})
        for n in range(4)
    ]  # fmt: skip
    cache = ResponseCache.create(str(folder), model="flmm_tiny", model_args="a=b")
    try:
        answers: list[str] = cache.execute(model, "generate_until", requests)
    finally:
        cache.close()
    return answers


@pytest.fixture(autouse=True)
def named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ResponseCache, "execute", ResponseCache.execute)  # as it was, whoever wrapped it
    monkeypatch.setenv(RUN_ID, "reproduce")
    fill_as_answers_come()


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        evaluate(Ours(lives=2), tmp_path)
    second = Ours(lives=9)
    assert evaluate(second, tmp_path) == [f"answer to question {n}" for n in range(4)]
    assert second.asked == ["question 2", "question 3"]
    third = Ours(lives=0)
    evaluate(third, tmp_path)
    assert third.asked == []


def test_without_one_name_for_the_runs_nothing_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(RUN_ID)
    with pytest.raises(Killed):
        evaluate(Ours(lives=2), tmp_path)
    second = Ours(lives=9)
    evaluate(second, tmp_path)
    assert len(second.asked) == 4


def test_other_models_are_left_to_lmms_eval(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        evaluate(Stock(lives=2), tmp_path)
    second = Stock(lives=9)
    assert len(evaluate(second, tmp_path)) == len(second.asked) == 4


def test_it_is_wrapped_once() -> None:
    before = ResponseCache.execute
    fill_as_answers_come()
    assert ResponseCache.execute is before
