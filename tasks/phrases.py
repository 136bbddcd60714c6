"""Documents and scores of tasks whose phrases may mean several objects, or nothing: gRefCOCO, and data of one's own.

The *unit* says what a document is: ``phrase``, or ``picture`` with all phrases about it, which are then grounded in one
pass. In both, one *item* is one phrase.

A reply without masks that is no failure says that nothing is there. To a single phrase, several masks are one answer,
their union.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from flmm_plugin.datasets.phrases import PhraseItem
from flmm_plugin.datasets.reader import SplitReader, known_name
from flmm_plugin.images import Orientation
from flmm_plugin.records import BoolMask, decode_rle, parse_masks_json
from flmm_plugin.tasks.documents import Documents, numbered, picture_fields
from flmm_plugin.tasks.mask_scoring import Sample, match_masks, percent
from flmm_plugin.tasks.metrics import grefcoco
from flmm_plugin.tasks.metrics.bootstrap import Ratio, with_interval
from flmm_plugin.tasks.metrics.grefcoco import PhraseCounts, phrase_counts
from flmm_plugin.tasks.metrics.totals import counted
from flmm_plugin.tasks.sample_log import reference_of, referred_document, reply_of

UNITS = ("phrase", "picture")

#: The K of P@K; the benchmark's own evaluator has the last three.
THRESHOLDS = (0.5, 0.7, 0.8, 0.9)

#: Metrics that are made of the items' counts.
COUNTED = ("gIoU", "cIoU", "N_acc", "T_acc")


def phrase_documents(
    dataset: SplitReader[PhraseItem], unit: str, *, orientation: Orientation, expected: int | None, present: str = ""
) -> Documents:
    """Make documents of phrases.

    Keys: ``image_id``; ``image_path``, ``orientation``; ``height``, ``width`` in pixels; per item ``expressions`` (in
    lower case), ``ann_ids`` (a list each; empty: nothing is meant) and ``masks`` (the union of the objects, COCO
    run-length codes); ``expected_items``; ``expression``, in documents of one phrase.

    Args:
        dataset: Its items are the phrases of a split.
        unit: What a document is, one of `UNITS`.
        orientation: How the pictures are opened.
        expected: Official number of phrases of the split, None if unknown.
        present: What the data has where it has nothing of the split.

    Raises:
        UnknownArgument: There is no such unit.
    """
    entries = [[item] for item in dataset]
    if known_name("unit of documents", unit, UNITS) == "picture":
        entries = _by_picture(dataset)

    def build(items: Sequence[PhraseItem]) -> dict[str, Any]:
        expressions = [item.phrase.strip().lower() for item in items]
        return {
            **picture_fields(items[0], orientation),
            "image_id": items[0].image_id,
            "ann_ids": [list(item.ann_ids) for item in items],
            "expressions": expressions,
            "masks": [item.rle() for item in items],
            "expected_items": expected,
            **({"expression": expressions[0]} if len(items) == 1 else {}),
        }

    return Documents(dataset, build, entries=entries, expected_items=expected, items=len(dataset), present=present)


def _by_picture(items: Iterable[PhraseItem]) -> list[list[PhraseItem]]:
    pictures: dict[int, list[PhraseItem]] = {}
    for item in items:
        pictures.setdefault(item.image_id, []).append(item)
    return list(pictures.values())


def phrases_prompt(doc: Mapping[str, Any]) -> str:
    """Return a prompt that asks for one mask per expression, and for an empty one where nothing is meant."""
    return (
        "Segment everything that each of these means in the image. Answer with one mask per line, in this order; where "
        f"nothing in the image is meant, with an empty one:\n{numbered(doc['expressions'])}"
    )


def target_of(doc: Mapping[str, Any]) -> str:
    """Name the expressions, which stand as the target in sample logs; the target masks are in the document."""
    return "; ".join(doc["expressions"])


def score_phrases(
    doc: Mapping[str, Any], reply: Any, metrics: Sequence[str] = COUNTED, smallest: int = 1
) -> dict[str, dict[str, Any]]:
    """Return the counts of one document, keyed by metric.

    Args:
        doc: A document of `phrase_documents`, or of `logged_document`.
        reply: The model's masks JSON, or anything else it said, as a text or as lmms-eval nests it.
        metrics: Names of the metrics that are made of the items' counts.
        smallest: Pixels that a prediction needs, else it says that nothing is meant.

    Returns:
        For each of them ``{"I": [pixels], "U": [pixels], "target": [means something], "found": [prediction is not
        empty]}``; for each ``P@K`` ``{"hits", "items"}``, of the phrases that mean something; ``items``, ``errors``
        and ``complete``; ``reference``, what the reply was compared with.
    """
    size = (doc["height"], doc["width"])
    predictions = read_predictions(reply_of(reply), doc["expressions"], size)
    counts = [
        phrase_counts(prediction, decode_rle(mask, size), bool(ids), smallest)
        for prediction, mask, ids in zip(predictions, doc["masks"], doc["ann_ids"], strict=True)
    ]
    record = {name: [getattr(item, field) for item in counts] for name, field in _FIELDS.items()}
    meant = [item.iou for item in counts if item.target]
    return {
        **dict.fromkeys(metrics, record),
        **{f"P@{k:g}": {"hits": sum(iou >= k for iou in meant), "items": len(meant)} for k in THRESHOLDS},
        **counted(len(counts), sum(one is None for one in predictions), doc["expected_items"]),
        "reference": {"phrases": list(doc["expressions"]), **reference_of(doc, "masks", "ann_ids")},
    }


_FIELDS = {"I": "intersection", "U": "union", "target": "target", "found": "found"}


def logged_document(sample: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document of a line of lmms-eval's sample log, as far as `score_phrases` needs it."""
    return {**referred_document(sample, "masks", "ann_ids"), "expressions": sample["reference"]["phrases"]}


