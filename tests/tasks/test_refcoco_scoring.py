"""From replies to counts: which mask answers which expression, and what a missing one costs."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from flmm_plugin.errors import BadImage
from flmm_plugin.records import Grounding, encode_rle, error_json, masks_json
from flmm_plugin.tasks import mask_scoring
from flmm_plugin.tasks.metrics.segmentation import IoUCounts, SegmentationSums
from flmm_plugin.tasks.metrics.totals import is_complete, total
from flmm_plugin.tasks.refcoco import scoring
from tests.tasks import metric_names

SIZE = (6, 8)


def rectangle(x0: int, y0: int, x1: int, y1: int, size: tuple[int, int] = SIZE) -> Any:
    mask = np.zeros(size, dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


LEFT, RIGHT = rectangle(0, 0, 4, 6), rectangle(4, 0, 8, 6)


def document(expressions: list[str], targets: list[Any], expected: int | None = 2) -> dict[str, Any]:
    masks = [encode_rle(mask) for mask in targets]
    return {
        "expressions": expressions, "masks": masks, "height": SIZE[0], "width": SIZE[1], "expected_items": expected,
    }  # fmt: skip


def reply(masks: list[Any], phrases: list[tuple[str, Any]] | None = None, **more: Any) -> str:
    content: dict[str, Any] = {"masks": [encode_rle(mask) for mask in masks], **more}
    if phrases is not None:
        content["phrases"] = [{"phrase": words, "span": None, "mask": index} for words, index in phrases]
    return json.dumps(content)


BOTH = document(["left", "right"], [LEFT, RIGHT])


def pixels(sample: dict[str, Any]) -> list[tuple[int, int]]:
    return list(zip(sample["cIoU"]["I"], sample["cIoU"]["U"], strict=True))


def test_our_own_reply_scores_in_order() -> None:
    logits = [np.where(mask, 1.0, -1.0).astype(np.float32) for mask in (LEFT, RIGHT)]
    groundings = [Grounding.from_logits(words, values) for words, values in zip(("left", "right"), logits, strict=True)]
    sample = scoring.score_reply(BOTH, masks_json(groundings, size=SIZE))
    assert pixels(sample) == [(24, 24), (24, 24)]
    assert sample["errors"] == {"count": 0}
    assert set(sample) == {*metric_names.REFCOCO, "reference"}
    assert sample["reference"]["phrases"] == BOTH["expressions"]
    assert sample["reference"]["masks"] == BOTH["masks"]


def test_phrases_say_which_mask_is_whose() -> None:
    crossed = reply([RIGHT, LEFT], [("left", 1), ("right", 0)])
    assert pixels(scoring.score_reply(BOTH, crossed)) == [(24, 24), (24, 24)]
    # More phrases than expressions: by their words, each used once.
    wordy = reply([RIGHT, LEFT], [("the", 0), ("right", 0), ("left", 1)])
    assert pixels(scoring.score_reply(BOTH, wordy)) == [(24, 24), (24, 24)]
    twice = document(["left", "left"], [LEFT, LEFT])
    partly = scoring.score_reply(twice, reply([LEFT], [("left", 0), ("x", 0), ("y", 0)]))
    assert pixels(partly) == [(24, 24), (0, 24)]
    assert partly["errors"] == {"count": 1}


@pytest.mark.parametrize("index", [7, -1, None, "0", 1.5])
def test_a_phrase_that_points_at_no_mask_is_an_error(index: Any) -> None:
    sample = scoring.score_reply(BOTH, reply([LEFT], [("left", 0), ("right", index)]))
    assert pixels(sample) == [(24, 24), (0, 24)]
    assert sample["errors"] == {"count": 1}


def test_a_reply_without_phrases_is_read_in_order() -> None:
    assert pixels(scoring.score_reply(BOTH, reply([LEFT, RIGHT]))) == [(24, 24), (24, 24)]
    short = scoring.score_reply(BOTH, reply([LEFT]))
    assert pixels(short) == [(24, 24), (0, 24)]
    assert short["errors"] == {"count": 1}


def test_of_several_instances_the_best_scored_is_taken() -> None:
    one = document(["left"], [LEFT])
    scored = reply([RIGHT, LEFT], scores=[0.2, 0.9], boxes=[])
    assert pixels(scoring.score_reply(one, scored)) == [(24, 24)]
    assert pixels(scoring.score_reply(one, reply([RIGHT, LEFT]))) == [(24, 48)]
    odd = reply([RIGHT, rectangle(0, 0, 1, 1, (3, 3))])
    assert scoring.score_reply(one, odd)["errors"] == {"count": 1}


def test_a_mask_of_another_size_is_an_empty_prediction() -> None:
    sample = scoring.score_reply(BOTH, reply([LEFT.T, RIGHT]))
    assert pixels(sample) == [(0, 24), (24, 24)]
    assert sample["errors"] == {"count": 1}


@pytest.mark.parametrize("answer", ["", "The left one.", "{", "[]", "null", error_json(BadImage("no file"))])
def test_no_masks_are_empty_predictions(answer: str) -> None:
    sample = scoring.score_reply(BOTH, answer)
    assert pixels(sample) == [(0, 24), (0, 24)]
    assert sample["errors"] == {"count": 2}


def test_aggregations_agree_with_the_metrics() -> None:
    documents = [BOTH, document(["a", "b", "c"], [LEFT, RIGHT, rectangle(0, 0, 0, 0)])]
    replies = [reply([LEFT, rectangle(4, 0, 7, 6)]), reply([rectangle(0, 0, 1, 6), LEFT, rectangle(0, 0, 0, 0)])]
    samples = [scoring.score_reply(doc, answer) for doc, answer in zip(documents, replies, strict=True)]
    counts = [IoUCounts(24, 24), IoUCounts(18, 24), IoUCounts(6, 24), IoUCounts(0, 48), IoUCounts(0, 0)]
    expected = {metric: 100 * value for metric, value in SegmentationSums.of(counts).compute().items()}
    got = {"cIoU": mask_scoring.ciou, "mIoU": mask_scoring.miou, "gIoU": mask_scoring.giou}
    assert {metric: function([one[metric] for one in samples]) for metric, function in got.items()} == {
        metric: expected[metric] for metric in got
    }
    for metric in expected.keys() - got.keys():
        assert mask_scoring.precision([one[metric] for one in samples]) == expected[metric]
    assert total([one["items"] for one in samples]) == 5


def test_only_the_whole_official_split_is_complete() -> None:
    first = scoring.score_reply(document(["left", "right"], [LEFT, RIGHT], expected=3), "")
    second = scoring.score_reply(document(["left"], [LEFT], expected=3), "")
    unknown = scoring.score_reply(document(["left"], [LEFT], expected=None), "")
    assert is_complete([first["complete"], second["complete"]]) == 1
    assert is_complete([first["complete"]]) == 0
    assert is_complete([unknown["complete"]]) == 0
    assert is_complete([]) == 0


def test_samples_survive_a_log() -> None:
    sample = scoring.score_reply(BOTH, reply([LEFT, RIGHT]))
    assert json.loads(json.dumps(sample)) == sample
