"""gRefCOCO's numbers against its evaluator's rules written down once more, and what replies count as."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from flmm_plugin.records import encode_rle
from flmm_plugin.tasks.grefcoco.benchmark import read_documents
from flmm_plugin.tasks.grefcoco.scoring import SMALLEST, logged_document, score_reply
from flmm_plugin.tasks.metrics.bootstrap import statistic_of
from flmm_plugin.tasks.standalone import StandaloneTask
from flmm_plugin.tasks.task_files import aggregations
from flmm_plugin.tiny.layouts_gref import write_gref
from tests.tasks import metric_names

Mask = npt.NDArray[np.bool_]
SIZE = (24, 30)


def evaluator(samples: Sequence[tuple[Mask, Mask, bool]]) -> dict[str, float]:
    """ReLA's evaluator by its rules: (prediction, target, nothing is meant); a small prediction is cleared first."""
    wrong_empty = right_empty = wrong_found = right_found = 0
    intersections = unions = 0
    ious = []
    hits = dict.fromkeys((0.7, 0.8, 0.9), 0)
    for pred, target, nothing in samples:
        if pred.sum() < 50:
            pred = np.zeros_like(pred)
        says_nothing = not pred.any()
        both, either = int((pred & target).sum()), int((pred | target).sum())
        if nothing:
            right_empty += says_nothing
            wrong_found += not says_nothing
            ious.append(1.0 if says_nothing else 0.0)
            unions += 0 if says_nothing else either
            continue
        wrong_empty += says_nothing
        right_found += not says_nothing
        both = 0 if says_nothing else both
        ious.append(both / either if either else 0.0)
        intersections += both
        unions += either
        for threshold in hits:
            hits[threshold] += ious[-1] >= threshold
    targeted = right_found + wrong_empty
    return {
        "gIoU": 100 * sum(ious) / len(ious),
        "cIoU": 100 * intersections / unions,
        "N_acc": 100 * right_empty / (right_empty + wrong_found),
        "T_acc": 100 * right_found / targeted,
        "N_acc_as_code": 100 * right_empty / (right_empty + wrong_found + 1),
        "T_acc_as_code": 100 * right_empty / (right_empty + wrong_empty + 1),
        **{f"P@{threshold}": 100 * count / targeted for threshold, count in hits.items()},
    }


def document(target: Mask, nothing: bool) -> dict[str, Any]:
    ids = [] if nothing else [1]
    shape = {"height": SIZE[0], "width": SIZE[1], "image_path": "a.jpg", "expected_items": None}
    return {**shape, "expressions": ["all stars"], "masks": [encode_rle(target)], "ann_ids": [ids]}


def masks_reply(*masks: Mask) -> str:
    return json.dumps({"masks": [encode_rle(mask) for mask in masks]})


def box(height: int, width: int) -> Mask:
    mask = np.zeros(SIZE, dtype=np.bool_)
    mask[:height, :width] = True
    return mask


def numbers(records: Sequence[dict[str, Any]]) -> dict[str, float]:
    functions = aggregations("flmm_grefcoco_val")
    return {name: functions[name]([record[name] for record in records]) for name in functions if name in records[0]}


def test_the_numbers_are_those_of_the_evaluator() -> None:
    rng = np.random.default_rng(0)
    samples = []
    for number in range(60):
        nothing = number % 3 == 0
        target = box(0, 0) if nothing else box(int(rng.integers(8, 24)), int(rng.integers(8, 30)))
        # Of exact, shifted, small and empty predictions.
        pred = (target.copy(), np.roll(target, 2, axis=1), box(7, 7), box(0, 0), box(5, 10), box(20, 25))[number % 6]
        samples.append((pred, target, nothing))
    records = [score_reply(document(target, nothing), masks_reply(pred)) for pred, target, nothing in samples]
    found, expected = numbers(records), evaluator(samples)
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-12)
    assert len({round(value) for value in expected.values()}) > 5  # a metric that is always 0 or 100 shows nothing


