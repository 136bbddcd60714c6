"""RefCOCO-M's parquet: expressions with their masks, pictures as files, and what is damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from flmm_plugin.datasets.refcoco_m import EXPRESSIONS, RefcocoMDataset
from flmm_plugin.errors import BadAnnotation, DataNotFound
from flmm_plugin.tasks.benchmarks import benchmark_of, headline
from flmm_plugin.tasks.standalone import StandaloneTask
from flmm_plugin.tiny.layouts_refcoco_m import write_refcoco_m


def test_expressions_masks_and_pictures(tmp_path: Path) -> None:
    table = write_refcoco_m(tmp_path, scenes=3)
    dataset = RefcocoMDataset(tmp_path)
    assert len(dataset) > 3
    assert len({(item.image_id, item.ann_ids) for item in dataset}) < len(dataset)  # an object has several expressions
    for item in dataset:
        assert Image.open(item.image_path).size == (item.width, item.height)
        assert item.mask().any()
    before = {item.image_path: item.image_path.stat().st_mtime_ns for item in dataset}
    gone = dataset[0].image_path
    gone.unlink()
    again = RefcocoMDataset(tmp_path)
    assert gone.is_file()
    assert all(path.stat().st_mtime_ns == time for path, time in before.items() if path != gone)
    split = benchmark_of("refcoco-m").read(tmp_path, "validation")
    assert (split.items, split.expected, len(split.pictures)) == (len(again), EXPRESSIONS, 3)
    table.write_bytes(table.read_bytes()[:-50])
    with pytest.raises(BadAnnotation, match="damaged"):
        RefcocoMDataset(tmp_path)


def test_what_is_missing_or_another_data_set_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataNotFound, match="flmm data download refcoco-m"):
        RefcocoMDataset(tmp_path)
    import datasets

    path = tmp_path / "moondream/refcoco-m/data/validation-0.parquet"
    path.parent.mkdir(parents=True)
    datasets.Dataset.from_list([{"question": "?"}]).to_parquet(path)
    with pytest.raises(BadAnnotation, match=r"validation-0|picture"):
        RefcocoMDataset(tmp_path)


def test_the_truth_gets_everything_on_the_synthetic_scenes() -> None:
    task = StandaloneTask("flmm_tiny_refcoco_m")
    docs = list(task.docs)[:10]
    assert all(doc["expression"] == doc["expressions"][0] for doc in docs)
    printed = task.numbers([task.score(doc, json.dumps({"masks": doc["masks"]})) for doc in docs])
    assert printed["mIoU"] == printed["cIoU"] == printed["P@0.9"] == 100
    assert printed["complete"] == 0
    assert headline("flmm_refcoco_m") == ("mIoU",)
