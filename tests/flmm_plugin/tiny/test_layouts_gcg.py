"""The world in GranD-f's and ReasonSeg's layouts is a function of its seed, and splits share no scene."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from flmm_plugin.datasets.grandf import GranDfDataset
from flmm_plugin.datasets.reasonseg import ReasonSegDataset
from flmm_plugin.records import decode_rle
from flmm_plugin.tiny import layouts_gcg


def test_a_seed_is_a_world(tmp_path: Path) -> None:
    for name, seed in (("one", 5), ("same", 5), ("other", 6)):
        layouts_gcg.write_grandf(tmp_path / name, scenes=2, seed=seed)
        layouts_gcg.write_reasonseg(tmp_path / name, scenes=2, seed=seed)
    for split in ("val", "test"):
        digests = [
            (GranDfDataset(tmp_path / name, split).digest, ReasonSegDataset(tmp_path / name, split).digest)
            for name in ("one", "same", "other")
        ]
        assert digests[0] == digests[1]
        assert digests[0][0] != digests[2][0]
        assert digests[0][1] != digests[2][1]
    one = [GranDfDataset(tmp_path / "one", split) for split in ("val", "test")]
    assert {item.image_id for item in one[0]}.isdisjoint(item.image_id for item in one[1])


def test_labels_are_parts_of_the_caption_and_masks_do_not_overlap(tmp_path: Path) -> None:
    layouts_gcg.write_grandf(tmp_path, scenes=4, splits=("val",))
    for item in GranDfDataset(tmp_path, "val"):
        assert item.image_path.is_file()
        masks = np.stack([decode_rle(code) for code in item.masks])
        assert masks.any(axis=(1, 2)).all()
        assert masks.sum(axis=0).max() == 1
        places = [item.caption.index(label) for label in item.labels]
        assert places == sorted(places)
