"""Yes or no by which of the two words is the likelier continuation: a task that asks for log-likelihoods."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

CHOICES = ("Yes", "No")


def choices(doc: Mapping[str, Any]) -> list[str]:
    """Return what may be answered; the same for every document."""
    return list(CHOICES)


def score(doc: Mapping[str, Any], results: Sequence[Any]) -> dict[str, Any]:
    """Return what one document contributes.

    Args:
        doc: With an ``answer``, in any case.
        results: Of each choice its mean loss, which lmms-eval calls a log-likelihood, and whether greedy decoding
            writes it; as a pair, or as the text of one.

    Returns:
        ``acc``: whether the choice of the smallest loss (of equal ones the first) is the answer, and all losses;
        ``errors``. Where a choice has no loss, its request failed: nothing is chosen, so that nothing is right.
    """
    losses = [_loss(result) for result in results]
    failed = len(losses) != len(CHOICES) or not all(map(math.isfinite, losses))
    picked = "" if failed else CHOICES[losses.index(min(losses))]
    right = picked.lower() == str(doc["answer"]).lower() and not failed
    return {"acc": {"right": right, "picked": picked, "losses": losses}, "errors": {"count": int(failed)}}


def _loss(result: Any) -> float:
    """Return the number of a pair; lmms-eval 0.7.3 hands pairs over as text, on which its own multiple choice fails.

    >>> _loss((0.25, True)), _loss("(0.25, True)"), _loss("(inf, False)"), _loss(None)
    (0.25, 0.25, inf, inf)
    """
    try:
        return float(result.strip("() ").partition(",")[0]) if isinstance(result, str) else float(result[0])
    except (TypeError, ValueError, IndexError, KeyError):
        return math.inf


def accuracy(samples: Iterable[Mapping[str, Any]]) -> float:
    """Return percent of right answers; 0 where there are none."""
    right = [bool(sample["right"]) for sample in samples]
    return 100 * sum(right) / len(right) if right else 0.0
