"""Synthetic scenes written in RefCOCO's official layout, and what all layouts here share.

Every ``write_*`` function of the layouts fills the folder ``root``, which becomes a valid ``FLMM_DATA``, with
``scenes`` pictures per split or set, and returns it. The scenes are a function of ``seed`` and of the split or set; the
training of the embedded model never drew from these streams.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import contourpy
import numpy as np
from PIL import Image

from flmm_plugin.records import mask_box
from flmm_plugin.tiny import language
from flmm_plugin.tiny.scenes import SHAPES, BoolArray, Scene, render, sample_scene, visible_masks

PICTURE_SIZE = 224

# Data set -> who split it, and its splits.
_REFER = {
    "refcoco": ("unc", ("val", "testA", "testB")),
    "refcoco+": ("unc", ("val", "testA", "testB")),
    "refcocog": ("umd", ("val", "test")),
}
_TRAIN_STREAM = 9  # above the numbers of all other splits


def save_jpeg(scene: Scene, path: Path) -> None:
    """Paint a scene into a file of `PICTURE_SIZE` pixels a side."""
    Image.fromarray(render(scene, PICTURE_SIZE)).save(path, quality=95, subsampling=0)


def polygons(mask: BoolArray) -> list[list[float]]:
    """Return the outlines of a mask as COCO polygons (``x0, y0, x1, y1, ...`` in pixels of the image frame)."""
    padded = np.pad(mask.astype(np.float32), 1)
    lines: list[Any] = list(contourpy.contour_generator(z=padded).lines(0.5))
    return [np.round(line - 0.5, 2).ravel().tolist() for line in lines if len(line) > 3]


def coco_box(mask: BoolArray) -> list[int]:
    """Return the box of a mask as COCO has it: ``x, y, width, height`` in pixels; all 0 for an empty mask."""
    x0, y0, x1, y1 = (int(side) for side in mask_box(mask))
    return [x0, y0, x1 - x0, y1 - y0]


def coco_image(image_id: int, file_name: str) -> dict[str, Any]:
    """Return COCO's record of a picture."""
    return {"id": image_id, "file_name": file_name, "height": PICTURE_SIZE, "width": PICTURE_SIZE}


def coco_annotation(annotation_id: int, image_id: int, category: int, mask: BoolArray) -> dict[str, Any]:
    """Return COCO's record of an object; `category` is its id, from 1."""
    return {
        "id": annotation_id, "image_id": image_id, "category_id": category, "iscrowd": 0,
        "segmentation": polygons(mask), "area": int(mask.sum()), "bbox": coco_box(mask),
    }  # fmt: skip


def no_instances() -> dict[str, list[Any]]:
    """Return the content of a COCO file without a picture: the shapes are its categories."""
    categories = [{"id": i + 1, "name": shape, "supercategory": "shape"} for i, shape in enumerate(SHAPES)]
    return {"images": [], "annotations": [], "categories": categories}


def write_refer(
    root: Path,
    *,
    scenes: int | Mapping[str, int] = 60,
    seed: int = 1000,
    names: tuple[str, ...] = tuple(_REFER),
) -> Path:
    """Write RefCOCO-like data sets under ``root/coco``: refcoco, refcoco+ (no place) and refcocog (long descriptions).

    ``scenes`` may give the pictures of each split by its name, ``train`` among them.
    """
    pictures = root / "coco" / "train2014"
    pictures.mkdir(parents=True, exist_ok=True)
    for set_number, name in enumerate(names):
        splitter, splits = _REFER[name]
        files = _ReferFiles(name)
        sizes = scenes if isinstance(scenes, Mapping) else dict.fromkeys(splits, scenes)
        for split, pictures_of_split in sizes.items():
            split_number = _TRAIN_STREAM if split == "train" else splits.index(split)
            for number in range(pictures_of_split):
                rng = np.random.default_rng([seed, 10 + set_number, split_number, number])
                scene = sample_scene(rng)
                image_id = (set_number + 1) * 100_000 + split_number * 10_000 + number
                save_jpeg(scene, pictures / files.add(scene, image_id, split, rng))
        folder = root / "coco" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "instances.json").write_text(json.dumps(files.instances))
        (folder / f"refs({splitter}).p").write_bytes(pickle.dumps(files.refs, protocol=2))
    return root


class _ReferFiles:
    """Content of a data set's two files."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.refs: list[dict[str, Any]] = []
        self.instances = no_instances()
        self._sentences = 0

    def add(self, scene: Scene, image_id: int, split: str, rng: np.random.Generator) -> str:
        """Add a picture with all objects that can be referred to; return its file name."""
        file_name = f"COCO_train2014_{image_id:012d}.jpg"
        self.instances["images"].append(coco_image(image_id, file_name))
        for index, mask in enumerate(visible_masks(scene, PICTURE_SIZE)):
            texts = self._texts(scene, index, rng)
            if not texts:
                continue
            annotation_id = len(self.instances["annotations"]) + 1
            category = SHAPES.index(scene.things[index].shape) + 1
            self.instances["annotations"].append(coco_annotation(annotation_id, image_id, category, mask))
            sentences = [
                {"sent_id": self._sentences + i, "sent": t, "raw": t, "tokens": t.split()} for i, t in enumerate(texts)
            ]
            self._sentences += len(texts)
            self.refs.append(
                {
                    "ref_id": len(self.refs) + 1, "ann_id": annotation_id, "image_id": image_id,
                    "category_id": category, "file_name": file_name.replace(".jpg", f"_{annotation_id}.jpg"),
                    "split": split, "sent_ids": [s["sent_id"] for s in sentences], "sentences": sentences,
                }
            )  # fmt: skip
        return file_name

    def _texts(self, scene: Scene, index: int, rng: np.random.Generator) -> list[str]:
        without = ("place",) if self.name == "refcoco+" else ()
        options = language.referring_expressions(scene, scene.things[index], without=without)
        if self.name == "refcocog":  # long, full descriptions, as there
            options = options[-2:]
        return [options[int(i)] for i in rng.permutation(len(options))[:3]]
