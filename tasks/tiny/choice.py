"""Yes or no by which of the two words is the likelier continuation: a task that asks for log-likelihoods."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

CHOICES = ("Yes", "No")


def choices(doc: Mapping[str, Any]) -> list[str]:
    """What may be answered; the same for every document."""
    return list(CHOICES)


def score(doc: Mapping[str, Any], results: Sequence[tuple[float, bool] | str]) -> dict[str, Any]:
    """What one document contributes.

    Args:
        doc: With an ``answer``, in any case.
        results: Of each choice its mean loss, which lmms-eval calls a log-likelihood, and whether greedy decoding
            writes it; as a pair, or as the text of one.

    Returns:
        ``acc``: whether the choice of the smallest loss (of equal ones the first) is the answer, and all losses.
    """
    losses = [_loss(result) for result in results]
    picked = CHOICES[losses.index(min(losses))]
    return {"acc": {"right": picked.lower() == str(doc["answer"]).lower(), "picked": picked, "losses": losses}}


def _loss(result: tuple[float, bool] | str) -> float:
    """The number of a pair. lmms-eval 0.7.3 hands pairs over as text, on which its own multiple choice fails.

    >>> _loss((0.25, True)), _loss("(0.25, True)"), _loss("(inf, False)")
    (0.25, 0.25, inf)
    """
    return float(result.strip("() ").partition(",")[0]) if isinstance(result, str) else float(result[0])


def accuracy(samples: Iterable[Mapping[str, Any]]) -> float:
    """Percent of right answers; 0 where there are none."""
    right = [bool(sample["right"]) for sample in samples]
    return 100 * sum(right) / len(right) if right else 0.0
