"""gIoU and cIoU of reasoning segmentation, against scikit-learn's Jaccard score and exact fractions."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import jaccard_score

from flmm_plugin.tasks.metrics.segmentation import IoUCounts, ciou, ciou_of_shares, iou_counts, reasoning_giou


def masks(seed: int) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(seed)
    pred, target, ignore = (rng.random((9, 11)) < share for share in (0.4, 0.3, 0.2))
    return pred, target & ~ignore, ignore


@pytest.mark.parametrize("seed", range(5))
def test_pixels_outside_the_ignored_region_are_counted(seed: int) -> None:
    pred, target, ignore = masks(seed)
    item = iou_counts(pred, target, ignore)
    counted = ~ignore
    assert item.intersection / item.union == pytest.approx(jaccard_score(target[counted], pred[counted]))
    assert iou_counts(pred, target) == iou_counts(pred, target, np.zeros_like(ignore))


def test_what_lies_in_the_ignored_region_changes_nothing() -> None:
    pred, target, ignore = masks(3)
    assert iou_counts(pred | ignore, target, ignore) == iou_counts(pred & ~ignore, target, ignore)


def test_metrics_follow_from_exact_sums() -> None:
    items = [iou_counts(*masks(seed)) for seed in range(6)]
    exact = [Fraction(item.intersection, item.union) for item in items]
    assert reasoning_giou(items) == pytest.approx(float(sum(exact) / 6), abs=1e-6)
    both, either = sum(item.intersection for item in items), sum(item.union for item in items)
    assert ciou(items) == pytest.approx(both / either, abs=1e-12)
    # All pictures of one size: shares of pixels weigh as pixels do.
    assert ciou_of_shares(items, [99] * 6) == pytest.approx(both / either, abs=1e-9)


def test_the_epsilons_and_the_empty_item_are_the_benchmark_s() -> None:
    assert reasoning_giou([IoUCounts(1, 2)]) == 1 / (2 + 1e-5)
    assert reasoning_giou([IoUCounts(0, 0), IoUCounts(0, 5)]) == 0.5
    assert ciou([IoUCounts(0, 0)]) == 0
    assert reasoning_giou([]) == ciou([]) == ciou_of_shares([], []) == 0


def test_shares_weigh_small_pictures_as_much_as_large_ones() -> None:
    small, large = IoUCounts(0, 10), IoUCounts(1000, 1000)
    assert ciou([small, large]) > 0.99
    assert ciou_of_shares([small, large], [10, 1000]) == pytest.approx(0.5)


def test_masks_of_two_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="same picture"):
        iou_counts(np.zeros((2, 2)), np.zeros((2, 2)), np.zeros((2, 3)))
