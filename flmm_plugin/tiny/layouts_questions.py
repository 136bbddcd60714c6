"""Synthetic scenes in the layouts of MME and POPE as lmms-eval reads them: one question answered yes, one no."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flmm_plugin.tiny import language
from flmm_plugin.tiny.layouts import PICTURE_SIZE
from flmm_plugin.tiny.scenes import Scene, render, sample_scene


@dataclass(frozen=True)
class YesNoBenchmark:
    """A benchmark of yes-or-no questions.

    Attributes:
        stream: Number of its stream of random scenes.
        categories: Its categories, one picture each in turn.
        asked: What is asked about, of `language.yes_no_question`'s categories; None: the picture's own category.
    """

    stream: int
    categories: tuple[str, ...]
    asked: str | None = None

    def pictures(self, scenes: int, seed: int) -> Iterator[tuple[Scene, str, dict[str, str]]]:
        """Yield each scene with its category and its two questions by their answers, ``Yes`` and ``No``."""
        for number in range(scenes):
            rng = np.random.default_rng([seed, self.stream, number])
            scene = sample_scene(rng)
            category = self.categories[number % len(self.categories)]
            questions = {}
            for answer in ("Yes", "No"):
                turn = language.yes_no_question(
                    scene, rng, truth=answer == "Yes", category=self.asked or category, short_share=0.0
                )
                questions[answer] = turn.question
            yield scene, category, questions


MME = YesNoBenchmark(20, ("existence", "count", "position", "color"))
POPE = YesNoBenchmark(50, ("adversarial", "popular", "random"), asked="existence")


def write_mme(root: Path, *, scenes: int = 60, seed: int = 1000) -> Path:
    """Write MME's test split as ``root/lmms-lab-encoder/MME``, which the stock ``mme`` task reads when run in ``root``.

    Each picture gives one question answered yes and one answered no, of one category in turn. Returns the parquet file.
    """
    rows: list[dict[str, Any]] = []
    for number, (scene, category, questions) in enumerate(MME.pictures(scenes, seed)):
        image = png_bytes(scene)
        rows += [
            {
                "question_id": f"{category}/{number:04d}.png", "image": image,
                "question": f"{question} Please answer yes or no.", "answer": answer, "category": category,
            }
            for answer, question in questions.items()
        ]  # fmt: skip
    return _write(root / "lmms-lab-encoder" / "MME", rows)


def write_pope(root: Path, *, scenes: int = 60, seed: int = 1000) -> Path:
    """Write ``root/lmms-lab-encoder/POPE``, which the stock ``pope`` task reads when run in ``root``.

    Each picture gives one question answered yes and one answered no. Returns the parquet file.
    """
    rows: list[dict[str, Any]] = []
    for number, (scene, category, questions) in enumerate(POPE.pictures(scenes, seed)):
        image = png_bytes(scene)
        for answer, question in questions.items():
            rows.append(
                {
                    "id": str(len(rows)), "question_id": str(len(rows) + 1), "question": question,
                    "answer": answer.lower(), "image_source": f"scene_{number:06d}", "category": category,
                    "image": image,
                }
            )  # fmt: skip
    return _write(root / "lmms-lab-encoder" / "POPE", rows)


def png_bytes(scene: Scene) -> dict[str, Any]:
    """Return a painted scene as data sets of the hub hold a picture: bytes of a PNG, without a path."""
    buffer = BytesIO()
    Image.fromarray(render(scene, PICTURE_SIZE)).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def _write(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows of texts and an image as the test split of a data set of the hub."""
    import datasets

    kinds = {name: datasets.Image() if name == "image" else datasets.Value("string") for name in rows[0]}
    path = folder / "data" / "test-00000-of-00001.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {name: [row[name] for row in rows] for name in kinds}
    datasets.Dataset.from_dict(columns, features=datasets.Features(kinds)).to_parquet(path)
    return path
