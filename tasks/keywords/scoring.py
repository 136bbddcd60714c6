"""Score which words and phrases a reply picks, beside noun chunks of the same text.

A reply is lmms-eval's masks JSON whose ``phrases`` have spans in the narrative; masks play no role. A reply that cannot
be read, or that is an error, picks nothing and counts as one error. Results are percentages.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flmm_plugin.records import MasksReply, parse_masks_json
from flmm_plugin.tasks.mask_scoring import percent
from flmm_plugin.tasks.metrics.bootstrap import Ratio, with_interval
from flmm_plugin.tasks.metrics.keywords import PickedCounts, Span, phrase_counts, total, word_counts
from flmm_plugin.tasks.metrics.totals import counted
from flmm_plugin.tasks.sample_log import reply_of

Sample = Mapping[str, Any]

_RATES = ("F1", "recall", "precision")


def score_reply(doc: Mapping[str, Any], reply: Any) -> dict[str, dict[str, Any]]:
    """Return the counts of one narrative, keyed by metric.

    Args:
        doc: Of `flmm_plugin.tasks.png.benchmark`; with ``noun_chunks`` (spans) if these are to be set beside.
        reply: The model's masks JSON, or anything else it said, as a text or as lmms-eval nests it.

    Returns:
        For each rate ``{"right", "picked", "wanted"}``; a ``{"count"}`` for the others; and ``reference``.
    """
    text, wanted = doc["text"], _pairs(doc["spans"])
    parsed = parse_masks_json(reply_of(reply))
    sample = _rates("", text, spans_of(parsed, text), wanted)
    reference: dict[str, Any] = {"text": text, "phrases": doc["expressions"], "spans": [list(one) for one in wanted]}
    if "noun_chunks" in doc:
        chunks = _pairs(doc["noun_chunks"])
        sample |= _rates("spacy_", text, chunks, wanted)
        reference["noun_chunks"] = [list(one) for one in chunks]
    sample |= counted(1, int(parsed.error is not None), doc["expected_narratives"])
    sample["reference"] = {**reference, "image_path": doc["image_path"], "size": [doc["height"], doc["width"]]}
    return sample


def logged_document(sample: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document of a logged sample, as far as `score_reply` needs it."""
    reference = dict(sample["reference"])
    height, width = reference.pop("size")
    expected = sample["complete"]["expected"]
    phrases = reference.pop("phrases")
    return {**reference, "expressions": phrases, "height": height, "width": width, "expected_narratives": expected}


def spans_of(reply: MasksReply, text: str) -> list[Span]:
    """Return where the phrases of a reply are in the text: at their spans, or else where their words next occur."""
    found: list[Span] = []
    position = 0
    for phrase in reply.phrases:
        span = phrase.get("span")
        if isinstance(span, Sequence) and len(span) == 2 and all(isinstance(one, int) for one in span):
            start, end = max(span[0], 0), min(span[1], len(text))
        else:
            words = str(phrase.get("phrase", "")).strip()
            start = text.find(words, position) if words else -1
            end = start + len(words)
            position = end if start >= 0 else position
        if 0 <= start < end:
            found.append((start, end))
    return found


@with_interval(Ratio(lambda sample: (sample["right"], sample["picked"])))
def precision(samples: Iterable[Sample]) -> float | None:
    """Return the share of what was picked that was wanted, percent."""
    return percent(_total(samples).precision)


@with_interval(Ratio(lambda sample: (sample["right"], sample["wanted"])))
def recall(samples: Iterable[Sample]) -> float | None:
    """Return the share of what was wanted that was picked, percent."""
    return percent(_total(samples).recall)


@with_interval(Ratio(lambda sample: (2 * sample["right"], sample["picked"] + sample["wanted"])))
def f1(samples: Iterable[Sample]) -> float | None:
    """Return the harmonic mean of precision and recall, percent."""
    return percent(_total(samples).f1)


def _rates(prefix: str, text: str, picked: Sequence[Span], wanted: Sequence[Span]) -> dict[str, dict[str, Any]]:
    words, phrases = word_counts(text, picked, wanted)._asdict(), phrase_counts(text, picked, wanted)._asdict()
    return {
        **{f"{prefix}{rate}": words for rate in _RATES},
        **{f"{prefix}phrase_{rate}": phrases for rate in _RATES},
    }


def _total(samples: Iterable[Sample]) -> PickedCounts:
    return total(PickedCounts(one["right"], one["picked"], one["wanted"]) for one in samples)


def _pairs(spans: Iterable[Sequence[int]]) -> list[Span]:
    return [(start, end) for start, end in spans]