def read_predictions(reply: str, expressions: Sequence[str], size: tuple[int, int]) -> list[BoolMask | None]:
    """Return one mask ``bool[H, W]`` per expression; None where the reply has no usable one."""
    said = parse_masks_json(reply, size)
    if said.error is not None:
        return [None] * len(expressions)
    if not said.masks and not said.phrases:
        return [np.zeros(size, dtype=bool) for _ in expressions]
    if not said.phrases and len(expressions) == 1:
        fit = all(mask.shape == size for mask in said.masks)
        return [np.logical_or.reduce(said.masks) if fit else None]
    return match_masks(said, expressions, size)


def counts_of(samples: Iterable[Sample]) -> list[PhraseCounts]:
    """Return the counts of all items of these records."""
    return [PhraseCounts(*item) for sample in samples for item in zip(*(sample[name] for name in _FIELDS), strict=True)]


def _sums(sample: Sample, name: str, of: bool | None = None, want: bool = True) -> tuple[float, float]:
    """Return how many items of a record have a field as wanted, and how many there are."""
    items = [item for item in counts_of([sample]) if of is None or item.target is of]
    return sum(getattr(item, name) is want for item in items), len(items)


@with_interval(Ratio(lambda sample: (sum(item.iou for item in counts_of([sample])), len(sample["I"]))))
def giou(samples: Sequence[Sample]) -> float:
    """Return gIoU, percent."""
    return 100 * grefcoco.giou(counts_of(samples))


@with_interval(Ratio(lambda sample: _sums(sample, "found", of=False, want=False)))
def n_acc(samples: Sequence[Sample]) -> float | None:
    """Return N-acc, percent; None if every phrase means something."""
    return percent(grefcoco.n_acc(counts_of(samples)))


@with_interval(Ratio(lambda sample: _sums(sample, "found", of=True)))
def t_acc(samples: Sequence[Sample]) -> float | None:
    """Return T-acc, percent; None if no phrase means anything."""
    return percent(grefcoco.t_acc(counts_of(samples)))
