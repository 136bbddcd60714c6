"""A failed request earns no point in any task, and every task counts it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from flmm_plugin.records import encode_rle, error_json
from flmm_plugin.tasks.task_files import aggregations, dotted, task_config, task_files

pytest.importorskip("lmms_eval")

SIZE = (4, 8)
EMPTY, HALF = np.zeros(SIZE, dtype=bool), np.zeros(SIZE, dtype=bool)
HALF[:, :4] = True
MASKS = [encode_rle(HALF), encode_rle(EMPTY)]
PICTURE: dict[str, Any] = {"image_path": "a.jpg", "height": SIZE[0], "width": SIZE[1], "expected_items": 9}
YES_NO = [{"question_id": "a", "question": "?", "category": "existence", "answer": answer} for answer in ("Yes", "No")]

#: By the package that scores them, documents whose right answer a failed request could seem to be.
DOCUMENTS: dict[str, list[dict[str, Any]]] = {
    "refcoco": [{**PICTURE, "expressions": ["dog", "nothing"], "masks": MASKS}],
    "grefcoco": [{**PICTURE, "expressions": ["dogs", "nothing"], "masks": MASKS, "ann_ids": [[1, 2], []]}],
    "refcoco_m": [{**PICTURE, "expressions": ["nothing"], "masks": MASKS[1:]}],
    "png": [
        {
            **PICTURE, "narrative": 0, "expressions": ["a dog", "nothing"], "masks": MASKS,
            "kinds": [["singular", "thing"], ["plural", "stuff"]], "left_out": {"phrases": 0, "narratives": 0},
        }
    ],
    "reasonseg": [
        {**PICTURE, "query": "?", "split": "test", "is_sentence": one, "mask": MASKS[one], "ignore": MASKS[1]}
        for one in (False, True)
    ],
    "gcg": [
        {
            **PICTURE, "image_id": "a", "caption": "A dog.", "labels": ["dog"], "masks": MASKS[at:],
            "sentence_encoder": "words",
        }
        for at in (0, 1)
    ],
    "keywords": [
        {**PICTURE, "text": text, "spans": spans, "expressions": ["dog"] * len(spans), "expected_narratives": 9}
        for text, spans in (("A dog.", [[2, 5]]), ("", []))
    ],
    "viscot": [
        {
            **PICTURE, "question": "?", "answer": answer, "box": [0.0, 0.0, 8.0, 4.0], "question_id": 0,
            "with_boxes": True,
        }
        for answer in ("street", "")
    ],
    "pope_viscot": YES_NO,
    "tiny": YES_NO,
}  # fmt: skip
REPLIES = [
    "", "  \n", None, 5, error_json(RuntimeError("Yes")),
    error_json(RuntimeError("no")).replace('"text": ""', '"text": "A dog. street Yes"'),
    '{"text": "A dog. Yes", "masks": [{"size"', '{"text": "street", "masks": [{"size": [4, 8], "counts": "0"}]}',
]  # fmt: skip
COUNTS = {"items", "complete", "errors", "boxes", "reversed_boxes", "judge_items", "skipped_phrases",
          "skipped_narratives", "recall_curve", "METEOR", "CIDEr"}  # fmt: skip


def records(task: str, reply: Any) -> list[dict[str, Any]]:
    path = task_config(task)["process_results"]
    documents = DOCUMENTS[path.split(".")[2]]
    choices = task_config(task)["output_type"] == "multiple_choice"
    return [dict(dotted(path)(doc, reply if choices else [reply])) for doc in documents]


def scored(task: str, found: list[dict[str, Any]]) -> dict[str, Any]:
    numbers = {}
    for metric, aggregate in aggregations(task).items():
        samples = [one[metric] for one in found if metric in one]
        if samples and metric not in COUNTS - {"errors"}:
            numbers[metric] = aggregate(samples)
    return numbers


def replies_of(task: str) -> list[Any]:
    if task_config(task)["output_type"] != "multiple_choice":
        return REPLIES
    nothing = [float("inf"), float("nan")]
    pairs: list[Any] = [[(loss, False)] * 2 for loss in nothing] + [[(0.1, True), (loss, False)] for loss in nothing]
    return [*pairs, [str(pair) for pair in pairs[0]], [], [None, None], ["", ""], [(0.1, True)]]


@pytest.mark.parametrize("task", sorted(task_files()))
def test_a_failed_request_earns_nothing_and_is_counted(task: str) -> None:
    for reply in replies_of(task):
        found = records(task, reply)
        numbers = scored(task, found)
        items = [one["items"]["count"] if "items" in one else 1 for one in found]
        assert numbers.pop("errors") == sum(items), reply
        # Every mask, a failed one too, reaches the threshold 0 of average recall: 0.001 percent.
        limits = {metric: 0.0011 if metric.startswith("AR") else 0.0 for metric in numbers}
        assert all((value or 0.0) <= limits[metric] for metric, value in numbers.items()), (reply, numbers)
        if "METEOR" in found[0]:
            assert all(one["METEOR"]["caption"] == "" for one in found)


def test_a_failed_half_of_pope_is_wrong_by_every_number() -> None:
    documents = [{"question_id": "a", "answer": answer} for answer in ("yes", "no") * 5]
    score = dotted(task_config("flmm_pope_direct")["process_results"])
    found = [dict(score(doc, [doc["answer"] if at < 4 else ""])) for at, doc in enumerate(documents)]
    numbers = scored("flmm_pope_direct", found)
    assert numbers["errors"] == 6
    for metric in ("pope_accuracy", "accuracy_first_sentence", "pope_recall", "pope_f1_score", "f1_first_sentence"):
        assert numbers[metric] == pytest.approx(0.4)
    assert numbers["pope_yes_ratio"] == numbers["yes_ratio_first_sentence"] == 0.5  # of the four that were answered


def test_an_empty_mask_that_was_answered_is_still_right() -> None:
    for task in ("flmm_refcoco_val", "flmm_reasonseg_test"):
        answer = json.dumps({"masks": MASKS if task == "flmm_refcoco_val" else MASKS[1:]})
        assert scored(task, records(task, answer)[-1:])["gIoU"] == pytest.approx(100, abs=0.01)
