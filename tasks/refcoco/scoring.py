"""Score replies to referring expressions.

Every expression of a document is one item whether or not the model gave it a usable mask: an expression without one is
wrong, also where an empty mask would be right, and counted as an error.

Printed IoU metrics and precisions are percentages, as in the papers' tables; ``items`` and ``errors`` are numbers of
expressions, ``complete`` is 1 if every item of the official split was scored and 0 for a part of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flmm_plugin.records import decode_rle, parse_masks_json
from flmm_plugin.tasks.mask_scoring import count_items, match_masks, record_of
from flmm_plugin.tasks.metrics.segmentation import SegmentationSums
from flmm_plugin.tasks.metrics.totals import counted
from flmm_plugin.tasks.sample_log import reference_of, referred_document, reply_of

_IOU_METRICS = ("cIoU", "mIoU", "gIoU")


def score_reply(doc: Mapping[str, Any], reply: Any) -> dict[str, dict[str, Any]]:
    """Return the counts of one document, keyed by metric.

    Args:
        doc: A document of `read_documents`, or of `logged_document`.
        reply: The model's masks JSON, or anything else it said, as a text or as lmms-eval nests it.

    Returns:
        For each IoU metric the items' pixel counts ``{"I": [...], "U": [...]}``; for each ``P@K`` ``{"hits",
        "items"}``; for ``items``, ``errors`` and ``complete`` a ``{"count"}``, the last with the split's
        ``{"expected"}`` size; and ``reference``, what the reply was compared with.
    """
    size = (doc["height"], doc["width"])
    targets = [decode_rle(rle, size) for rle in doc["masks"]]
    predictions = match_masks(parse_masks_json(reply_of(reply), size), doc["expressions"], size)
    counts = count_items(predictions, targets)
    hits = SegmentationSums.of(counts).hits
    return {
        **dict.fromkeys(_IOU_METRICS, record_of(counts)),
        **{f"P@{threshold:g}": {"hits": found, "items": len(counts)} for threshold, found in hits.items()},
        **counted(len(counts), sum(pred is None for pred in predictions), doc["expected_items"]),
        "reference": {"phrases": list(doc["expressions"]), **reference_of(doc, "masks")},
    }


def logged_document(sample: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document of a line of lmms-eval's sample log, as far as `score_reply` needs it."""
    return {**referred_document(sample, "masks"), "expressions": sample["reference"]["phrases"]}
