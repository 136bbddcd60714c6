"""Metrics of referring segmentation: pixels are counted per item, counts are summed, and the division comes last.

One *item* is one expression with one predicted and one target mask. Which paper calls what by which name:

=====================================  ==================  =================================================
name in papers                         function            rule
=====================================  ==================  =================================================
cIoU, oIoU, overall IoU                `ciou`              sum of intersections / sum of unions
mIoU (LAVT, mmdetection, F-LMM)        `miou`              mean of I/U, an item with U = 0 counts 0
gIoU (LISA, ReLA), mIoU of GLaMM       `giou`              mean of I/U, an item with U = 0 counts 1
P@K, Pr@K (LAVT: IoU >= K)             `precision_at`      share of items with IoU >= K; U = 0 counts IoU 0
=====================================  ==================  =================================================

Shapes: masks are ``[H, W]`` in the image frame, any dtype; a pixel is on where it is not 0. All results are in 0..1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

#: The K of P@K that papers report.
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)

# Ratios are summed as whole numbers of 2**-60: integers add up to the same bits in any order and over any number of
# ranks, and the rounding of one item (1e-18) is far below that of the double that a result is returned in.
_FIXED_POINT_BITS = 60


class IoUCounts(NamedTuple):
    """Pixels of one item: in both masks, and in either."""

    intersection: int
    union: int

    def ratio(self, empty: float = 0.0) -> float:
        """Intersection over union; `empty` where both masks are empty."""
        return self.intersection / self.union if self.union else empty


def iou_counts(pred: npt.NDArray[Any], target: npt.NDArray[Any]) -> IoUCounts:
    """Count the pixels of a predicted and a target mask, both ``[H, W]`` in the image frame.

    Raises:
        ValueError: The masks differ in size; resize the prediction to the picture first.

    >>> pred = np.array([[1, 1, 0], [0, 0, 0]])
    >>> target = np.array([[0, 1, 1], [0, 0, 0]])
    >>> iou_counts(pred, target)
    IoUCounts(intersection=1, union=3)
    """
    if pred.shape != target.shape or pred.ndim != 2:
        raise ValueError(f"masks of shape {pred.shape} and {target.shape}: give two [H, W] masks of the same picture")
    on_pred, on_target = pred.astype(bool), target.astype(bool)
    return IoUCounts(int(np.count_nonzero(on_pred & on_target)), int(np.count_nonzero(on_pred | on_target)))


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

    higher_is_better: ClassVar[bool] = True

    intersection: int = 0
    union: int = 0
    items: int = 0
    empty_items: int = 0
    iou_fixed_point: int = 0
    hits: dict[float, int] = field(default_factory=lambda: dict.fromkeys(THRESHOLDS, 0))

    @classmethod
    def of(cls, counts: Iterable[IoUCounts], thresholds: Iterable[float] = THRESHOLDS) -> SegmentationSums:
        """The sums over `counts`, with hits counted at `thresholds`."""
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
        """Every metric by its printed name; 0 for each where there are no items (`items` says so)."""
        values = {"cIoU": self.intersection / self.union if self.union else 0.0}
        values["mIoU"] = self._mean(self.iou_fixed_point)
        values["gIoU"] = self._mean(self.iou_fixed_point + (self.empty_items << _FIXED_POINT_BITS))
        for threshold, hits in self.hits.items():
            values[f"P@{threshold:g}"] = hits / self.items if self.items else 0.0
        return values

    def _mean(self, fixed_point: int) -> float:
        return fixed_point / (self.items << _FIXED_POINT_BITS) if self.items else 0.0


def ciou(counts: Iterable[IoUCounts]) -> float:
    """Cumulative IoU (also oIoU, overall IoU): sum of intersections over sum of unions. Large objects weigh most.

    >>> ciou([IoUCounts(1, 2), IoUCounts(80, 100)])
    0.7941176470588235
    """
    return SegmentationSums.of(counts).compute()["cIoU"]


def miou(counts: Iterable[IoUCounts]) -> float:
    """Mean of the items' IoU; two empty masks count 0, as LAVT, mmdetection and F-LMM have it.

    >>> miou([IoUCounts(1, 2), IoUCounts(0, 0)])
    0.25
    """
    return SegmentationSums.of(counts).compute()["mIoU"]


def giou(counts: Iterable[IoUCounts]) -> float:
    """Mean of the items' IoU; two empty masks count 1, as LISA, GLaMM and ReLA have it.

    >>> giou([IoUCounts(1, 2), IoUCounts(0, 0)])
    0.75
    """
    return SegmentationSums.of(counts).compute()["gIoU"]


def precision_at(counts: Iterable[IoUCounts], threshold: float) -> float:
    """Share of items with IoU >= `threshold` (LAVT's rule; CRIS asks for more than it).

    >>> precision_at([IoUCounts(1, 2), IoUCounts(49, 100)], 0.5)
    0.5
    """
    return SegmentationSums.of(counts, [threshold]).compute()[f"P@{threshold:g}"]


def summarise(counts: Iterable[IoUCounts]) -> Mapping[str, float]:
    """Every metric at once.

    >>> summarise([IoUCounts(3, 4)])
    {'cIoU': 0.75, 'mIoU': 0.75, 'gIoU': 0.75, 'P@0.5': 1.0, 'P@0.6': 1.0, 'P@0.7': 1.0, 'P@0.8': 0.0, 'P@0.9': 0.0}
    """
    return SegmentationSums.of(counts).compute()
