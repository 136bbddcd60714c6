"""POPE's numbers by two readings of the same answers.

The stock task's reading wants the bare word "yes" or "no". LLaVA's script, whose numbers many papers print, looks for a
denial in the first sentence: ``accuracy_first_sentence``, ``f1_first_sentence`` and ``yes_ratio_first_sentence``, which
unlike the stock ``pope_yes_ratio`` counts what the model said and not the truth. All are in 0..1, as the stock ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from lmms_eval.tasks.pope.utils import pope_process_results

from flmm_plugin.tasks.metrics.viscot import yes_or_no
from flmm_plugin.tasks.sample_scores import SampleScores

Sample = Mapping[str, Any]

#: What is printed beside the stock metrics.
METRICS = ("accuracy_first_sentence", "f1_first_sentence", "yes_ratio_first_sentence")


def score(doc: Mapping[str, Any], results: list[str]) -> dict[str, Any]:
    """The scores of one document; `results` holds the model's one reply."""
    return SampleScores(score_reply(doc, results[0]))


def score_reply(doc: Mapping[str, Any], reply: str) -> dict[str, dict[str, Any]]:
    """The stock scores, what the answer says by its first sentence, and what it was compared with."""
    truth = str(doc["answer"]).lower().strip()
    reading = {"said": yes_or_no(reply.strip()), "truth": truth}
    return {
        **pope_process_results(doc, [reply]),
        **dict.fromkeys(METRICS, reading),
        "reference": {key: doc[key] for key in ("question_id", "question", "answer", "image_source") if key in doc},
    }


def logged_document(sample: Mapping[str, Any]) -> dict[str, Any]:
    """The document of a line of lmms-eval's sample log, as far as `score_reply` needs it."""
    return dict(sample["reference"])


def accuracy(samples: Iterable[Sample]) -> float:
    """Share of right answers."""
    right = [sample["said"] == sample["truth"] for sample in samples]
    return sum(right) / len(right) if right else 0.0


def f1(samples: Iterable[Sample]) -> float:
    """F1 of "yes"; 0 where nobody said or meant yes."""
    listed = list(samples)
    hits = sum(sample["said"] == sample["truth"] == "yes" for sample in listed)
    said_or_meant = sum((sample["said"] == "yes") + (sample["truth"] == "yes") for sample in listed)
    return 2 * hits / said_or_meant if said_or_meant else 0.0


def yes_ratio(samples: Iterable[Sample]) -> float:
    """Share of answers that say yes."""
    said = [sample["said"] == "yes" for sample in samples]
    return sum(said) / len(said) if said else 0.0