def test_the_metrics_are_those_of_the_task_file() -> None:
    assert tuple(aggregations("flmm_grefcoco_val")) == metric_names.GREFCOCO


@pytest.mark.parametrize(("pixels", "is_there"), [((7, 7), False), ((5, 10), True)])
def test_fewer_than_fifty_pixels_say_that_nothing_is_meant(pixels: tuple[int, int], is_there: bool) -> None:
    assert (pixels[0] * pixels[1] >= SMALLEST) is is_there
    record = score_reply(document(box(0, 0), nothing=True), masks_reply(box(*pixels)))
    assert record["N_acc"]["found"] == [is_there]
    assert record["N_acc"]["U"] == [pixels[0] * pixels[1] if is_there else 0]


@pytest.mark.parametrize(
    ("reply", "giou", "errors"),
    [
        ('{"masks": []}', 100.0, 0),  # nothing is there, says a detector
        ('{"masks": [], "error": {"type": "BadImage", "message": "x"}}', 0.0, 1),
        ("I see no stars.", 0.0, 1),
        ("", 0.0, 1),
    ],
)
def test_a_failure_is_no_answer_that_nothing_is_there(reply: str, giou: float, errors: int) -> None:
    found = numbers([score_reply(document(box(0, 0), nothing=True), reply)])
    assert (found["gIoU"], found["errors"]) == (giou, errors)


def test_several_masks_of_one_phrase_are_one_answer() -> None:
    left, right = box(20, 10), np.roll(box(20, 10), 12, axis=1)
    found = numbers([score_reply(document(left | right, nothing=False), masks_reply(left, right))])
    assert found["gIoU"] == found["P@0.9"] == 100
    assert found["T_acc"] == 100


def test_a_rate_without_an_item_has_no_value() -> None:
    found = numbers([score_reply(document(box(9, 9), nothing=False), masks_reply(box(9, 9)))])
    assert found["N_acc"] is None
    assert found["T_acc_as_code"] is None


def test_every_number_has_an_interval_around_it() -> None:
    samples = [(box(20, 20), box(20, 18), False), (box(0, 0), box(0, 0), True), (box(9, 9), box(0, 0), True)] * 8
    records = [score_reply(document(target, nothing), masks_reply(pred)) for pred, target, nothing in samples]
    for name in ("gIoU", "N_acc", "T_acc", "N_acc_as_code", "T_acc_as_code"):
        function, listed = aggregations("flmm_grefcoco_val")[name], [record[name] for record in records]
        low, high = statistic_of(function).interval(listed, resamples=50)
        assert low <= function(listed) <= high


def test_a_logged_document_is_scored_as_the_document_was() -> None:
    doc, reply = document(box(9, 9), nothing=False), masks_reply(box(9, 8))
    record = score_reply(doc, reply)
    assert score_reply(logged_document(json.loads(json.dumps(record))), reply) == record


def test_documents_of_phrases_and_of_pictures(tmp_path: Path) -> None:
    write_gref(tmp_path, scenes=3)
    phrases = read_documents("val", {"root": tmp_path})
    pictures = read_documents("val", {"root": tmp_path, "unit": "picture"})
    assert len(pictures) == 3
    assert pictures.items == phrases.items == len(phrases) == sum(len(doc["expressions"]) for doc in pictures)
    assert [doc["expression"] for doc in phrases] == [one for doc in pictures for one in doc["expressions"]]
    assert {min(len(ids), 2) for doc in phrases for ids in doc["ann_ids"]} == {0, 1, 2}
    assert phrases.expected_items == 14229


def test_the_truth_gets_everything_on_the_synthetic_scenes() -> None:
    task = StandaloneTask("flmm_tiny_grefcoco")
    records = [
        task.score(doc, json.dumps({"masks": doc["masks"], "phrases": [{"phrase": doc["expression"], "mask": 0}]}))
        for doc in list(task.docs)[:20]
    ]
    printed = task.numbers(records)
    assert printed["gIoU"] == printed["cIoU"] == printed["N_acc"] == printed["T_acc"] == 100
    assert printed["complete"] == 0
