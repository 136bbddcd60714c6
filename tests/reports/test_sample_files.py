"""Logs of tasks that match masks and not words: which mask stands beside which target."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flmm_plugin.records import encode_rle
from flmm_plugin.reports.result_files import read_results
from flmm_plugin.reports.sample_files import read_samples
from flmm_plugin.tasks.gcg import scoring
from tests.reports.conftest import square

SIZE = (40, 60)


def gcg_sample(doc_id: int, labels: list[str], said: list[tuple[str, int | None]]) -> dict[str, Any]:
    """Targets are squares side by side; phrase i of the reply has the mask of target `at`, or none."""
    targets = [square(SIZE, 5 + 12 * place, 5, 10) for place in range(len(labels))]
    masks, phrases = [], []
    for text, at in said:
        phrases.append({"phrase": text, "mask": None if at is None else len(masks)})
        if at is not None:
            masks.append(encode_rle(targets[at]))
    doc = {
        "labels": labels, "masks": [encode_rle(mask) for mask in targets], "height": SIZE[0], "width": SIZE[1],
        "caption": "c", "image_id": str(doc_id), "image_path": "a.jpg", "sentence_encoder": "words",
        "expected_items": None,
    }  # fmt: skip
    reply = json.dumps({"text": "c", "phrases": phrases, "masks": masks})
    return {
        "doc_id": doc_id, "input": "q", "target": "c", "filtered_resps": reply, **scoring.score_reply(doc, reply)
    }  # fmt: skip


def test_every_target_stands_beside_the_mask_that_meets_it_best(write_run: Callable[..., Path]) -> None:
    lines = [
        gcg_sample(0, ["cup", "dog"], [("a dog", 1), ("sky", None), ("a cup", 0)]),
        gcg_sample(1, ["cup", "dog"], []),
        gcg_sample(2, [], [("a ghost", None)]),
    ]
    tasks = {"flmm_gcg_val": {"mIoU": 50.0}}
    folder = write_run("gcg", "flmm_tiny", tasks, samples={"flmm_gcg_val": lines}, record={})
    both, nothing, empty = read_samples(read_results([folder]))
    assert [(one.phrase, one.iou, one.predicted == one.target) for one in both.phrases] == [
        ("cup", 1.0, True),
        ("dog", 1.0, True),
    ]
    assert [(one.phrase, one.iou, one.predicted) for one in nothing.phrases] == [("cup", 0.0, None), ("dog", 0.0, None)]
    assert [(one.phrase, one.iou) for one in empty.phrases] == [("a ghost", None)]
