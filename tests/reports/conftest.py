"""Result files as lmms-eval 0.7 lays them out, built here key by key."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flmm_plugin.records import encode_rle

RECORD = {
    "versions": {"flmm_plugin": "0.1.0", "lmms_eval": "0.7.3", "torch": "2.15.0", "transformers": "5.23.0"},
    "commit": "0123456789abcdef",
    "kernel": "sdpa",
    "dtype": "float32",
    "device": "cpu",
    "batch_size": 1,
    "processes": 1,
    "heads": {"sha256": "feedfacefeedfacefeed", "sam": "vit_l", "prompts": "mask + box + text", "merge": "mean"},
    "options": {},
}


@pytest.fixture
def write_run(tmp_path: Path) -> Callable[..., Path]:
    """``write_run(name, model, tasks)``: a folder with one ``*_results.json``; ``tasks[task]`` maps metrics to values.

    ``counts[task]`` is (effective, original); ``samples[task]`` a list of sample lines; ``record`` the plugin's own
    record, None for a stock adapter.
    """

    def write(
        name: str,
        model: str,
        tasks: Mapping[str, Mapping[str, float]],
        *,
        arguments: str = "",
        counts: Mapping[str, tuple[int, int]] | None = None,
        metadata: Mapping[str, Any] | None = None,
        samples: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
        record: Mapping[str, Any] | None = None,
        date: str = "20260101_000000",
    ) -> Path:
        folder = tmp_path / name / "model"
        folder.mkdir(parents=True)
        content: dict[str, Any] = {
            "results": {
                task: {"alias": task, **{f"{metric},none": value for metric, value in metrics.items()}}
                for task, metrics in tasks.items()
            },
            "configs": {
                task: {"task": task, "metadata": (metadata or {}).get(task, [{"version": 0.0}])} for task in tasks
            },
            "n-samples": {
                task: dict(zip(("effective", "original"), n, strict=True)) for task, n in (counts or {}).items()
            },
            "config": {"model": model, "model_args": arguments, "batch_size": 1, "device": None, "random_seed": 0},
            "lmms_eval_version": "unknown@unknown",
            "date": date,
            "total_evaluation_time_seconds": "1.0",
        }
        if record is not None:
            content["flmm"] = {**RECORD, **record}
        (folder / f"{date}_results.json").write_text(json.dumps(content), encoding="utf-8")
        for task, lines in (samples or {}).items():
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (folder / f"{date}_samples_{task}.jsonl").write_text(text, encoding="utf-8")
        return tmp_path / name

    return write


def chat_sample(doc_id: int, question: str, answer: str, target: str) -> dict[str, Any]:
    """A line of a sample log as lmms-eval writes it for a question with one answer."""
    return {"doc_id": doc_id, "input": question, "resps": f" {answer}", "filtered_resps": answer, "target": target}


def square(size: tuple[int, int], x0: int, y0: int, side: int) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[y0 : y0 + side, x0 : x0 + side] = True
    return mask


def mask_sample(
    doc_id: int, phrases: Sequence[str], image: str | None, shifts: Sequence[int], size: tuple[int, int] = (40, 60)
) -> dict[str, Any]:
    """A line of a mask task's log: square targets, predictions shifted to the right by so many pixels."""
    targets = [square(size, 5 + 12 * place, 5, 10) for place in range(len(phrases))]
    found = [np.roll(target, shift, axis=1) for target, shift in zip(targets, shifts, strict=True)]
    reply = {
        "text": "",
        "phrases": [{"phrase": phrase, "span": None, "mask": place} for place, phrase in enumerate(phrases)],
        "masks": [encode_rle(mask) for mask in found],
        "boxes": [],
        "scores": [0.5] * len(phrases),
    }
    counts = {
        "I": [int((a & b).sum()) for a, b in zip(found, targets, strict=True)],
        "U": [int((a | b).sum()) for a, b in zip(found, targets, strict=True)],
    }
    return {
        "doc_id": doc_id,
        "input": "Segment each of these",
        "target": "; ".join(phrases),
        "filtered_resps": json.dumps(reply),
        "cIoU": counts,
        "reference": {
            "phrases": list(phrases), "masks": [encode_rle(mask) for mask in targets], "size": list(size),
            "image_path": image,
        },
    }  # fmt: skip


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A picture of 60 x 40 (width x height)."""
    path = tmp_path / "picture.png"
    Image.new("RGB", (60, 40), (90, 120, 150)).save(path)
    return path
