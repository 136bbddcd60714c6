"""Synthetic scenes in the layout of the Visual-CoT benchmark: a question, its answer and the object's box."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flmm_plugin.datasets.viscot import ASK_FOR_BOX, TABLE_SETS, to_padded_square
from flmm_plugin.records import mask_box
from flmm_plugin.tiny import language
from flmm_plugin.tiny.layouts import PICTURE_SIZE
from flmm_plugin.tiny.scenes import Scene, render, sample_scene, visible_masks

# Pictures of these sets lie in another set's folder, with these endings.
_FOLDERS = {"textcap": "textvqa"}
_ENDINGS = {"docvqa": ".png", "infographicsvqa": ".jpeg"}
_CUT = 3  # every so many pictures, one is cut
_ASKED = ("color", "shape", "size", "where", "where")
_SEEN_IN_PART = ("color", "shape", "size")  # what a part of a picture leaves as it was


def write_viscot(root: Path, *, scenes: int = 60, seed: int = 1000, names: Sequence[str] = TABLE_SETS) -> Path:
    """Write Visual-CoT sets under ``root/viscot``: ``benchmark``, ``benchmark_det`` and ``cot``.

    Every picture gets one question that says what its object is and never where: it has to be looked for. Every third
    picture is cut to half its height where that leaves its object whole, so that padding to a square matters; there
    nobody is asked where the object is, which the cut has changed.
    """
    home = root / "viscot"
    for folder in ("benchmark", "benchmark_det"):
        (home / folder).mkdir(parents=True, exist_ok=True)
    for set_number, name in enumerate(names):
        folder = f"cot/{_FOLDERS.get(name, name)}"
        (home / folder).mkdir(parents=True, exist_ok=True)
        records, boxes = [], []
        for number in range(scenes):
            rng = np.random.default_rng([seed, 40 + set_number, number])
            scene = sample_scene(rng)
            wide = number % _CUT == _CUT - 1
            turn = language.lookup_question(scene, rng, kinds=_SEEN_IN_PART if wide else _ASKED)
            picture, box = _picture(scene, turn.mentions[0][3], wide=wide)
            path = f"{folder}/{name}_{number:04d}{_ENDINGS.get(name, '.jpg')}"
            Image.fromarray(picture).save(home / path, quality=95)  # PNG has no such setting and ignores it
            height, width = picture.shape[:2]
            record, detection = _record(name, number, path, turn, box, (height, width))
            records.append(record)
            boxes.append(detection)
        (home / "benchmark" / f"{name}.json").write_text(json.dumps(records, indent=1), encoding="utf-8")
        lines = "".join(json.dumps(one) + "\n" for one in boxes)
        (home / "benchmark_det" / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return root


def _picture(scene: Scene, index: int, *, wide: bool) -> tuple[Any, list[int]]:
    """Pixels ``uint8[H, W, 3]`` and the object's box ``[x0, y0, x1, y1]`` in them."""
    pixels, mask = render(scene, PICTURE_SIZE), visible_masks(scene, PICTURE_SIZE)[index]
    x0, y0, x1, y1 = (int(side) for side in mask_box(mask))
    half = PICTURE_SIZE // 2
    if wide and (y1 <= half or y0 >= half):
        top = 0 if y1 <= half else half
        return pixels[top : top + half], [x0, y0 - top, x1, y1 - top]
    return pixels, [x0, y0, x1, y1]


def _record(
    name: str, number: int, path: str, turn: language.Turn, box: list[int], size: tuple[int, int]
) -> tuple[dict[str, Any], dict[str, Any]]:
    question = turn.question.replace(language.SHORT_SUFFIX, "")
    x0, y0, x1, y1 = to_padded_square((box[0], box[1], box[2], box[3]), size)
    turns = [
        ("human", f"<image>\n{question}{ASK_FOR_BOX}"),
        ("gpt", f"[{x0:.3f}, {y0:.3f}, {x1:.3f}, {y1:.3f}]"),
        ("human", "<image>"),
        ("gpt", turn.answer),
    ]
    record = {
        "dataset": name,
        "split": "val",
        "question_id": number,
        "image": [path, f"{path}###[{', '.join(map(str, box))}]"],
        "conversations": [{"from": who, "value": words} for who, words in turns],
    }
    detection = {
        "img_path": path, "expression": question, "bbox": box, "height": size[0], "width": size[1],
        "question_id": number, "split": "val",
    }  # fmt: skip
    return record, detection
