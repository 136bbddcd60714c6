"""gRefCOCO's files: several objects, none, crowds, and refs that do not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flmm_plugin.datasets.gref import OFFICIAL_SIZES, GrefDataset
from flmm_plugin.errors import BadAnnotation, DataNotFound, UnknownArgument
from flmm_plugin.tasks.benchmarks import benchmark_of

IMAGE = {"id": 7, "file_name": "COCO_train2014_000000000007.jpg", "height": 20, "width": 30}


def square(number: int, left: int, **more: Any) -> dict[str, Any]:
    corners = [left, 2, left + 6, 2, left + 6, 8, left, 8]
    return {"id": number, "image_id": 7, "iscrowd": 0, "segmentation": [corners], **more}


def ref(number: int, ids: Any, split: str = "val", *texts: str, **more: Any) -> dict[str, Any]:
    sentences = [{"sent_id": 1, "raw": text, "sent": text.lower(), "tokens": []} for text in texts or ("Both Men",)]
    return {"ref_id": number, "ann_id": ids, "image_id": 7, "split": split, "sentences": sentences, **more}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def written(refs: list[Any], annotations: list[Any] | None = None, folder: str = "grefcoco") -> Path:
        home = tmp_path / folder
        home.mkdir(parents=True)
        (tmp_path / "images" / "train2014").mkdir(parents=True)
        crowd = {"counts": [0, 600], "size": [20, 30]}
        objects = annotations or [square(1, 2), square(2, 20), square(3, 0, iscrowd=1, segmentation=crowd)]
        (home / "instances.json").write_text(json.dumps({"images": [IMAGE], "annotations": objects, "categories": []}))
        (home / "grefs(unc).json").write_text(json.dumps(refs))
        return tmp_path

    return written


@pytest.mark.parametrize("folder", ["grefcoco", "coco/grefcoco"])
def test_one_several_and_no_object(write: Callable[..., Path], folder: str) -> None:
    refs = [ref(1, [1, 2], "val", "Both Men", "two men"), ref(2, [-1]), ref(3, 1), ref(4, [1, 3]), ref(5, [2], "testA")]
    dataset = GrefDataset(write(refs, folder=folder), "val")
    assert [item.phrase for item in dataset] == ["Both Men", "two men", "Both Men", "Both Men", "Both Men"]
    assert [item.ann_ids for item in dataset] == [(1, 2), (1, 2), (), (1,), (1, 3)]
    masks = [item.mask() for item in dataset]
    assert [int(mask.sum()) for mask in masks] == [72, 72, 0, 36, 36]
    assert np.flatnonzero(masks[0].any(axis=0)).tolist() == [*range(2, 8), *range(20, 26)]
    assert [problem.kind.split(",")[0] for problem in dataset.problems] == ["crowd annotation"]
    assert dataset.split_counts == {"val": 4, "testA": 1}
    assert dataset[0].image_path.parent.parts[-2:] == ("images", "train2014")


@pytest.mark.parametrize(
    "wrong",
    [ref(1, [9]), ref(1, []), ref(1, [1, -1]), ref(1, None), ref(1, [1], image_id=8), {**ref(1, [1]), "sentences": 3}],
)
def test_a_ref_that_does_not_fit_is_named(write: Callable[..., Path], wrong: dict[str, Any]) -> None:
    with pytest.raises(BadAnnotation, match="ref 1"):
        list(GrefDataset(write([wrong]), "val"))


def test_an_object_of_another_picture_is_refused(write: Callable[..., Path]) -> None:
    with pytest.raises(BadAnnotation, match="another image"):
        GrefDataset(write([ref(1, [1])], [square(1, 2, image_id=8)]), "val")


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataNotFound, match="expressions of gRefCOCO"):
        GrefDataset(tmp_path, "val")
    with pytest.raises(UnknownArgument, match="testA"):
        GrefDataset(tmp_path, "testC")


def test_the_record_states_the_official_sizes(write: Callable[..., Path]) -> None:
    root = write([ref(1, [1], "val", "a", "b")])
    split = benchmark_of("grefcoco").read(root, "val")
    assert (split.items, split.expected, split.unit) == (2, OFFICIAL_SIZES["val"].expressions, "expressions")
