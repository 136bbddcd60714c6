"""Compute metrics of panoptic narrative grounding: average recall, pixel accuracy, the recall curve.

One *item* is one phrase with one predicted and one target mask, ``[H, W]`` in the image frame. *Recall at t* is the
share of items with IoU >= t; *average recall* is the area under that curve, which the benchmark's own code and F-LMM
both take as a left Riemann sum over t = 0, 0.00001, ... up to 0.99999. So an item of IoU 1 adds 0.99999, one of IoU 0
adds 0.00001 (every mask meets t = 0), and average recall is the mean IoU to within 0.00001. Two empty masks have IoU 0.
*Accuracy at 0.5* asks for an IoU of more than 0.5. *Pixel accuracy* is the mean over items of the share of pixels that
are rightly in or out.

Here items are binned by whole numbers: an IoU of I/U lies in bin floor(100000 I / U), so sums over ranks are exact.
Peers compare floats with float thresholds, which may put an IoU that equals a threshold one bin lower: 0.00001 for that
one item.

All results are in 0..1; None where there are no items.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from flmm_plugin.tasks.metrics.segmentation import IoUCounts

#: Thresholds in 0..1; the last one is never the left end of an interval.
STEPS = 100_000

# As in `segmentation`: ratios are summed as whole numbers of 2**-60, exact in any order.
_FIXED_POINT_BITS = 60


@dataclass
class RecallSums:
    """Items by IoU, from which average recall, accuracy and the curve follow; states of several ranks are added.

    >>> sums = RecallSums.of([IoUCounts(1, 2), IoUCounts(3, 3)])
    >>> round(sums.average_recall(), 6), sums.accuracy(), sums.recall(0.5), sums.recall(0.6)
    (0.75, 0.5, 1.0, 0.5)
    """

    bins: Counter[int] = field(default_factory=Counter)
    over_half: int = 0

    @classmethod
    def of(cls, counts: Iterable[IoUCounts]) -> RecallSums:
        """Return the sums over items."""
        sums = cls()
        for item in counts:
            sums.update(item)
        return sums

    def update(self, item: IoUCounts) -> None:
        """Add one item."""
        intersection, union = item
        if not 0 <= intersection <= union:
            raise ValueError(f"{intersection} of {union} pixels: an intersection is within its union")
        self.bins[intersection * STEPS // union if union else 0] += 1
        self.over_half += 2 * intersection > union

    def __add__(self, other: RecallSums) -> RecallSums:
        return RecallSums(self.bins + other.bins, self.over_half + other.over_half)

    @property
    def items(self) -> int:
        """The number of items."""
        return self.bins.total()

    def average_recall(self) -> float | None:
        """Return the area under the recall curve, 0.00001 to 0.99999."""
        met = sum(min(index + 1, STEPS - 1) * count for index, count in self.bins.items())
        return met / (STEPS * self.items) if self.items else None

    def accuracy(self) -> float | None:
        """Return the share of items with an IoU of more than 0.5."""
        return self.over_half / self.items if self.items else None

    def recall(self, threshold: float) -> float | None:
        """Return the share of items with IoU >= `threshold`, which is taken to the nearest 0.00001."""
        lowest = round(threshold * STEPS)
        return sum(n for index, n in self.bins.items() if index >= lowest) / self.items if self.items else None

    def curve(self, points: int = 101) -> list[tuple[float, float]]:
        """Return ``(threshold, recall)`` at evenly spaced thresholds from 0 to 1; empty where there are no items."""
        if not self.items:
            return []
        thresholds = [index / (points - 1) for index in range(points)]
        return [(threshold, self.recall(threshold) or 0.0) for threshold in thresholds]


def pixel_accuracy(counts: Sequence[IoUCounts], pixels: Sequence[int]) -> float | None:
    """Return the mean over items of the share of pixels on which prediction and target agree.

    Args:
        counts: Intersection and union of each item.
        pixels: Number of pixels of each item's picture.

    Raises:
        ValueError: A picture has fewer pixels than a mask on it.

    >>> pixel_accuracy([IoUCounts(1, 2), IoUCounts(0, 0)], [4, 4])
    0.875
    """
    total = 0
    for (intersection, union), size in zip(counts, pixels, strict=True):
        if not 0 < size >= union:
            raise ValueError(f"masks cover {union} pixels of a picture of {size}; give the picture's own size")
        total += round(Fraction((size - union + intersection) << _FIXED_POINT_BITS, size))
    return total / (len(counts) << _FIXED_POINT_BITS) if counts else None
