"""From a model's reply to counts, and from the counts of all documents to the printed numbers.

A model answers with lmms-eval's masks JSON. Every phrase of a document is one item whether or not the model gave it a
usable mask: one without has IoU 0 and no pixel right, and is counted as an error. A document whose *target* cannot be
read has no items; its phrases are counted as skipped.

Average recall, accuracies and cIoU are percentages, as in the papers' tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flmm_plugin.errors import BadAnnotation
from flmm_plugin.records import encode_rle, parse_masks_json
from flmm_plugin.tasks.metrics import segmentation
from flmm_plugin.tasks.metrics.bootstrap import Ratio
from flmm_plugin.tasks.metrics.png import RecallSums, pixel_accuracy
from flmm_plugin.tasks.metrics.segmentation import IoUCounts
from flmm_plugin.tasks.png.docs import targets_of
from flmm_plugin.tasks.refcoco.scoring import count_items, match_masks

Sample = Mapping[str, Any]

#: Printed name -> kind of item, None for all.
RECALLS: Mapping[str, str | None] = {
    "AR": None, "AR_thing": "thing", "AR_stuff": "stuff", "AR_singular": "singular", "AR_plural": "plural",
}  # fmt: skip

#: In the order of the README; the YAML template lists the same ones.
METRICS = (*RECALLS, "acc@0.5", "pixel_acc", "cIoU", "items", "errors", "skipped_phrases", "skipped_narratives",
           "complete", "recall_curve")  # fmt: skip


def score_reply(doc: Mapping[str, Any], reply: str) -> dict[str, dict[str, Any]]:
    """Counts of one document, keyed by metric.

    Args:
        doc: Of `flmm_plugin.tasks.png.docs`.
        reply: The model's masks JSON, or anything else it said.

    Returns:
        For each recall ``{"I": [...], "U": [...]}`` over the items of its kind, and so for ``acc@0.5`` and ``cIoU``
        over all; ``pixel_acc`` with ``pixels`` of the picture too; ``recall_curve`` with the ``kinds`` of the items;
        a ``{"count"}`` for the others; and ``reference``, what the reply was compared with.

    Raises:
        BadAnnotation: The panoptic map cannot be read: there is nothing to compare with.
    """
    targets = targets_of(doc)
    size = (doc["height"], doc["width"])
    predictions = match_masks(parse_masks_json(reply, size), doc["expressions"], size)
    counts = count_items(predictions, targets)
    every = _pixels(counts)
    sample: dict[str, dict[str, Any]] = {
        name: _pixels([item for item, kinds in zip(counts, doc["kinds"], strict=True) if kind in (None, *kinds)])
        for name, kind in RECALLS.items()
    }
    sample["acc@0.5"] = sample["cIoU"] = every
    pixels = size[0] * size[1]
    # An empty mask has most pixels right; a failed request has none.
    unions = [pixels if pred is None else item.union for pred, item in zip(predictions, counts, strict=True)]
    sample["pixel_acc"] = {**every, "U": unions, "pixels": pixels}
    sample["recall_curve"] = {**every, "kinds": doc["kinds"]}
    sample["items"] = {"count": len(counts)}
    sample["errors"] = {"count": sum(pred is None for pred in predictions)}
    sample["skipped_phrases"] = {"count": 0, "left_out": doc["left_out"]["phrases"]}
    sample["skipped_narratives"] = {"count": 0, "left_out": doc["left_out"]["narratives"]}
    sample["complete"] = {"count": len(counts), "expected": doc["expected_items"]}
    sample["reference"] = {
        "phrases": doc["expressions"],
        "masks": [encode_rle(target) for target in targets],
        "size": list(size),
        "image_path": doc["image_path"],
        "kinds": doc["kinds"],
    }
    return sample


def skipped(doc: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What stands for a document whose target cannot be read."""
    return {
        "items": {"count": 0},
        "errors": {"count": 0},
        "skipped_phrases": {"count": len(doc["expressions"]), "left_out": doc["left_out"]["phrases"]},
        "skipped_narratives": {"count": 1, "left_out": doc["left_out"]["narratives"]},
        "complete": {"count": 0, "expected": doc["expected_items"]},
    }


