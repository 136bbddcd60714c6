"""Score masks of reasoning segmentation.

A model answers with lmms-eval's masks JSON; several masks are one prediction, their union. Every picture counts whether
or not the model gave it a usable mask: one without is counted as an error and scored as an empty prediction that is
wrong, also where the target is empty. (One peer leaves such pictures out, which raises cIoU.) Printed numbers are
percentages.

The test split is reported thrice: short queries, long ones, and all. The long and short metrics exist for that split
alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flmm_plugin.records import BoolMask, decode_rle, parse_masks_json
from flmm_plugin.tasks.mask_scoring import counts_of, record_of
from flmm_plugin.tasks.metrics.bootstrap import Ratio, Sample, with_interval
from flmm_plugin.tasks.metrics.segmentation import ciou_of_shares, iou_counts, reasoning_giou, reasoning_iou
from flmm_plugin.tasks.metrics.totals import counted
from flmm_plugin.tasks.sample_log import reference_of, referred_document, reply_of

#: Printed for all pictures, and on the test split for short and long queries too.
IOU_METRICS = ("gIoU", "cIoU", "cIoU_shares")


def score_reply(doc: Mapping[str, Any], reply: Any) -> dict[str, dict[str, Any]]:
    """Return the counts of one picture, keyed by metric.

    Args:
        doc: A document of `read_documents`, or of `logged_document`.
        reply: The model's masks JSON, or anything else it said, as a text or as lmms-eval nests it.

    Returns:
        For each IoU metric ``{"I": [pixels], "U": [pixels], "pixels": of the picture}``, of which pixels of the ignored
        region are no part; ``items``, ``errors`` and ``complete``; ``reference``, what the reply was compared with.
    """
    size = (doc["height"], doc["width"])
    prediction, usable = read_prediction(reply_of(reply), size)
    item = iou_counts(prediction, decode_rle(doc["mask"], size), decode_rle(doc["ignore"], size))
    if not usable and item.union == 0:
        item = item._replace(union=1)  # a failed request is no right empty mask
    counts = {**record_of([item]), "pixels": size[0] * size[1]}
    endings = [""]
    if doc["split"] == "test":
        endings.append("_long" if doc["is_sentence"] else "_short")
    return {
        **{f"{name}{ending}": counts for ending in endings for name in IOU_METRICS},
        **counted(1, int(not usable), doc["expected_items"]),
        "reference": {
            "phrases": [doc["query"]],
            "masks": [doc["mask"]],
            "ignore": [doc["ignore"]],
            **reference_of(doc, "orientation", "split", "is_sentence"),
        },
    }


def logged_document(sample: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document of a line of lmms-eval's sample log, as far as `score_reply` needs it."""
    reference = sample["reference"]
    return {
        **referred_document(sample, "split", "is_sentence"),
        "orientation": reference.get("orientation"),
        "query": reference["phrases"][0],
        "mask": reference["masks"][0],
        "ignore": reference["ignore"][0],
    }


def read_prediction(reply: str, size: tuple[int, int]) -> tuple[BoolMask, bool]:
    """Return the union of a reply's masks, ``bool[H, W]``, and whether it has any and all are of the picture's size."""
    said = parse_masks_json(reply, size)
    fitting = [mask for mask in said.masks if mask.shape == size]
    union = np.zeros(size, dtype=bool)
    for mask in fitting:
        union |= mask
    return union, said.error is None and bool(fitting) and len(fitting) == len(said.masks)


def _shares(sample: Sample) -> tuple[float, float]:
    return sample["I"][0] / sample["pixels"], sample["U"][0] / sample["pixels"]


@with_interval(Ratio(lambda sample: (reasoning_iou(counts_of([sample])[0]), 1)))
def giou(samples: Sequence[Sample]) -> float:
    """Return gIoU as ReasonSeg's evaluation computes it, percent."""
    return 100 * reasoning_giou(counts_of(samples))


@with_interval(Ratio(_shares))
def ciou_shares(samples: Sequence[Sample]) -> float:
    """Return cIoU of shares of the pictures, percent."""
    return 100 * ciou_of_shares(counts_of(samples), [sample["pixels"] for sample in samples])
