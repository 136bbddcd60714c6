"""The stock score of MME on the world, kept with what it was compared with, so that a log can be scored again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmms_eval.tasks.mme.utils import mme_process_results

from flmm_plugin.tasks.sample_scores import SampleScores


def score(doc: Mapping[str, Any], results: list[str]) -> dict[str, Any]:
    """The scores of one document; `results` holds the model's one reply."""
    return SampleScores(score_reply(doc, results[0]))


def score_reply(doc: Mapping[str, Any], reply: str) -> dict[str, dict[str, Any]]:
    """lmms-eval's own score of a reply."""
    names = ("question_id", "question", "category", "answer")
    return {**mme_process_results(doc, [reply]), "reference": {name: doc[name] for name in names}}


def logged_document(sample: Mapping[str, Any]) -> dict[str, Any]:
    """The document of a line of lmms-eval's sample log, as far as `score_reply` needs it."""
    return dict(sample["reference"])
