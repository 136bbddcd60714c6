"""The world in the layout of POPE as lmms-eval reads it: is there such an object, half yes and half no."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flmm_plugin.tiny import language
from flmm_plugin.tiny.layouts import PICTURE_SIZE
from flmm_plugin.tiny.scenes import render, sample_scene

CATEGORIES = ("adversarial", "popular", "random")


def write_pope(root: Path, *, scenes: int = 60, seed: int = 1000) -> Path:
    """Write ``root/lmms-lab-encoder/POPE``, which the stock ``pope`` task reads when run in ``root``.

    Args:
        root: Working folder of the later run.
        scenes: Pictures; each gives one question answered yes and one answered no.
        seed: Scenes are a function of it; training never uses these streams.

    Returns:
        The parquet file.
    """
    import datasets

    names = ("id", "question_id", "question", "answer", "image_source", "category")
    rows: dict[str, list[Any]] = {name: [] for name in (*names, "image")}
    for number in range(scenes):
        rng = np.random.default_rng([seed, 50, number])
        scene = sample_scene(rng)
        buffer = BytesIO()
        Image.fromarray(render(scene, PICTURE_SIZE)).save(buffer, "PNG")
        for truth in (True, False):
            turn = language.yes_no_question(scene, rng, truth=truth, category="existence", short_share=0.0)
            rows["id"].append(str(len(rows["id"])))
            rows["question_id"].append(str(len(rows["question_id"]) + 1))
            rows["question"].append(turn.question)
            rows["answer"].append("yes" if truth else "no")
            rows["image_source"].append(f"scene_{number:06d}")
            rows["category"].append(CATEGORIES[number % len(CATEGORIES)])
            rows["image"].append({"bytes": buffer.getvalue(), "path": None})
    features = datasets.Features({name: datasets.Value("string") for name in names} | {"image": datasets.Image()})
    path = root / "lmms-lab-encoder" / "POPE" / "data" / "test-00000-of-00001.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
    return path
