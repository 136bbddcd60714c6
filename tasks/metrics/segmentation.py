"""Count pixels of mask pairs and compute IoU metrics: counts are summed, and the division comes last.

One *item* is one phrase or query with one predicted and one target mask. Which paper calls what by which name:

=====================================  ==================  =================================================
name in papers                         function            rule
=====================================  ==================  =================================================
cIoU, oIoU, overall IoU                `ciou`              sum of intersections / sum of unions
mIoU (LAVT, mmdetection, F-LMM)        `miou`              mean of I/U, an item with U = 0 counts 0
gIoU (LISA, ReLA), mIoU of GLaMM       `giou`              mean of I/U, an item with U = 0 counts 1
P@K, Pr@K (LAVT: IoU >= K)             `SegmentationSums`  share of items with IoU >= K; U = 0 counts IoU 0
gIoU of ReasonSeg                      `reasoning_giou`    mean of I/(U + 1e-5), an item with U = 0 counts 1
cIoU of ReasonSeg (F-LMM's script)     `ciou_of_shares`    as `ciou`, each I and U as share of its picture
=====================================  ==================  =================================================

LISA's ReasonSeg tables were printed from float32 sums, and with a mean over n + 1e-5 items: they are about one part in
1e5 n low. Here sums are exact.

Shapes: masks are ``[H, W]`` in the image frame, any dtype; a pixel is on where it is not 0. All results are in 0..1.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

#: The K of P@K that papers report.
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)

# Ratios are summed as whole numbers of 2**-60: integers add up to the same bits in any order and over any number of
# ranks, and the rounding of one item (1e-18) is far below that of the double that a result is returned in.
_FIXED_POINT_BITS = 60

_REASONING_EPSILON = 1e-5


class IoUCounts(NamedTuple):
    """Pixels of one item: in both masks, and in either."""

    intersection: int
    union: int

    def ratio(self, empty: float = 0.0) -> float:
        """Intersection over union; `empty` where both masks are empty."""
        return self.intersection / self.union if self.union else empty


def iou_counts(pred: npt.NDArray[Any], target: npt.NDArray[Any], ignore: npt.NDArray[Any] | None = None) -> IoUCounts:
    """Count the pixels of a predicted and a target mask.

    Args:
        pred: Predicted mask, ``[H, W]`` in the image frame.
        target: Annotated mask, ``[H, W]`` in the image frame.
        ignore: ``[H, W]``, pixels that count for neither mask; None: there are none.

    Raises:
        ValueError: The masks differ in size; resize the prediction to the picture first.

    >>> pred = np.array([[1, 1, 0], [0, 0, 0]])
    >>> target = np.array([[0, 1, 1], [0, 0, 0]])
    >>> iou_counts(pred, target)
    IoUCounts(intersection=1, union=3)
    """
    shapes = [mask.shape for mask in (pred, target, ignore) if mask is not None]
    if len(set(shapes)) > 1 or pred.ndim != 2:
        listed = " and ".join(map(str, shapes))
        raise ValueError(f"masks of shape {listed}: give [H, W] masks of the same picture")
    on_pred = pred.astype(bool, copy=False)
    on_target = target.astype(bool, copy=False)
    if ignore is not None:
        counted = ~ignore.astype(bool)
        on_pred, on_target = on_pred & counted, on_target & counted
    intersection = int(np.count_nonzero(on_pred & on_target))
    return IoUCounts(intersection, int(np.count_nonzero(on_pred)) + int(np.count_nonzero(on_target)) - intersection)


def failed_counts(target: npt.NDArray[Any]) -> IoUCounts:
    """Counts of an item whose request failed: nothing is right, also where the target is empty.

    A failed request is no empty mask: where that would be right, one pixel is counted as wrong.

    >>> failed_counts(np.zeros((2, 2))), failed_counts(np.ones((2, 2)))
    (IoUCounts(intersection=0, union=1), IoUCounts(intersection=0, union=4))
    """
    return IoUCounts(0, max(int(np.count_nonzero(target)), 1))


@dataclass
class SegmentationSums:
    """Sums over items from which every metric follows; states of several ranks are added, in any order.

    All fields are integers, so ``of(a) + of(b) == of(a + b)`` holds exactly.

    >>> left = SegmentationSums.of([IoUCounts(3, 4)])
    >>> right = SegmentationSums.of([IoUCounts(0, 2), IoUCounts(0, 0)])
    >>> both = left + right
    >>> both.compute()["cIoU"], both.compute()["gIoU"], both.items
    (0.5, 0.5833333333333334, 3)
    """

    intersection: int = 0
    union: int = 0
    items: int = 0
    empty_items: int = 0
    iou_fixed_point: int = 0
    hits: dict[float, int] = field(default_factory=lambda: dict.fromkeys(THRESHOLDS, 0))

    @classmethod
    def of(cls, counts: Iterable[IoUCounts], thresholds: Iterable[float] = THRESHOLDS) -> SegmentationSums:
        """Return the sums over `counts`, with hits counted at `thresholds`."""
        sums = cls(hits=dict.fromkeys(thresholds, 0))
        for item in counts:
            sums.update(item)
        return sums

    def update(self, item: IoUCounts) -> None:
        """Add one item."""
        intersection, union = item
        if not 0 <= intersection <= union:
            raise ValueError(f"{intersection} of {union} pixels: an intersection is within its union")
        self.items += 1
        self.intersection += intersection
        self.union += union
        if union == 0:
            self.empty_items += 1
            return
        self.iou_fixed_point += round(Fraction(intersection << _FIXED_POINT_BITS, union))
        for threshold in self.hits:
            # The division of two ints is correctly rounded, so an IoU of exactly 7/10 meets the double nearest to 0.7.
            self.hits[threshold] += intersection / union >= threshold

    def __add__(self, other: SegmentationSums) -> SegmentationSums:
        if self.hits.keys() != other.hits.keys():
            raise ValueError(f"thresholds {list(self.hits)} and {list(other.hits)} differ; count at the same ones")
        return SegmentationSums(
            intersection=self.intersection + other.intersection,
            union=self.union + other.union,
            items=self.items + other.items,
            empty_items=self.empty_items + other.empty_items,
            iou_fixed_point=self.iou_fixed_point + other.iou_fixed_point,
            hits={threshold: count + other.hits[threshold] for threshold, count in self.hits.items()},
        )

    def compute(self) -> dict[str, float]:
        """Return every metric by its printed name; 0 for each where there are no items (`items` says so)."""
        values = {"cIoU": self.intersection / self.union if self.union else 0.0}
        values["mIoU"] = self._mean(self.iou_fixed_point)
        values["gIoU"] = self._mean(self.iou_fixed_point + (self.empty_items << _FIXED_POINT_BITS))
        for threshold, hits in self.hits.items():
            values[f"P@{threshold:g}"] = hits / self.items if self.items else 0.0
        return values

    def _mean(self, fixed_point: int) -> float:
        return fixed_point / (self.items << _FIXED_POINT_BITS) if self.items else 0.0


def ciou(counts: Iterable[IoUCounts]) -> float:
    """Return cumulative IoU (also oIoU, overall IoU): sum of intersections / sum of unions; large objects weigh most.

    >>> ciou([IoUCounts(1, 2), IoUCounts(80, 100)])
    0.7941176470588235
    """
    return SegmentationSums.of(counts).compute()["cIoU"]


def miou(counts: Iterable[IoUCounts]) -> float:
    """Return the mean of the items' IoU; two empty masks count 0, as LAVT, mmdetection and F-LMM have it.

    >>> miou([IoUCounts(1, 2), IoUCounts(0, 0)])
    0.25
    """
    return SegmentationSums.of(counts).compute()["mIoU"]


def giou(counts: Iterable[IoUCounts]) -> float:
    """Return the mean of the items' IoU; two empty masks count 1, as LISA, GLaMM and ReLA have it.

    >>> giou([IoUCounts(1, 2), IoUCounts(0, 0)])
    0.75
    """
    return SegmentationSums.of(counts).compute()["gIoU"]


def reasoning_iou(item: IoUCounts) -> float:
    """Return what one item adds to the mean of `reasoning_giou`.

    >>> reasoning_iou(IoUCounts(0, 0)), round(reasoning_iou(IoUCounts(5, 5)), 9)
    (1.0, 0.999998)
    """
    return item.intersection / (item.union + _REASONING_EPSILON) if item.union else 1.0


def reasoning_giou(counts: Iterable[IoUCounts]) -> float:
    """Return the mean of the items' IoU as ReasonSeg's evaluation computes it; 0 without items."""
    values = [reasoning_iou(item) for item in counts]
    return sum(values) / len(values) if values else 0.0


def ciou_of_shares(counts: Iterable[IoUCounts], pixels: Iterable[int]) -> float:
    """Return cumulative IoU of items that weigh by their share of the picture; 0 without items.

    Args:
        counts: Intersection and union of each item.
        pixels: Number of pixels of each item's picture.

    >>> round(ciou_of_shares([IoUCounts(1, 2), IoUCounts(100, 100)], [10, 1000]), 6)
    0.666667
    """
    shares = [(item.intersection / size, item.union / size) for item, size in zip(counts, pixels, strict=True)]
    either = sum(union for _, union in shares)
    return sum(intersection for intersection, _ in shares) / either if either else 0.0
