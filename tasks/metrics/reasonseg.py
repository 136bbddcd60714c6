"""gIoU and cIoU of reasoning segmentation, as the benchmark's own evaluation counts them.

One item is one picture with one query, one predicted and one target mask. Pixels that the annotators marked as *ignore*
are taken out of both masks first. Peers' rules that change numbers:

=======================  ==========================================================================================
here                     rule
=======================  ==========================================================================================
`giou`                   mean of I / (U + 1e-5); an item whose two masks are empty counts 1 (LISA, the benchmark's)
`ciou`                   sum of I / (sum of U + 1e-10) in pixels (LISA)
`ciou_of_shares`         the same sums of I and U each divided by the picture's pixels (F-LMM's script): large pictures
                         weigh no more than small ones
=======================  ==========================================================================================

LISA's tables were printed from float32 sums, and with a mean over n + 1e-5 items: they are about one part in 1e5 n low.
Here sums are exact. Masks are ``[H, W]`` in the image frame; all results are in 0..1.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

_GIOU_EPSILON, _CIOU_EPSILON = 1e-5, 1e-10


class ReasonCounts(NamedTuple):
    """Pixels of one item outside the ignored region: in both masks, in either; and of the whole picture."""

    intersection: int
    union: int
    pixels: int


def reason_counts(
    pred: npt.NDArray[Any], target: npt.NDArray[Any], ignore: npt.NDArray[Any] | None = None
) -> ReasonCounts:
    """Count one item.

    Args:
        pred: Predicted mask.
        target: Annotated mask.
        ignore: Pixels that count for neither; None: there are none.

    Raises:
        ValueError: The masks differ in size; resize the prediction to the picture first.

    >>> pred, target = np.array([[1, 1, 1, 0]]), np.array([[0, 1, 0, 1]])
    >>> reason_counts(pred, target, np.array([[0, 0, 1, 0]]))
    ReasonCounts(intersection=1, union=3, pixels=4)
    """
    shapes = {pred.shape, target.shape, *(() if ignore is None else (ignore.shape,))}
    if len(shapes) > 1 or pred.ndim != 2:
        raise ValueError(f"masks of shapes {sorted(shapes)}: give [H, W] masks of the same picture")
    counted = np.ones(pred.shape, dtype=bool) if ignore is None else ~ignore.astype(bool)
    on_pred, on_target = pred.astype(bool) & counted, target.astype(bool) & counted
    both, either = np.count_nonzero(on_pred & on_target), np.count_nonzero(on_pred | on_target)
    return ReasonCounts(int(both), int(either), int(pred.size))


def item_giou(item: ReasonCounts) -> float:
    """What one item adds to the mean of `giou`.

    >>> item_giou(ReasonCounts(0, 0, 9)), round(item_giou(ReasonCounts(5, 5, 9)), 9)
    (1.0, 0.999998)
    """
    return item.intersection / (item.union + _GIOU_EPSILON) if item.union else 1.0


def giou(items: Iterable[ReasonCounts]) -> float:
    """Mean of the items' IoU, 0 without items."""
    values = [item_giou(item) for item in items]
    return sum(values) / len(values) if values else 0.0


def ciou(items: Iterable[ReasonCounts]) -> float:
    """Sum of intersections over sum of unions, in pixels; large objects weigh most."""
    listed = list(items)
    return sum(item.intersection for item in listed) / (sum(item.union for item in listed) + _CIOU_EPSILON)


def ciou_of_shares(items: Iterable[ReasonCounts]) -> float:
    """Sum of intersections over sum of unions, each as a share of its picture.

    >>> round(ciou_of_shares([ReasonCounts(1, 2, 10), ReasonCounts(100, 100, 1000)]), 6)
    0.666667
    """
    listed = list(items)
    both = sum(item.intersection / item.pixels for item in listed)
    return both / (sum(item.union / item.pixels for item in listed) + _CIOU_EPSILON)
