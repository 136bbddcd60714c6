"""The world written to disk in the benchmarks' official layouts, so that the real readers and harness tasks run on it.

RefCOCO's layout (``coco/<name>/instances.json``, ``refs(<by>).p``, ``coco/train2014/COCO_train2014_%012d.jpg``) and
MME's (``lmms-lab-encoder/MME/data/test-*.parquet``, two questions a picture, one yes and one no).
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import contourpy
import numpy as np
from PIL import Image

from flmm_plugin.tiny import language
from flmm_plugin.tiny.scenes import SHAPES, BoolArray, Scene, render, sample_scene, visible_masks

PICTURE_SIZE = 224
MME_CATEGORIES = ("existence", "count", "position", "color")


@dataclass(frozen=True)
class _Layout:
    by: str
    splits: tuple[str, ...]


_REFER = {
    "refcoco": _Layout("unc", ("val", "testA", "testB")),
    "refcoco+": _Layout("unc", ("val", "testA", "testB")),
    "refcocog": _Layout("umd", ("val", "test")),
}


_TRAIN_STREAM = 9  # above the numbers of all other splits


def polygons(mask: BoolArray) -> list[list[float]]:
    """Outlines of a mask as COCO polygons (``x0, y0, x1, y1, ...`` in pixels of the image frame)."""
    padded = np.pad(mask.astype(np.float32), 1)
    lines: list[Any] = list(contourpy.contour_generator(z=padded).lines(0.5))
    return [np.round(line - 0.5, 2).ravel().tolist() for line in lines if len(line) > 3]


def _sentences(scene: Scene, index: int, name: str, rng: np.random.Generator) -> list[str]:
    thing = scene.things[index]
    options = language.referring_expressions(scene, thing, without=("place",) if name == "refcoco+" else ())
    if name == "refcocog":  # long, full descriptions, as there
        options = options[-2:]
    order = rng.permutation(len(options))[:3]
    return [options[int(i)] for i in order]


def write_refer(
    root: Path,
    *,
    scenes: int | Mapping[str, int] = 60,
    seed: int = 1000,
    names: tuple[str, ...] = tuple(_REFER),
) -> Path:
    """Write RefCOCO-like data sets under ``root/coco``.

    Args:
        root: Folder to write into; becomes a valid ``FLMM_DATA``.
        scenes: Pictures per split of evaluation; or the splits by name with their pictures, ``train`` among them.
        seed: Scenes are a function of it, and of the split; training of the LMM never uses these streams.
        names: Which of refcoco, refcoco+ (no words of place) and refcocog (long descriptions).

    Returns:
        ``root``.
    """
    pictures = root / "coco" / "train2014"
    pictures.mkdir(parents=True, exist_ok=True)
    for set_number, name in enumerate(names):
        layout = _REFER[name]
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        refs: list[dict[str, Any]] = []
        sentence_id = 0
        sizes = scenes if isinstance(scenes, Mapping) else dict.fromkeys(layout.splits, scenes)
        for split, pictures_of_split in sizes.items():
            split_number = _TRAIN_STREAM if split == "train" else layout.splits.index(split)
            for number in range(pictures_of_split):
                rng = np.random.default_rng([seed, 10 + set_number, split_number, number])
                scene = sample_scene(rng)
                image_id = (set_number + 1) * 100_000 + split_number * 10_000 + number
                file_name = f"COCO_train2014_{image_id:012d}.jpg"
                Image.fromarray(render(scene, PICTURE_SIZE)).save(pictures / file_name, quality=95, subsampling=0)
                images.append({"id": image_id, "file_name": file_name, "height": PICTURE_SIZE, "width": PICTURE_SIZE})
                for index, mask in enumerate(visible_masks(scene, PICTURE_SIZE)):
                    texts = _sentences(scene, index, name, rng)
                    if not texts:
                        continue
                    annotation_id = len(annotations) + 1
                    ys, xs = np.nonzero(mask)
                    box = [int(xs.min()), int(ys.min()), int(np.ptp(xs)) + 1, int(np.ptp(ys)) + 1]
                    category = SHAPES.index(scene.things[index].shape) + 1
                    annotations.append(
                        {
                            "id": annotation_id,
                            "image_id": image_id,
                            "category_id": category,
                            "iscrowd": 0,
                            "segmentation": polygons(mask),
                            "area": int(mask.sum()),
                            "bbox": box,
                        }
                    )
                    sentences = [
                        {"sent_id": sentence_id + i, "sent": t, "raw": t, "tokens": t.split()}
                        for i, t in enumerate(texts)
                    ]
                    sentence_id += len(texts)
                    refs.append(
                        {
                            "ref_id": len(refs) + 1,
                            "ann_id": annotation_id,
                            "image_id": image_id,
                            "category_id": category,
                            "file_name": file_name.replace(".jpg", f"_{annotation_id}.jpg"),
                            "split": split,
                            "sent_ids": [s["sent_id"] for s in sentences],
                            "sentences": sentences,
                        }
                    )
        folder = root / "coco" / name
        folder.mkdir(parents=True, exist_ok=True)
        categories = [{"id": i + 1, "name": shape, "supercategory": "shape"} for i, shape in enumerate(SHAPES)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / "instances.json").write_text(json.dumps(content))
        (folder / f"refs({layout.by}).p").write_bytes(pickle.dumps(refs, protocol=2))
    return root


def write_mme(root: Path, *, scenes: int = 60, seed: int = 1000) -> Path:
    """Write MME's test split as ``root/lmms-lab-encoder/MME``, which the stock ``mme`` task reads when run in ``root``.

    Args:
        root: Working folder of the later run.
        scenes: Pictures; each gives one question answered yes and one answered no, of one category in turn.
        seed: Scenes are a function of it.

    Returns:
        The parquet file.
    """
    from io import BytesIO

    import datasets

    rows: dict[str, list[Any]] = {k: [] for k in ("question_id", "image", "question", "answer", "category")}
    for number in range(scenes):
        rng = np.random.default_rng([seed, 20, number])
        scene = sample_scene(rng)
        category = MME_CATEGORIES[number % len(MME_CATEGORIES)]
        buffer = BytesIO()
        Image.fromarray(render(scene, PICTURE_SIZE)).save(buffer, "PNG")
        for truth in (True, False):
            turn = language.yes_no_question(scene, rng, truth=truth, category=category, short_share=0.0)
            rows["question_id"].append(f"{category}/{number:04d}.png")
            rows["image"].append({"bytes": buffer.getvalue(), "path": None})
            rows["question"].append(f"{turn.question} Please answer yes or no.")
            rows["answer"].append("Yes" if truth else "No")
            rows["category"].append(category)
    features = datasets.Features(
        {
            "question_id": datasets.Value("string"),
            "image": datasets.Image(),
            "question": datasets.Value("string"),
            "answer": datasets.Value("string"),
            "category": datasets.Value("string"),
        }
    )
    path = root / "lmms-lab-encoder" / "MME" / "data" / "test-00000-of-00001.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
    return path
