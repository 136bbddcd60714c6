"""Metrics against pycocotools, against plain arithmetic, and over ranks."""

from __future__ import annotations

import doctest
import random
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from flmm_plugin.tasks.metrics import segmentation
from flmm_plugin.tasks.metrics.segmentation import (
    THRESHOLDS,
    IoUCounts,
    SegmentationSums,
    ciou,
    giou,
    iou_counts,
    miou,
)

COUNTS = st.integers(0, 640 * 480).flatmap(
    lambda union: st.builds(IoUCounts, st.integers(0, union), st.just(union)),
)


def summarise(counts: list[IoUCounts]) -> dict[str, float]:
    return SegmentationSums.of(counts).compute()


def precision_at(counts: list[IoUCounts], threshold: float) -> float:
    return SegmentationSums.of(counts, [threshold]).compute()[f"P@{threshold:g}"]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("density", [0.02, 0.5, 0.97])
def test_counts_agree_with_pycocotools(seed: int, density: float) -> None:
    rng = np.random.default_rng(seed)
    pred, target = rng.random((2, 37, 23)) < density
    counts = iou_counts(pred, target)
    codes = [coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in (pred, target)]
    assert counts.ratio() == pytest.approx(coco_mask.iou([codes[0]], [codes[1]], [0])[0, 0], abs=1e-15)
    assert counts.intersection == coco_mask.area(coco_mask.merge(codes, intersect=True))
    assert counts.union == coco_mask.area(coco_mask.merge(codes))


def test_hand_made_edges() -> None:
    empty, full, one = np.zeros((4, 5)), np.ones((4, 5)), np.zeros((4, 5))
    one[2, 3] = 255
    assert iou_counts(empty, empty) == (0, 0)
    assert iou_counts(empty, full) == (0, 20)
    assert iou_counts(full, full) == (20, 20)
    assert iou_counts(one, full) == (1, 20)
    assert iou_counts(one, one) == (1, 1)
    with pytest.raises(ValueError, match=r"\(4, 5\) and \(5, 4\)"):
        iou_counts(empty, empty.T)
    with pytest.raises(ValueError, match="same picture"):
        iou_counts(empty[0], empty[0])


def test_two_empty_masks_are_what_each_peer_says() -> None:
    counts = [IoUCounts(0, 0), IoUCounts(1, 2)]
    assert (miou(counts), giou(counts), ciou(counts)) == (0.25, 0.75, 0.5)
    assert precision_at(counts, 0.5) == 0.5
    assert summarise([IoUCounts(0, 0)])["cIoU"] == 0.0


def test_no_items_are_no_score() -> None:
    assert set(summarise([]).values()) == {0.0}


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_an_iou_of_exactly_k_passes(threshold: float) -> None:
    tenths = round(threshold * 10)
    assert precision_at([IoUCounts(tenths * 7, 70)], threshold) == 1.0
    assert precision_at([IoUCounts(tenths * 7 - 1, 70)], threshold) == 0.0


def test_an_intersection_larger_than_its_union_is_refused() -> None:
    with pytest.raises(ValueError, match="within its union"):
        ciou([IoUCounts(3, 2)])
    with pytest.raises(ValueError, match="differ"):
        _ = SegmentationSums.of([], [0.5]) + SegmentationSums.of([], [0.6])


@settings(max_examples=60, deadline=None)
@given(st.lists(COUNTS, min_size=1, max_size=30))
def test_functions_agree_with_exact_arithmetic(counts: list[IoUCounts]) -> None:
    ratios = [Fraction(item.intersection, item.union) if item.union else None for item in counts]
    exact = sum((ratio for ratio in ratios if ratio is not None), Fraction(0))
    assert miou(counts) == pytest.approx(float(exact / len(counts)), abs=1e-15)
    assert giou(counts) == pytest.approx(float((exact + ratios.count(None)) / len(counts)), abs=1e-15)
    union = sum(item.union for item in counts)
    assert ciou(counts) == (sum(item.intersection for item in counts) / union if union else 0)
    for threshold in THRESHOLDS:
        hits = sum(ratio is not None and float(ratio) >= threshold for ratio in ratios)
        assert precision_at(counts, threshold) == hits / len(counts)


@settings(max_examples=60, deadline=None)
@given(st.lists(COUNTS, max_size=30), st.integers(1, 8), st.randoms(use_true_random=False))
def test_ranks_add_up_to_the_same_bits(counts: list[IoUCounts], ranks: int, shuffle: random.Random) -> None:
    shards = [SegmentationSums.of(counts[rank::ranks]) for rank in range(ranks)]
    shuffle.shuffle(shards)
    together = sum(shards, start=SegmentationSums())
    assert together == SegmentationSums.of(counts)
    assert together.compute() == summarise(counts)


def test_examples_in_the_documentation_run() -> None:
    result = doctest.testmod(segmentation)
    assert result.attempted > 8
    assert result.failed == 0
