"""Synthetic scenes as VLMEvalKit's tables: MME and POPE (yes or no), and MMBench (choices in every rotation).

One ``.tsv`` per benchmark and a folder of pictures; ``image_path`` is relative to that folder. Pictures and questions
of MME and POPE are those of `flmm_plugin.tiny.layouts_questions` at the same seed.
"""

from __future__ import annotations

import csv
import functools
import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flmm_plugin.tiny import language, panel
from flmm_plugin.tiny.layouts import PICTURE_SIZE
from flmm_plugin.tiny.layouts_questions import MME, POPE, YesNoBenchmark
from flmm_plugin.tiny.scenes import Scene, render, sample_scene

#: Tables, by the names that they have with `flmm_plugin.adapters.vlmevalkit`.
TABLES = ("MME_TINY", "POPE_TINY", "MMBench_TINY")

_YES_NO = ("index", "image_path", "question", "answer", "category")
_CHOICE = (
    "index", "image_path", "question", "A", "B", "C", "D", "answer", "category", "l2-category", "split", "instruction",
)  # fmt: skip
_OPTION = re.compile(r"^([A-D])\. (.+)$", re.MULTILINE)
#: Of rotated questions' numbers: question i turned r times is ``i + r * _ROTATED``, as in MMBench.
_ROTATED = 1_000_000


@functools.cache
def kit_root() -> Path:
    """Return the folder of the tables, written if it is not there; its name changes with the code that writes it."""
    return panel.written_once("vlmevalkit", lambda root: write_tables(root, scenes=panel.SCENES, seed=panel.SEED))


def write_tables(root: Path, *, scenes: int, seed: int) -> Path:
    """Write all tables of `TABLES`, and their pictures under ``images``."""
    (root / "images").mkdir(parents=True, exist_ok=True)
    _write(root / "MME_TINY.tsv", _YES_NO, _yes_no(root, "mme", MME, scenes, seed))
    _write(root / "POPE_TINY.tsv", _YES_NO, _yes_no(root, "pope", POPE, scenes, seed))
    _write(root / "MMBench_TINY.tsv", _CHOICE, _choices(root, scenes, seed))
    return root


def _yes_no(root: Path, name: str, benchmark: YesNoBenchmark, scenes: int, seed: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for number, (scene, category, questions) in enumerate(benchmark.pictures(scenes, seed)):
        picture = _picture(root, scene, f"{name}_{number:04d}.png")
        for answer, question in questions.items():
            # The kit adds nothing to it: the prompt is the one that lmms-eval makes of the same question.
            prompt = f"{question}{language.SHORT_SUFFIX}"
            rows.append(dict(zip(_YES_NO, (len(rows), picture, prompt, answer, category), strict=True)))
    return rows


def _choices(root: Path, scenes: int, seed: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for number in range(scenes):
        rng = np.random.default_rng([seed, 60, number])
        scene = sample_scene(rng)
        turn = language.choice_question(scene, rng)
        options = dict(_OPTION.findall(turn.question))
        letters = list(options)
        stem = turn.question[: _first(turn.question)].strip()
        picture = _picture(root, scene, f"choice_{number:04d}.png")
        for turned in range(len(letters)):
            shown = {letter: options[letters[(at + turned) % len(letters)]] for at, letter in enumerate(letters)}
            answer = letters[(letters.index(turn.answer) - turned) % len(letters)]
            rows.append(
                {
                    "index": number + turned * _ROTATED, "image_path": picture, "question": stem, **shown,
                    "answer": answer, "category": "attribute", "l2-category": "perception", "split": "dev",
                    "instruction": language.CHOICE_SUFFIX.strip(),
                }
            )  # fmt: skip
    return sorted(rows, key=lambda row: int(row["index"]))


def _first(question: str) -> int:
    match = _OPTION.search(question)
    assert match is not None, f"a choice question without options: {question!r}"
    return match.start()


def _picture(root: Path, scene: Scene, name: str) -> str:
    Image.fromarray(render(scene, PICTURE_SIZE)).save(root / "images" / name)
    return name


def _write(path: Path, columns: tuple[str, ...], rows: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
