"""AP50 against pycocotools' COCOeval, pixel counts against its RLE code, the greedy rules against a second reading."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from flmm_plugin.records import encode_rle
from flmm_plugin.tasks.metrics import gcg

SIZE = (12, 16)


def blobs(rng: np.random.Generator, count: int) -> list[Any]:
    """Rectangles of few sizes and places, so that many overlap and some are equal."""
    masks = []
    for _ in range(count):
        mask = np.zeros(SIZE, dtype=bool)
        y, x = int(rng.integers(3)) * 3, int(rng.integers(3)) * 4
        mask[y : y + int(rng.integers(3, 6)), x : x + int(rng.integers(3, 7))] = True
        masks.append(mask)
    return masks


def world(seed: int, pictures: int = 8) -> list[tuple[str, list[Any], list[Any]]]:
    """Pictures of (id, annotated, predicted); predictions are partly annotated masks, moved."""
    rng = np.random.default_rng(seed)
    found = []
    for number in rng.permutation(pictures):
        targets = blobs(rng, int(rng.integers(0, 5)))
        kept = [np.roll(mask, int(rng.integers(3)), axis=1) for mask in targets if rng.random() < 0.7]
        found.append((f"sa_{number}", targets, kept + blobs(rng, int(rng.integers(0, 3)))))
    return found


def coco_ap50(pictures: list[tuple[str, list[Any], list[Any]]]) -> float:
    """What COCO's own evaluator says, with every score 1."""
    annotations = [
        {
            "image_id": image_id,
            "category_id": 1,
            "iscrowd": 0,
            "segmentation": encode_rle(mask),
            "area": int(mask.sum()),
        }
        for image_id, targets, _ in pictures
        for mask in targets
    ]
    results = [
        {"image_id": image_id, "category_id": 1, "score": 1.0, "segmentation": encode_rle(mask)}
        for image_id, _, predictions in pictures
        for mask in predictions
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "info": {},
            "images": [{"id": image_id, "height": SIZE[0], "width": SIZE[1]} for image_id, _, _ in pictures],
            "annotations": [{"id": number, **one} for number, one in enumerate(annotations, start=1)],
            "categories": [{"id": 1}],
        }
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[1])


def our_ap50(pictures: list[tuple[str, list[Any], list[Any]]]) -> float:
    return gcg.ap50(
        (image_id, gcg.match_detections(gcg.pair_counts(targets, predictions).iou), len(targets))
        for image_id, targets, predictions in pictures
    )


@pytest.mark.parametrize("seed", range(12))
def test_ap50_is_coco_s(seed: int) -> None:
    pictures = world(seed)
    assert our_ap50(pictures) == pytest.approx(coco_ap50(pictures), abs=1e-12)


def test_ap50_depends_on_the_order_of_predictions_as_coco_s_does() -> None:
    target, other = blobs(np.random.default_rng(0), 1)[0], np.zeros(SIZE, dtype=bool)
    other[-1, -1] = True
    first, last = [("sa_1", [target], [target, other])], [("sa_1", [target], [other, target])]
    assert our_ap50(first) == coco_ap50(first) == pytest.approx(1.0)
    assert our_ap50(last) == pytest.approx(coco_ap50(last)) == pytest.approx(0.5)


def test_only_the_first_hundred_predictions_of_a_picture_count() -> None:
    target, other = blobs(np.random.default_rng(0), 1)[0], np.zeros(SIZE, dtype=bool)
    other[-1, -1] = True
    late = [("sa_1", [target], [other] * 100 + [target])]
    assert our_ap50(late) == pytest.approx(coco_ap50(late), abs=1e-12) == 0
    assert our_ap50([("sa_1", [target], [other] * 99 + [target])]) > 0


def test_nothing_annotated_scores_nothing() -> None:
    assert gcg.average_precision([True], 0) == 0
    assert gcg.average_precision([], 3) == 0


