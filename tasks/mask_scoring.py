"""Score masks: match a reply's masks to phrases, and aggregate pixel counts to percentages.

Shared by the benchmarks whose items are phrases with one target mask each. A model answers with lmms-eval's masks JSON.
A record has the pixel counts of a document's items as ``{"I": [...], "U": [...]}``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from flmm_plugin.records import BoolMask, MasksReply
from flmm_plugin.tasks.metrics import segmentation
from flmm_plugin.tasks.metrics.bootstrap import Ratio, with_interval
from flmm_plugin.tasks.metrics.segmentation import IoUCounts, failed_counts, iou_counts

Sample = Mapping[str, Any]


def match_masks(reply: MasksReply, expressions: Sequence[str], size: tuple[int, int]) -> list[BoolMask | None]:
    """Return one mask ``bool[H, W]`` per expression, None where the reply has no usable one.

    A reply with ``phrases`` says itself which mask belongs to which: phrase i answers expression i if there are as
    many, else the first unused phrase with the same words does. A reply without phrases is read in order, with one
    exception: to a single expression a detector such as ``sam3`` may answer with several instances; the best-scored
    one is taken, or their union if it scored none.
    """
    masks = reply.masks
    if not reply.phrases and len(expressions) == 1 and len(masks) > 1:
        found = [_best_instance(reply)]
    else:
        indices: Sequence[int | None] = range(len(expressions))
        if reply.phrases:
            indices = _phrase_masks(reply, expressions)
        found = [masks[index] if index is not None and 0 <= index < len(masks) else None for index in indices]
    return [mask if mask is not None and mask.shape == size else None for mask in found]


def _phrase_masks(reply: MasksReply, expressions: Sequence[str]) -> list[int | None]:
    """Index of each expression's mask, as the reply's phrases say."""
    listed = [(str(phrase.get("phrase", "")), phrase.get("mask")) for phrase in reply.phrases]
    pairs = [(words, index if type(index) is int else None) for words, index in listed]
    if len(pairs) == len(expressions):
        return [index for _, index in pairs]
    found: list[int | None] = []
    for expression in expressions:
        position = next((at for at, (words, _) in enumerate(pairs) if words == expression), None)
        found.append(None if position is None else pairs.pop(position)[1])
    return found


def _best_instance(reply: MasksReply) -> BoolMask | None:
    if len(reply.scores) == len(reply.masks):
        return reply.masks[int(np.argmax(reply.scores))]
    if len({mask.shape for mask in reply.masks}) > 1:
        return None
    union: BoolMask = np.logical_or.reduce(reply.masks)
    return union


def count_items(predictions: Sequence[BoolMask | None], targets: Sequence[BoolMask]) -> list[IoUCounts]:
    """Return the pixel counts of each item; a prediction that is None is wrong, whatever its target."""
    return [
        failed_counts(target) if pred is None else iou_counts(pred, target)
        for pred, target in zip(predictions, targets, strict=True)
    ]


def record_of(counts: Sequence[IoUCounts]) -> dict[str, Any]:
    """Return pixel counts as a record has them."""
    return {"I": [item.intersection for item in counts], "U": [item.union for item in counts]}


def counts_of(samples: Iterable[Sample]) -> list[IoUCounts]:
    """Return the pixel counts of all items of these records."""
    return [IoUCounts(*pair) for sample in samples for pair in zip(sample["I"], sample["U"], strict=True)]


def percent(value: float | None) -> float | None:
    """Return 100 times a value, None for None."""
    return None if value is None else 100 * value


def _mean_terms(sample: Sample, empty: float) -> tuple[float, float]:
    counts = counts_of([sample])
    return sum(item.ratio(empty) for item in counts), len(counts)


@with_interval(Ratio(lambda sample: (sum(sample["I"]), sum(sample["U"]))))
def ciou(samples: Iterable[Sample]) -> float:
    """Return cIoU of all items, percent."""
    return 100 * segmentation.ciou(counts_of(samples))


@with_interval(Ratio(lambda sample: _mean_terms(sample, 0.0)))
def miou(samples: Iterable[Sample]) -> float:
    """Return mIoU of all items (0/0 counts 0), percent."""
    return 100 * segmentation.miou(counts_of(samples))


@with_interval(Ratio(lambda sample: _mean_terms(sample, 1.0)))
def giou(samples: Iterable[Sample]) -> float:
    """Return gIoU of all items (0/0 counts 1), percent."""
    return 100 * segmentation.giou(counts_of(samples))


@with_interval(Ratio(lambda sample: (sample["hits"], sample["items"])))
def precision(samples: Iterable[Sample]) -> float:
    """Return the share of items whose IoU reaches the threshold at which hits were counted, percent."""
    listed = list(samples)
    items = sum(sample["items"] for sample in listed)
    return 100 * sum(sample["hits"] for sample in listed) / items if items else 0.0
