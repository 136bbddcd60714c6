"""From a model's reply to counts, and from the counts of all pictures to the printed numbers.

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
from flmm_plugin.tasks.metrics import reasonseg
from flmm_plugin.tasks.metrics.bootstrap import Ratio, Sample

#: Printed for all pictures, and on the test split for short and long queries too.
IOU_METRICS = ("gIoU", "cIoU", "cIoU_shares")


def score_reply(doc: Mapping[str, Any], reply: str) -> dict[str, dict[str, Any]]:
    """Counts of one picture, keyed by metric.

    Args:
        doc: Of `flmm_plugin.tasks.reasonseg.docs`.
        reply: The model's masks JSON, or anything else it said.

    Returns:
        For each IoU metric ``{"I": [pixels], "U": [pixels], "pixels": of the picture}``, of which pixels of the ignored
        region are no part; ``items``, ``errors`` and ``complete``; ``reference``, what the reply was compared with.
    """
    size = (doc["height"], doc["width"])
    prediction, usable = read_prediction(reply, size)
    item = reasonseg.reason_counts(prediction, decode_rle(doc["mask"], size), decode_rle(doc["ignore"], size))
    if not usable and item.union == 0:
        item = item._replace(union=1)  # a failed request is no right empty mask
    counts = {"I": [item.intersection], "U": [item.union], "pixels": item.pixels}
    sample: dict[str, dict[str, Any]] = dict.fromkeys(IOU_METRICS, counts)
    if doc["split"] == "test":
        length = "long" if doc["is_sentence"] else "short"
        sample.update(dict.fromkeys((f"{name}_{length}" for name in IOU_METRICS), counts))
    sample["items"] = {"count": 1}
    sample["errors"] = {"count": int(not usable)}
    sample["complete"] = {"count": 1, "expected": doc["expected_items"]}
    sample["reference"] = {
        "phrases": [doc["query"]],
        "masks": [doc["mask"]],
        "ignore": [doc["ignore"]],
        "size": list(size),
        "image_path": doc.get("image_path"),
        "orientation": doc.get("orientation"),
        "split": doc["split"],
        "is_sentence": doc["is_sentence"],
    }
    return sample


def logged_document(sample: Mapping[str, Any]) -> dict[str, Any]:
    """The document of a line of lmms-eval's sample log, as far as `score_reply` needs it."""
    reference = sample["reference"]
    return {
        **{key: reference[key] for key in ("image_path", "split", "is_sentence")},
        "orientation": reference.get("orientation"),
        "query": reference["phrases"][0],
        "mask": reference["masks"][0],
        "ignore": reference["ignore"][0],
        "height": reference["size"][0],
        "width": reference["size"][1],
        "expected_items": sample["complete"]["expected"],
    }


def read_prediction(reply: str, size: tuple[int, int]) -> tuple[BoolMask, bool]:
    """The union of a reply's masks, ``bool[H, W]``, and whether it has any and all are of the picture's size."""
    said = parse_masks_json(reply, size)
    fitting = [mask for mask in said.masks if mask.shape == size]
    union = np.zeros(size, dtype=bool)
    for mask in fitting:
        union |= mask
    return union, said.error is None and bool(fitting) and len(fitting) == len(said.masks)


def _counts(sample: Sample) -> reasonseg.ReasonCounts:
    return reasonseg.ReasonCounts(sample["I"][0], sample["U"][0], sample["pixels"])


def _shares(sample: Sample) -> tuple[float, float]:
    item = _counts(sample)
    return item.intersection / item.pixels, item.union / item.pixels


# For intervals; without the epsilons that the metrics themselves have, which no printed digit shows.
_RATIOS = {
    "gIoU": Ratio(lambda sample: (reasonseg.item_giou(_counts(sample)), 1)),
    "cIoU": Ratio(lambda sample: (sample["I"][0], sample["U"][0])),
    "cIoU_shares": Ratio(_shares),
}
STATISTICS: Mapping[str, Ratio] = {
    f"{name}{part}": ratio for part in ("", "_short", "_long") for name, ratio in _RATIOS.items()
}


def giou(samples: Sequence[Sample]) -> float:
    """Percent gIoU."""
    return 100 * reasonseg.giou(map(_counts, samples))


def ciou(samples: Sequence[Sample]) -> float:
    """Percent cIoU of pixels."""
    return 100 * reasonseg.ciou(map(_counts, samples))


def ciou_shares(samples: Sequence[Sample]) -> float:
    """Percent cIoU of shares of the pictures."""
    return 100 * reasonseg.ciou_of_shares(map(_counts, samples))


#: Metric names in the order of the README; the YAML templates list the same ones.
VAL_METRICS = (*IOU_METRICS, "items", "errors", "complete")
TEST_METRICS = (
    *(f"{name}{part}" for part in ("", "_short", "_long") for name in IOU_METRICS),
    *("items", "errors", "complete"),
)
