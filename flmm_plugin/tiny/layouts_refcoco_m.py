"""Synthetic scenes in the layout of RefCOCO-M: parquet rows of pictures, each with its objects and expressions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from flmm_plugin.datasets.refcoco_m import REPO
from flmm_plugin.records import encode_rle
from flmm_plugin.tiny import language
from flmm_plugin.tiny.layouts import coco_box
from flmm_plugin.tiny.layouts_questions import png_bytes
from flmm_plugin.tiny.scenes import Scene, sample_scene, visible_masks

_STREAM = 80  # of the draws, apart from those of the other layouts
_SIZE = 224  # pixels of a side, as of `png_bytes`


def write_refcoco_m(root: Path, *, scenes: int = 60, seed: int = 1000) -> Path:
    """Write ``root/moondream/refcoco-m``: every object with up to two of its expressions. Returns the parquet file."""
    import datasets

    rows = [_row(number, np.random.default_rng([seed, _STREAM, number])) for number in range(scenes)]
    text, number = datasets.Value("string"), datasets.Value("int64")
    sample = {
        "id": number, "category": text, "sentences": [text], "bbox": [datasets.Value("float32")],
        "mask": {"counts": text, "size": [datasets.Value("int32")]},
    }  # fmt: skip
    kinds = {"image": datasets.Image(), "image_id": number, "file_name": text, "samples": [sample]}
    path = root / REPO / "data" / "validation-00000-of-00001.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_list(rows, features=datasets.Features(kinds)).to_parquet(path)
    return path


def _row(number: int, rng: np.random.Generator) -> dict[str, Any]:
    scene: Scene = sample_scene(rng)
    samples = []
    for place, mask in enumerate(visible_masks(scene, _SIZE)):
        options = language.referring_expressions(scene, scene.things[place])
        if options:
            drawn = [options[int(at)] for at in rng.permutation(len(options))[:2]]
            samples.append(
                {
                    "id": 100 * number + place, "category": scene.things[place].shape, "sentences": drawn,
                    "bbox": coco_box(mask), "mask": encode_rle(mask),
                }
            )  # fmt: skip
    name = f"COCO_train2014_{number:012d}.jpg"
    return {"image": png_bytes(scene), "image_id": number, "file_name": name, "samples": samples}
