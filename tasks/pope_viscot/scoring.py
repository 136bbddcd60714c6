"""POPE's numbers by two readings of the same answers.

The stock task's reading wants the bare word "yes" or "no". LLaVA's script, whose numbers many papers print, looks for a
denial in the first sentence: ``accuracy_first_sentence``, ``f1_first_sentence`` and ``yes_ratio_first_sentence``, which
unlike the stock ``pope_yes_ratio`` counts what the model said and not the truth. All are in 0..1, as the stock ones.

A request that failed is a wrong answer by both readings and has no part in the yes ratios; ``errors`` counts such.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from lmms_eval.tasks.pope.utils import pope_process_results

from flmm_plugin.records import answer_of
from flmm_plugin.tasks.metrics.viscot import yes_or_no
from flmm_plugin.tasks.sample_log import DocumentScores, reply_of

Sample = Mapping[str, Any]

#: What is printed beside the stock metrics.
METRICS = ("accuracy_first_sentence", "f1_first_sentence", "yes_ratio_first_sentence")

_OPPOSITE = {"yes": "no", "no": "yes"}
_RATIOS = ("pope_yes_ratio", "yes_ratio_first_sentence")


def score(doc: Mapping[str, Any], results: list[Any]) -> dict[str, Any]:
    """Return the scores of one document; `results` holds the model's one reply."""
    return DocumentScores(score_reply(doc, reply_of(results)))


def score_reply(doc: Mapping[str, Any], reply: Any) -> dict[str, dict[str, Any]]:
    """Return the stock scores, what the answer says by its first sentence, and what it was compared with."""
    truth = str(doc["answer"]).lower().strip()
    answer = answer_of(reply)
    # The stock scores know no failure: neither word would be left out of their recall.
    said = _OPPOSITE[truth] if answer is None else answer
    reading = {"said": yes_or_no(said.strip()), "truth": truth}
    scores = {**pope_process_results(doc, [said]), **dict.fromkeys(METRICS, reading)}
    return {
        **{name: one for name, one in scores.items() if answer is not None or name not in _RATIOS},
        "errors": {"count": int(answer is None)},
        "reference": {key: doc[key] for key in ("question_id", "question", "answer", "image_source") if key in doc},
    }


def logged_document(sample: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document of a line of lmms-eval's sample log, as far as `score_reply` needs it."""
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