@pytest.mark.parametrize("seed", range(4))
def test_pair_counts_are_pycocotools(seed: int) -> None:
    _, targets, predictions = max(world(seed), key=lambda picture: len(picture[1]) * len(picture[2]))
    codes = [
        [coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in side] for side in (targets, predictions)
    ]
    expected = np.asarray(coco_mask.iou(codes[1], codes[0], [0] * len(targets))).T
    assert np.allclose(gcg.pair_counts(targets, predictions).iou, expected, atol=1e-15)


def test_pair_counts_refuse_masks_of_two_pictures() -> None:
    with pytest.raises(ValueError, match="same picture"):
        gcg.pair_counts([np.zeros((2, 2))], [np.zeros((2, 3))])


def taken_by_rank(iou: Any) -> list[tuple[float, int, int]]:
    """The greedy pairs read another way: all pairs from the largest IoU down, kept where both masks are still free."""
    pairs = sorted(((iou[i, j], i, j) for i in range(iou.shape[0]) for j in range(iou.shape[1])), key=lambda p: -p[0])
    rows: set[int] = set()
    columns: set[int] = set()
    kept = []
    for value, row, column in pairs:
        if value > 0 and row not in rows and column not in columns:
            rows.add(row)
            columns.add(column)
            kept.append((value, row, column))
    return kept


tables = st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**31)).map(
    lambda drawn: (
        np.random.default_rng(drawn[2]).permutation(drawn[0] * drawn[1]).reshape(drawn[0], drawn[1])
        / (drawn[0] * drawn[1])
    )
)


@settings(max_examples=60, deadline=None)
@given(tables, st.integers(0, 2**31))
def test_greedy_rules_read_another_way(iou: Any, seed: int) -> None:
    similarity = np.random.default_rng(seed).random(iou.shape)
    taken = taken_by_rank(iou)
    assert gcg.picture_miou(iou) == pytest.approx(np.mean([value for value, _, _ in taken]) if taken else 0)
    hits = 0
    for value, row, column in taken:
        if value < 0.5 or similarity[row, column] < 0.5:
            break
        hits += 1
    assert gcg.recall_hits(iou, similarity) == hits


def test_recall_stops_at_the_first_pair_that_fails_and_never_looks_further() -> None:
    iou = np.array([[0.9, 0, 0], [0, 0.8, 0], [0, 0, 0.7]])
    alike = np.ones((3, 3))
    assert gcg.recall_hits(iou, alike) == 3
    alike[1, 1] = 0.4
    assert gcg.recall_hits(iou, alike) == 1
    alike[0, 0] = 0.4
    assert gcg.recall_hits(iou, alike) == 0


def test_recall_counts_an_iou_and_a_similarity_of_exactly_one_half() -> None:
    assert gcg.recall_hits(np.array([[0.5]]), np.array([[0.5]])) == 1
    assert gcg.recall_hits(np.array([[0.499]]), np.array([[1.0]])) == 0


def test_a_mask_without_a_phrase_voids_the_picture_when_it_comes_up() -> None:
    iou = np.array([[0.9, 0.0], [0.0, 0.8]])
    assert gcg.recall_hits(iou, np.ones((2, 1))) == 0  # one phrase for two masks; the second mask comes up after a hit
    assert gcg.recall_hits(np.array([[0.9, 0.0], [0.0, 0.0]]), np.ones((2, 1))) == 1  # it never comes up
    assert gcg.recall_hits(iou, np.ones((1, 2))) == 0  # likewise a mask without a label


def test_empty_masks() -> None:
    empty, full = np.zeros(SIZE, dtype=bool), np.ones(SIZE, dtype=bool)
    both = gcg.pair_counts([empty, full], [empty, full])
    assert np.isnan(both.iou[0, 0])
    assert gcg.picture_miou(both.iou) == 0  # the evaluator's nan
    assert gcg.recall_hits(both.iou, np.ones((2, 2))) == 1
    assert gcg.match_detections(both.iou) == [False, True]
    assert gcg.picture_miou(gcg.pair_counts([full], [empty, full]).iou) == 1
    assert gcg.pair_counts([], [full]).iou.shape == (0, 1)
    assert gcg.picture_miou(gcg.pair_counts([full], []).iou) == 0
