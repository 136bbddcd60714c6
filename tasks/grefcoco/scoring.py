"""Score replies to expressions that may mean several objects, or nothing; printed numbers are percentages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flmm_plugin.tasks.mask_scoring import Sample, percent
from flmm_plugin.tasks.metrics import grefcoco
from flmm_plugin.tasks.metrics.bootstrap import Statistic, with_interval
from flmm_plugin.tasks.metrics.grefcoco import PhraseCounts
from flmm_plugin.tasks.phrases import COUNTED, counts_of, logged_document, score_phrases

__all__ = ["logged_document", "n_acc_as_code", "score_reply", "t_acc_as_code"]

#: A prediction with fewer pixels is empty: the paper's rule for models that have no answer of their own to whether
#: something is meant.
SMALLEST = 50


def score_reply(doc: Mapping[str, Any], reply: Any) -> dict[str, dict[str, Any]]:
    """Return the counts of one document, keyed by metric; see `flmm_plugin.tasks.phrases.score_phrases`."""
    return score_phrases(doc, reply, (*COUNTED, "N_acc_as_code", "T_acc_as_code"), SMALLEST)


def _resampled(rate: Callable[[list[PhraseCounts]], float | None]) -> Statistic:
    """Describe a rate of items for its interval; 0 for draws without an item that it could be of."""
    return Statistic(
        reduce=lambda samples: [counts_of([sample]) for sample in samples],
        combine=lambda documents: 100 * (rate([item for items in documents for item in items]) or 0.0),
    )


@with_interval(_resampled(lambda items: grefcoco.n_acc(items, more=1)))
def n_acc_as_code(samples: Sequence[Sample]) -> float | None:
    """Return N-acc as ReLA's evaluator computes it, percent."""
    return percent(grefcoco.n_acc(counts_of(samples), more=1))


@with_interval(_resampled(grefcoco.t_acc_as_code))
def t_acc_as_code(samples: Sequence[Sample]) -> float | None:
    """Return T-acc as ReLA's evaluator computes it, percent."""
    return percent(grefcoco.t_acc_as_code(counts_of(samples)))
