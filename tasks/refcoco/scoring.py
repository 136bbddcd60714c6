"""From a model's reply to counts, and from the counts of all documents to the printed numbers.

A model answers with lmms-eval's masks JSON. Every expression of a document is one item whether or not the model gave
it a usable mask: an expression without one is wrong, also where an empty mask would be right, and counted as an error.

Printed IoU metrics and precisions are percentages, as in the papers' tables; ``items`` and ``errors`` are numbers of
expressions, ``complete`` is 1 if every item of the official split was scored and 0 for a part of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from flmm_plugin.records import BoolMask, MasksReply, decode_rle, parse_masks_json
from flmm_plugin.tasks.metrics.bootstrap import Ratio
from flmm_plugin.tasks.metrics.segmentation import THRESHOLDS, IoUCounts, SegmentationSums, failed_counts, iou_counts

Sample = Mapping[str, Any]

_IOU_METRICS = ("cIoU", "mIoU", "gIoU")


def score_reply(doc: Mapping[str, Any], reply: str) -> dict[str, dict[str, Any]]:
    """Counts of one document, keyed by metric.

    Args:
        doc: Of `flmm_plugin.tasks.refcoco.docs`.
        reply: The model's masks JSON, or anything else it said.

    Returns:
        For each IoU metric the items' pixel counts ``{"I": [...], "U": [...]}``; for each ``P@K`` ``{"hits",
        "items"}``; for ``items``, ``errors`` and ``complete`` a ``{"count"}``, the last with the split's
        ``{"expected"}`` size.
    """
    size = (doc["height"], doc["width"])
    targets = [decode_rle(rle, size) for rle in doc["masks"]]
    predictions = match_masks(parse_masks_json(reply, size), doc["expressions"], size)
    counts = count_items(predictions, targets)
    pixels = {"I": [item.intersection for item in counts], "U": [item.union for item in counts]}
    sample: dict[str, dict[str, Any]] = dict.fromkeys(_IOU_METRICS, pixels)
    for threshold, hits in SegmentationSums.of(counts).hits.items():
        sample[f"P@{threshold:g}"] = {"hits": hits, "items": len(counts)}
    sample["items"] = {"count": len(counts)}
    sample["errors"] = {"count": sum(pred is None for pred in predictions)}
    sample["complete"] = {"count": len(counts), "expected": doc["expected_items"]}
    sample["reference"] = {
        "phrases": list(doc["expressions"]),
        "masks": list(doc["masks"]),
        "size": list(size),
        "image_path": doc.get("image_path"),
    }
    return sample


def logged_document(sample: Mapping[str, Any]) -> dict[str, Any]:
    """The document of a line of lmms-eval's sample log, as far as `score_reply` needs it."""
    reference = sample["reference"]
    return {
        "expressions": reference["phrases"],
        "masks": reference["masks"],
        "height": reference["size"][0],
        "width": reference["size"][1],
        "image_path": reference["image_path"],
        "expected_items": sample["complete"]["expected"],
    }


def count_items(predictions: Sequence[BoolMask | None], targets: Sequence[BoolMask]) -> list[IoUCounts]:
    """Pixels of each item; None: it has no usable mask."""
    return [
        failed_counts(target) if pred is None else iou_counts(pred, target)
        for pred, target in zip(predictions, targets, strict=True)
    ]


def match_masks(reply: MasksReply, expressions: Sequence[str], size: tuple[int, int]) -> list[BoolMask | None]:
    """One mask ``bool[H, W]`` per expression, None where the reply has no usable one.

    A reply with ``phrases`` says itself which mask belongs to which: phrase i answers expression i if there are as
    many, else the first unused phrase with the same words does. A reply without phrases is read in order, with one
    exception: to a single expression a detector such as ``sam3`` may answer with several instances; the best-scored
    one is taken, or their union if it scored none.
    """
    return [mask if mask is not None and mask.shape == size else None for mask in _assign(reply, expressions)]


def _assign(reply: MasksReply, expressions: Sequence[str]) -> list[BoolMask | None]:
    masks = reply.masks
    if reply.phrases:
        indices = _phrase_masks(reply, expressions)
        return [masks[index] if index is not None and 0 <= index < len(masks) else None for index in indices]
    if len(expressions) == 1 and len(masks) > 1:
        return [_best_instance(reply)]
    return [masks[index] if index < len(masks) else None for index in range(len(expressions))]


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


def ciou(samples: Iterable[Sample]) -> float:
    """Percent cIoU of all items."""
    return 100 * _sums(samples).compute()["cIoU"]


def miou(samples: Iterable[Sample]) -> float:
    """Percent mIoU of all items (0/0 counts 0)."""
    return 100 * _sums(samples).compute()["mIoU"]


def giou(samples: Iterable[Sample]) -> float:
    """Percent gIoU of all items (0/0 counts 1)."""
    return 100 * _sums(samples).compute()["gIoU"]


def precision(samples: Iterable[Sample]) -> float:
    """Share of items whose IoU reaches the threshold at which `score_reply` counted the hits, percent."""
    hits = items = 0
    for sample in samples:
        hits, items = hits + sample["hits"], items + sample["items"]
    return 100 * hits / items if items else 0.0


def total(samples: Iterable[Sample]) -> int:
    """Sum of the documents' counts."""
    return sum(sample["count"] for sample in samples)


def complete(samples: Iterable[Sample]) -> int:
    """1 if the items are as many as the official split has, else 0; 0 as well if nobody published its size."""
    listed = list(samples)
    expected = {sample["expected"] for sample in listed}
    return int(expected == {total(listed)})


def _sums(samples: Iterable[Sample]) -> SegmentationSums:
    return SegmentationSums.of(
        IoUCounts(intersection, union)
        for sample in samples
        for intersection, union in zip(sample["I"], sample["U"], strict=True)
    )


def _mean_terms(sample: Sample, empty: float) -> tuple[float, float]:
    pairs = list(zip(sample["I"], sample["U"], strict=True))
    return sum(one / two if two else empty for one, two in pairs), len(pairs)


#: For confidence intervals; the printed numbers come from the functions above.
STATISTICS: Mapping[str, Ratio] = {
    "cIoU": Ratio(lambda sample: (sum(sample["I"]), sum(sample["U"]))),
    "mIoU": Ratio(lambda sample: _mean_terms(sample, 0.0)),
    "gIoU": Ratio(lambda sample: _mean_terms(sample, 1.0)),
    **{f"P@{threshold:g}": Ratio(lambda sample: (sample["hits"], sample["items"])) for threshold in THRESHOLDS},
}

#: Metric names in the order of the README; the YAML template lists the same ones.
METRICS = (*_IOU_METRICS, *(f"P@{threshold:g}" for threshold in THRESHOLDS), "items", "errors", "complete")