def logged_document(sample: Mapping[str, Any]) -> dict[str, Any]:
    """The document of a logged sample, as far as `score_reply` needs it."""
    reference = sample["reference"]
    height, width = reference["size"]
    return {
        "image_path": reference["image_path"],
        "height": height,
        "width": width,
        "expressions": reference["phrases"],
        "masks": reference["masks"],
        "kinds": reference["kinds"],
        "expected_items": sample["complete"]["expected"],
        "left_out": {
            "phrases": sample["skipped_phrases"]["left_out"],
            "narratives": sample["skipped_narratives"]["left_out"],
        },
    }


def try_score(doc: Mapping[str, Any], reply: str) -> tuple[dict[str, dict[str, Any]], BadAnnotation | None]:
    """`score_reply`, or `skipped` and why."""
    try:
        return score_reply(doc, reply), None
    except BadAnnotation as exc:
        return skipped(doc), exc


def average_recall(samples: Iterable[Sample]) -> float | None:
    """Percent average recall of the samples' items, None if there are none."""
    return _percent(RecallSums.of(_items(samples)).average_recall())


def accuracy(samples: Iterable[Sample]) -> float | None:
    """Percent of items with IoU > 0.5."""
    return _percent(RecallSums.of(_items(samples)).accuracy())


def ciou(samples: Iterable[Sample]) -> float:
    """Percent cIoU of all items."""
    return 100 * segmentation.ciou(_items(samples))


def pixel_acc(samples: Iterable[Sample]) -> float | None:
    """Percent of pixels that are rightly in or out, mean over items."""
    listed = list(samples)
    return _percent(pixel_accuracy(_items(listed), [one["pixels"] for one in listed for _ in one["I"]]))


def skips(samples: Iterable[Sample]) -> int:
    """What has no score: left out when the file was read (the same in each sample), or for a damaged map."""
    listed = list(samples)
    damaged = sum(int(sample["count"]) for sample in listed)
    return damaged + max((int(sample["left_out"]) for sample in listed), default=0)


def curves(samples: Iterable[Sample]) -> dict[str, RecallSums]:
    """The sums of each printed recall, from samples of ``recall_curve``."""
    sums = {name: RecallSums() for name in RECALLS}
    for sample in samples:
        for item, kinds in zip(_items([sample]), sample["kinds"], strict=True):
            for name, kind in RECALLS.items():
                if kind in (None, *kinds):
                    sums[name].update(item)
    return sums


def _pixels(counts: Sequence[IoUCounts]) -> dict[str, Any]:
    return {"I": [item.intersection for item in counts], "U": [item.union for item in counts]}


def _items(samples: Iterable[Sample]) -> list[IoUCounts]:
    return [IoUCounts(*pair) for sample in samples for pair in zip(sample["I"], sample["U"], strict=True)]


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _recall_terms(sample: Sample) -> tuple[float, float]:
    sums = RecallSums.of(_items([sample]))
    return (sums.average_recall() or 0.0) * sums.items, sums.items


def _accuracy_terms(sample: Sample) -> tuple[float, float]:
    sums = RecallSums.of(_items([sample]))
    return sums.over_half, sums.items


def _pixel_terms(sample: Sample) -> tuple[float, float]:
    wrong = sum(item.union - item.intersection for item in _items([sample]))
    return len(sample["I"]) - wrong / sample["pixels"], len(sample["I"])


#: How intervals are drawn; the values themselves come from the functions above.
STATISTICS: Mapping[str, Ratio] = {
    **dict.fromkeys(RECALLS, Ratio(_recall_terms)),
    "acc@0.5": Ratio(_accuracy_terms),
    "pixel_acc": Ratio(_pixel_terms),
    "cIoU": Ratio(lambda sample: (sum(sample["I"]), sum(sample["U"]))),
}
