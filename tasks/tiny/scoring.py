"""The stock score of MME on the world, kept with what it was compared with, so that a log can be scored again.

MME asks twice about each picture, once for a yes and once for a no, and counts pictures with both answers right: what
is drawn for an interval is the picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lmms_eval.tasks.mme.utils import mme_aggregate_results, mme_process_results

from flmm_plugin.records import answer_of
from flmm_plugin.tasks.metrics.bootstrap import Sample, Statistic, with_interval
from flmm_plugin.tasks.sample_log import DocumentScores, reply_of


def score(doc: Mapping[str, Any], results: list[Any]) -> dict[str, Any]:
    """Return the scores of one document; `results` holds the model's one reply."""
    return DocumentScores(score_reply(doc, reply_of(results)))


def score_reply(doc: Mapping[str, Any], reply: Any) -> dict[str, dict[str, Any]]:
    """lmms-eval's own score of a reply; one of a failed request is neither yes nor no."""
    answer = answer_of(reply)
    names = ("question_id", "question", "category", "answer")
    reference = {**{name: doc[name] for name in names}, "image_source": doc["question_id"]}
    scores = mme_process_results(doc, [answer or ""])
    return {**scores, "errors": {"count": int(answer is None)}, "reference": reference}


def logged_document(sample: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document of a line of lmms-eval's sample log, as far as `score_reply` needs it."""
    return dict(sample["reference"])


def _pictures(samples: Sequence[Sample]) -> list[list[Sample]]:
    """Return the questions of each picture together."""
    found: dict[str, list[Sample]] = {}
    for sample in samples:
        found.setdefault(sample["question_id"], []).append(sample)
    return list(found.values())


def _of_pictures(pictures: Sequence[Sequence[Sample]]) -> float:
    # A picture that is drawn twice counts as two pictures.
    return perception([{**one, "question_id": str(at)} for at, asked in enumerate(pictures) for one in asked])


@with_interval(Statistic(reduce=_pictures, combine=_of_pictures))
def perception(samples: Sequence[Sample]) -> float:
    """Return lmms-eval's own sum over categories."""
    return float(mme_aggregate_results(samples))
