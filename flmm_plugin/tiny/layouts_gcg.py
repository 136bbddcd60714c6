"""Synthetic scenes in the official layouts of GranD-f and ReasonSeg."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flmm_plugin.records import encode_rle
from flmm_plugin.tiny import language
from flmm_plugin.tiny.layouts import PICTURE_SIZE, coco_box, polygons, save_jpeg
from flmm_plugin.tiny.scenes import BoolArray, Scene, Thing, sample_scene, visible_masks

# A stream of scenes per split, apart from those of the other layouts.
_GCG_STREAM, _REASONSEG_STREAM = 40, 50


def write_grandf(root: Path, *, scenes: int = 60, seed: int = 1000, splits: Sequence[str] = ("val", "test")) -> Path:
    """Write GranD-f's evaluation splits: captions of all objects, one label and one mask for each."""
    pictures = root / "GranDf_HA_images" / "val_test"
    folder = root / "GranDf" / "annotations" / "val_test"
    for made in (pictures, folder):
        made.mkdir(parents=True, exist_ok=True)
    for number, split in enumerate(splits):
        images: list[dict[str, Any]] = []
        captions: list[dict[str, Any]] = []
        masks: list[dict[str, Any]] = []
        for index in range(scenes):
            scene = sample_scene(np.random.default_rng([seed, _GCG_STREAM, number, index]))
            image_id = f"sa_{(number + 1) * 100_000 + index}"
            save_jpeg(scene, pictures / f"{image_id}.jpg")
            images.append({"id": image_id, "height": PICTURE_SIZE, "width": PICTURE_SIZE})
            turn = language.caption(scene)
            visible = visible_masks(scene, PICTURE_SIZE)
            labels = []
            for _, start, end, thing in turn.mentions:
                labels.append(turn.answer[start:end])
                mask = visible[thing]
                masks.append(
                    {
                        "id": len(masks) + 1, "image_id": image_id, "category_id": 1, "iscrowd": 0,
                        "segmentation": encode_rle(mask), "area": int(mask.sum()), "bbox": coco_box(mask),
                    }
                )  # fmt: skip
            captions.append({"id": index, "image_id": image_id, "caption": turn.answer, "labels": labels})
        files = {
            "caption": {"images": images, "annotations": captions},
            "mask": {"images": images, "annotations": masks, "categories": [{"id": 1, "name": "object"}]},
        }
        for kind, content in files.items():
            (folder / f"{split}_gcg_coco_{kind}_gt.json").write_text(json.dumps(content), encoding="utf-8")
    return root


def write_reasonseg(root: Path, *, scenes: int = 60, seed: int = 1000, splits: Sequence[str] = ("val", "test")) -> Path:
    """Write ReasonSeg's splits: of every scene one object, asked for by what it is and never by where it is.

    Every second query is a sentence ("Where is the small star?"), the others are phrases ("the small star"). In every
    third picture another object is marked as ignored. Objects that nothing but their place tells apart are not asked
    for; such a scene is drawn anew.
    """
    for number, split in enumerate(splits):
        folder = root / "ReasonSeg" / split
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(scenes):
            scene, thing, phrase = _asked(seed, number, index)
            sentence = index % 2 == 0
            query = f"Where is the {phrase}?" if sentence else f"the {phrase}"
            visible = visible_masks(scene, PICTURE_SIZE)
            asked_for = scene.things.index(thing)
            shapes = _shapes("target", visible[asked_for])
            others = [place for place in range(len(scene.things)) if place != asked_for]
            if index % 3 == 0 and others:
                shapes += _shapes("ignore", visible[others[0]])
            name = f"{index:06d}"
            save_jpeg(scene, folder / f"{name}.jpg")
            content = {
                "text": [query],
                "is_sentence": sentence,
                "shapes": [{**shape, "image_name": f"{name}.jpg"} for shape in shapes],
            }
            (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return root


def _asked(seed: int, split: int, index: int) -> tuple[Scene, Thing, str]:
    """A scene, an object of it, and its shortest description without its place."""
    rng = np.random.default_rng([seed, _REASONSEG_STREAM, split, index])
    while True:
        scene = sample_scene(rng)
        for place in rng.permutation(len(scene.things)):
            thing = scene.things[int(place)]
            options = language.referring_expressions(scene, thing, without=("place",))
            if options:
                return scene, thing, options[0]


def _shapes(label: str, mask: BoolArray) -> list[dict[str, Any]]:
    """A mask's outlines as labelme's polygons."""
    return [
        {
            "label": label, "labels": [label], "shape_type": "polygon", "points": np.reshape(line, (-1, 2)).tolist(),
            "group_id": None, "group_ids": [None], "flags": {},
        }
        for line in polygons(mask)
    ]  # fmt: skip
