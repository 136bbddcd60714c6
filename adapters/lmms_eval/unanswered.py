"""A request without an answer earns nothing in lmms-eval's own tasks either.

They know no failures: an empty text may be drawn an option at random (MMMU), and of losses that are all infinite the
first choice is taken. So `ConfigurableTask.process_results` is wrapped, once: documents with an answer go through it as
ever. Of the others each number becomes the worst that their metric has. This package's own tasks count failures
themselves.
"""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Callable, Sequence
from typing import Any

from flmm_plugin.adapters.patching import wrap_once

_here = threading.local()


class NoAnswer(str):
    """The empty text of a failed request, which stays of this class when lmms-eval strips it."""

    __slots__ = ()

    def _same(self, *_: Any, **__: Any) -> NoAnswer:
        return self

    strip = lstrip = rstrip = lower = upper = replace = _same


def earn_nothing() -> None:
    """Wrap `ConfigurableTask.process_results` and `random.choice`, once in a process."""
    from lmms_eval.api.task import ConfigurableTask

    wrap_once(ConfigurableTask, "process_results", _process_results)
    wrap_once(random, "choice", _choice)


def _process_results(original: Callable[..., Any], self: Any, doc: Any, results: Any, *args: Any, **kwargs: Any) -> Any:
    given = results
    if self.OUTPUT_TYPE == "multiple_choice" and not callable(self.config.process_results):
        given = [as_pair(one) for one in results]
        failed = not all(math.isfinite(loss) for loss, _ in given)
        if failed:
            given = [(0.0, False)] * len(given)
    else:
        failed = any(isinstance(one, NoAnswer) for one in _flat(results))
    if not failed:
        return original(self, doc, given, *args, **kwargs)
    _here.unlucky = True
    try:
        scores = original(self, doc, given, *args, **kwargs)
    finally:
        _here.unlucky = False
    return worst(scores, self.higher_is_better()) if isinstance(scores, dict) else scores


def _choice(original: Callable[[Sequence[Any]], Any], seq: Sequence[Any]) -> Any:
    """Draw nothing while a document without an answer is scored in the same thread."""
    return NoAnswer() if getattr(_here, "unlucky", False) else original(seq)


def worst(scores: dict[str, Any], higher_is_better: dict[str, bool]) -> dict[str, Any]:
    """Take away what a document without an answer earned.

    >>> worst({"acc": 1.0, "f1": (0, 0), "mme": {"score": 1.0, "id": 7}}, {"acc": True, "f1": True, "mme": True})
    {'acc': 0.0, 'f1': (0, 1), 'mme': {'score': 0.0, 'id': 7}}

    Args:
        scores: By metric: a number, a pair of gold and predicted index, or a record with a ``score``.
        higher_is_better: By metric; those that it does not name are.

    Returns:
        A new dictionary; what is no number, and errors and the like (less is better), are left as they are.
    """
    return {name: _worst(value) if higher_is_better.get(name, True) else value for name, value in scores.items()}


def as_pair(result: tuple[float, bool] | str) -> tuple[float, bool]:
    """Read loss and greediness of a choice; lmms-eval 0.7.3 hands over the pair as text and cannot score that itself.

    >>> as_pair((0.25, True)), as_pair("(0.25, True)"), as_pair("(inf, False)")
    ((0.25, True), (0.25, True), (inf, False))
    """
    if not isinstance(result, str):
        return float(result[0]), bool(result[1])
    loss, _, greedy = result.strip("() ").partition(",")
    return float(loss), greedy.strip() == "True"


def _worst(value: Any) -> Any:
    if isinstance(value, bool | int | float):
        return min(type(value)(0), value)
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], int):
        return value[0], value[0] + 1 if value[0] == value[1] else value[1]
    if isinstance(value, dict) and isinstance(value.get("score"), bool | int | float):
        return {**value, "score": _worst(value["score"])}
    return value


def _flat(results: Any) -> Sequence[Any]:
    """Return the replies to one document; with repeats they are nested once more."""
    return results[0] if results and isinstance(results[0], list) else results
