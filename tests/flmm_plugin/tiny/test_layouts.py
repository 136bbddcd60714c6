"""The world on disk is read back by the very readers of the real data."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flmm_plugin.datasets.refer import ReferDataset
from flmm_plugin.tiny import layouts, layouts_questions, scenes


@pytest.mark.parametrize(("name", "split"), [("refcoco", "testB"), ("refcoco+", "val"), ("refcocog", "test")])
def test_refer_layout_round_trips(tmp_path: Path, name: str, split: str) -> None:
    layouts.write_refer(tmp_path, scenes=3, seed=5, names=(name,))
    items = list(ReferDataset(tmp_path, name, split))
    assert len(items) >= 3
    data = ReferDataset(tmp_path, name, split)
    for item in items:
        assert item.image_path.exists()
        mask = data.mask(item)
        assert mask.shape == (layouts.PICTURE_SIZE, layouts.PICTURE_SIZE)
        assert item.sentences
        if name == "refcoco+":
            assert not any(" at the " in sentence for sentence in item.sentences)


def test_polygons_are_the_mask_to_within_its_outline() -> None:
    from pycocotools import mask as coco

    for seed in range(10):
        for mask in scenes.visible_masks(scenes.sample_scene(np.random.default_rng(seed)), 224):
            rles = coco.frPyObjects(layouts.polygons(mask), 224, 224)
            again = coco.decode(coco.merge(rles)).astype(bool)
            assert (again & mask).sum() / (again | mask).sum() > 0.97


def test_mme_pairs_ask_one_yes_and_one_no(tmp_path: Path) -> None:
    import pyarrow.parquet as parquet

    path = layouts_questions.write_mme(tmp_path, scenes=8, seed=5)
    assert path == tmp_path / "lmms-lab-encoder" / "MME" / "data" / "test-00000-of-00001.parquet"
    rows = parquet.read_table(path).to_pylist()
    assert [row["answer"] for row in rows] == ["Yes", "No"] * 8
    assert {row["category"] for row in rows} == set(layouts_questions.MME.categories)
    assert all(row["question"].endswith(" Please answer yes or no.") for row in rows)
    assert Image.open(io.BytesIO(rows[0]["image"]["bytes"])).size == (224, 224)
    assert len({row["question_id"] for row in rows}) == 8
