"""Replies to a ReasonSeg picture: masks, the ignored region, short and long queries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flmm_plugin.records import decode_rle, encode_rle, error_json
from flmm_plugin.tasks.mask_scoring import ciou
from flmm_plugin.tasks.metrics.bootstrap import statistic_of
from flmm_plugin.tasks.reasonseg import scoring
from flmm_plugin.tasks.reasonseg.benchmark import read_documents
from flmm_plugin.tiny import layouts_gcg
from tests.tasks import metric_names

SIZE = (4, 10)


def mask(x0: int, x1: int) -> Any:
    found = np.zeros(SIZE, dtype=bool)
    found[:, x0:x1] = True
    return found


DOC = {
    "image_path": "a.jpg",
    "height": 4,
    "width": 10,
    "query": "the thing that barks",
    "split": "test",
    "is_sentence": False,
    "mask": encode_rle(mask(0, 4)),
    "ignore": encode_rle(mask(6, 8)),
    "expected_items": 779,
}

FIELDS = {*DOC, "name", "expression", "orientation"}


def reply(*masks: Any) -> str:
    return json.dumps({"text": "It is a dog.", "masks": [encode_rle(one) for one in masks]})


def counts(sample: dict[str, Any]) -> tuple[int, int]:
    return sample["cIoU"]["I"][0], sample["cIoU"]["U"][0]


def test_ignored_pixels_count_for_nothing() -> None:
    assert counts(scoring.score_reply(DOC, reply(mask(0, 4)))) == (16, 16)
    assert counts(scoring.score_reply(DOC, reply(mask(0, 8)))) == (16, 24)  # 6 and 7 are ignored, 4 and 5 are wrong


def test_several_masks_are_one_prediction() -> None:
    assert counts(scoring.score_reply(DOC, reply(mask(0, 2), mask(1, 4)))) == (16, 16)


def test_unusable_replies_are_empty_predictions_that_still_count() -> None:
    for bad in (error_json(RuntimeError("no")), "It is a dog.", reply(), reply(mask(0, 4).T)):
        sample = scoring.score_reply(DOC, bad)
        assert counts(sample) == (0, 16)
        assert sample["errors"] == {"count": 1}
    good = scoring.score_reply(DOC, reply(mask(0, 4)))
    assert good["errors"] == {"count": 0}
    pair = [good["gIoU"], sample["gIoU"]]
    assert scoring.giou(pair) == pytest.approx(50, abs=1e-3)
    assert ciou(pair) == pytest.approx(50)
    assert scoring.ciou_shares(pair) == pytest.approx(50)


def test_the_test_split_tells_short_from_long_and_val_does_not() -> None:
    short, long = (scoring.score_reply({**DOC, "is_sentence": flag}, reply(mask(0, 4))) for flag in (False, True))
    assert {"gIoU", "gIoU_short", "cIoU_short", "cIoU_shares_short"} <= set(short)
    assert not any(name.endswith("_long") for name in short)
    assert set(long) - set(short) == {"gIoU_long", "cIoU_long", "cIoU_shares_long"}
    assert set(short) | set(long) == {*metric_names.REASONSEG_TEST, "reference"}
    assert set(scoring.score_reply({**DOC, "split": "val"}, reply())) == {*metric_names.REASONSEG_VAL, "reference"}


def test_intervals_are_of_the_printed_numbers() -> None:
    samples = [scoring.score_reply(DOC, reply(mask(0, end)))["gIoU"] for end in range(1, 6)]
    for function in (scoring.giou, ciou, scoring.ciou_shares):
        assert statistic_of(function)(samples) == pytest.approx(function(samples), abs=1e-4)


def test_a_logged_sample_gives_its_document_back() -> None:
    answer = reply(mask(0, 5))
    sample = scoring.score_reply(DOC, answer)
    assert scoring.score_reply(scoring.logged_document(json.loads(json.dumps(sample))), answer) == sample


def test_documents_of_the_tiny_world(tmp_path: Path) -> None:
    layouts_gcg.write_reasonseg(tmp_path, scenes=6, splits=("test",))
    docs = read_documents("test", {"root": tmp_path})
    assert (len(docs), docs.expected_items) == (6, 779)
    ignored = 0
    for index, doc in enumerate(docs):
        assert set(doc) == set(docs.features) == FIELDS
        target, ignore = decode_rle(doc["mask"]), decode_rle(doc["ignore"])
        assert target.any()
        assert not (target & ignore).any()
        ignored += bool(ignore.any())
        assert doc["is_sentence"] == (index % 2 == 0) == doc["query"].endswith("?")
        assert " at the " not in doc["query"]
        assert doc["expression"] == doc["query"]
        assert doc["image"].size == target.shape[::-1]
    assert ignored
    json.dumps(docs[0])
