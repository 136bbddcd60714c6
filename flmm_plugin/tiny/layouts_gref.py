"""Synthetic scenes in the layout of gRefCOCO: expressions that mean one object, several, or none."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flmm_plugin.datasets.gref import NOTHING
from flmm_plugin.tiny import language
from flmm_plugin.tiny.layouts import PICTURE_SIZE, coco_annotation, coco_image, no_instances, save_jpeg
from flmm_plugin.tiny.scenes import COLORS, SHAPES, Scene, sample_scene, visible_masks

_STREAM = 70  # of the draws, apart from those of the other layouts
_FIRST_IMAGE = 700_000


def write_gref(root: Path, *, scenes: int = 60, seed: int = 1000, splits: Sequence[str] = ("val",)) -> Path:
    """Write ``root/coco/grefcoco`` and pictures: every object, every group of like ones, and one that is not there."""
    pictures, folder = root / "coco" / "train2014", root / "coco" / "grefcoco"
    for one in (pictures, folder):
        one.mkdir(parents=True, exist_ok=True)
    instances = no_instances()
    refs: list[dict[str, Any]] = []
    for split_number, split in enumerate(splits):
        for number in range(scenes):
            rng = np.random.default_rng([seed, _STREAM, split_number, number])
            scene = sample_scene(rng, min_things=2)
            image_id = _FIRST_IMAGE + split_number * 10_000 + number
            file_name = f"COCO_train2014_{image_id:012d}.jpg"
            save_jpeg(scene, pictures / file_name)
            instances["images"].append(coco_image(image_id, file_name))
            first = len(instances["annotations"]) + 1
            for place, mask in enumerate(visible_masks(scene, PICTURE_SIZE)):
                category = SHAPES.index(scene.things[place].shape) + 1
                instances["annotations"].append(coco_annotation(first + place, image_id, category, mask))
            for text, meant in _expressions(scene, rng):
                ids = [first + place for place in meant] or [NOTHING]
                refs.append(_ref(len(refs) + 1, ids, image_id, file_name, split, text))
    (folder / "instances.json").write_text(json.dumps(instances), encoding="utf-8")
    (folder / "grefs(unc).json").write_text(json.dumps(refs), encoding="utf-8")
    return root


def _expressions(scene: Scene, rng: np.random.Generator) -> Iterator[tuple[str, list[int]]]:
    """Yield expressions with the indices of the objects that they mean."""
    for place, thing in enumerate(scene.things):
        options = language.referring_expressions(scene, thing)
        if options:
            yield language.pick(rng, options), [place]
    for attribute in ("color", "shape"):
        for value in dict.fromkeys(getattr(thing, attribute) for thing in scene.things):
            alike = [place for place, thing in enumerate(scene.things) if getattr(thing, attribute) == value]
            if len(alike) > 1:
                yield f"all {f'{value} objects' if attribute == 'color' else language.plural(value)}", alike
    there = {(thing.color, thing.shape) for thing in scene.things}
    colors = {color for color, _ in there}
    absent = [(color, shape) for color in COLORS for shape in SHAPES if (color, shape) not in there]
    near = [f"{color} {shape}" for color, shape in absent if color in colors]
    yield language.pick(rng, near), []


def _ref(ref_id: int, ids: list[int], image_id: int, file_name: str, split: str, text: str) -> dict[str, Any]:
    sentence = {"sent_id": ref_id, "sent": text, "raw": text, "tokens": text.split()}
    return {
        "ref_id": ref_id, "ann_id": ids, "image_id": image_id, "category_id": [NOTHING] * len(ids), "split": split,
        "file_name": file_name, "sent_ids": [ref_id], "sentences": [sentence], "no_target": ids == [NOTHING],
    }  # fmt: skip
