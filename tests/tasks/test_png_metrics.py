"""Average recall, pixel accuracy and the curve, against computations that know nothing of the counts."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, jaccard_score

from flmm_plugin.tasks.metrics.png import STEPS, RecallSums, pixel_accuracy
from flmm_plugin.tasks.metrics.segmentation import IoUCounts, iou_counts


def average_recall(counts: list[IoUCounts]) -> float | None:
    return RecallSums.of(counts).average_recall()


def area_by_brute_force(ious: list[Fraction]) -> float:
    """Recall at every threshold, summed left to right, as the definition has it."""
    thresholds = np.arange(STEPS) / STEPS
    values = np.array([float(iou) for iou in ious])
    recall = (values[None, :] >= thresholds[:, None]).mean(axis=1)
    return float(np.sum(recall[:-1] * np.diff(thresholds)))


def random_masks(seed: int, count: int = 12) -> list[tuple[Any, Any]]:
    rng = np.random.default_rng(seed)
    shares = rng.uniform(0, 1, (count, 2))
    pairs = [(rng.random((9, 11)) < one, rng.random((9, 11)) < two) for one, two in shares]
    same = pairs[0][0]
    return [*pairs, (same, same), (same, ~same), (np.zeros_like(same), same)]


@pytest.mark.parametrize("seed", [0, 1])
def test_average_recall_equals_the_area_by_brute_force_and_nearly_the_mean_jaccard(seed: int) -> None:
    pairs = random_masks(seed)
    counts = [iou_counts(pred, target) for pred, target in pairs]
    jaccard = [jaccard_score(target.ravel(), pred.ravel(), zero_division=0) for pred, target in pairs]
    ours = average_recall(counts)
    assert ours is not None
    assert ours == pytest.approx(area_by_brute_force([Fraction(*item) for item in counts]), abs=1e-12)
    assert ours == pytest.approx(np.mean(jaccard), abs=1.01e-5)


def test_the_ends_of_the_scale() -> None:
    assert average_recall([IoUCounts(4, 4)]) == 0.99999
    assert average_recall([IoUCounts(0, 4)]) == average_recall([IoUCounts(0, 0)]) == 0.00001
    # An IoU on a threshold meets it, one just below does not.
    assert average_recall([IoUCounts(1, 2)]) == 0.50001
    assert average_recall([IoUCounts(49_999, 100_000)]) == 0.5
    assert average_recall([]) is None


def test_accuracy_asks_for_more_than_a_half() -> None:
    sums = RecallSums.of([IoUCounts(1, 2), IoUCounts(2, 3), IoUCounts(0, 0)])
    assert sums.accuracy() == pytest.approx(1 / 3)
    assert sums.recall(0.5) == pytest.approx(2 / 3)
    assert RecallSums().accuracy() is None
    assert RecallSums().curve() == []


def test_the_curve_falls_from_one_and_encloses_the_average_recall() -> None:
    sums = RecallSums.of(iou_counts(pred, target) for pred, target in random_masks(3))
    curve = sums.curve(2001)
    thresholds, recalls = np.array(curve).T
    assert recalls[0] == 1
    assert (np.diff(recalls) <= 0).all()
    assert recalls[-1] == sums.bins[STEPS] / sums.items == pytest.approx(1 / 15)
    assert np.trapezoid(recalls, thresholds) == pytest.approx(sums.average_recall(), abs=1e-3)


@pytest.mark.parametrize("seed", [0, 1])
def test_pixel_accuracy_equals_sklearn_s_mean(seed: int) -> None:
    pairs = random_masks(seed)
    counts = [iou_counts(pred, target) for pred, target in pairs]
    expected = np.mean([accuracy_score(target.ravel(), pred.ravel()) for pred, target in pairs])
    assert pixel_accuracy(counts, [99] * len(counts)) == pytest.approx(expected, abs=1e-12)
    assert pixel_accuracy([], []) is None
    with pytest.raises(ValueError, match="99 pixels of a picture of 98"):
        pixel_accuracy([IoUCounts(0, 99)], [98])


item = st.integers(0, 50).flatmap(lambda union: st.tuples(st.integers(0, union), st.just(union)))


@settings(max_examples=50, deadline=None)
@given(st.lists(item, max_size=8), st.lists(item, max_size=8))
def test_ranks_add_up_exactly(one: list[tuple[int, int]], two: list[tuple[int, int]]) -> None:
    left, right = [IoUCounts(*pair) for pair in one], [IoUCounts(*pair) for pair in two]
    summed, whole = RecallSums.of(left) + RecallSums.of(right), RecallSums.of(left + right)
    assert summed == whole
    assert summed.average_recall() == whole.average_recall() == RecallSums.of(right + left).average_recall()


def test_impossible_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="within its union"):
        RecallSums.of([IoUCounts(3, 2)])
