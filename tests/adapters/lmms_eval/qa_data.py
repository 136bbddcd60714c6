"""The paper's eight question-answering benchmarks as lmms-eval's stock tasks find them, with two questions each.

`datasets` looks for a hub name under the working directory first: a folder ``lmms-lab-encoder/MME`` there is the data
set of that name. Columns, configurations and splits are those that the stock tasks read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image

_HUB = "lmms-lab-encoder"
_QUESTIONS = ("Is there a dog in the image?", "Is there a red sofa in the image?")
_TEXT, _NUMBER = datasets.Value("string"), datasets.Value("int64")

#: Task by task, how many documents `write_qa` writes.
DOCUMENTS = {
    "mme": 2, "mmbench_en_dev": 2, "mmvet": 2, "llava_in_the_wild": 3, "pope": 2, "gqa": 2, "vqav2_val": 2, "ai2d": 2,
}  # fmt: skip


def write_qa(root: Path) -> None:
    """Write them under ``root``, the working directory to be."""
    rng = np.random.default_rng(0)

    def picture() -> Image.Image:
        return Image.fromarray(rng.integers(0, 256, (40, 56, 3), dtype=np.uint8))

    yes_no = [
        {"question_id": "existence/0.png", "question": asked, "answer": answer, "category": "existence"}
        for asked, answer in zip(_QUESTIONS, ("Yes", "No"), strict=True)
    ]
    _write(root, "MME", "test", [one | {"image": picture()} for one in yes_no])
    _write(root, "POPE", "test", [one | {"answer": one["answer"].lower(), "image": picture()} for one in yes_no])
    choice = {"hint": "nan", "source": "drawn", "split": "dev", "category": "c", "L2-category": "l", "A": "a dog",
              "B": "a sofa", "C": "nan", "D": "nan"}  # fmt: skip
    rows = [
        choice | {"index": number, "question": asked, "answer": "AB"[number], "image": picture()}
        for number, asked in enumerate(_QUESTIONS)
    ]
    _write(root, "MMBench", "dev", rows, {"index": _NUMBER}, part="en")
    free = [
        {"question_id": f"v1_{number}", "question": asked, "answer": "a dog", "capability": "rec,ocr"}
        for number, asked in enumerate(_QUESTIONS)
    ]
    _write(root, "MMVet", "test", [one | {"image": picture()} for one in free])
    wild = [
        {"question_id": kind, "question": f"{kind}?", "caption": "drawn", "gpt_answer": "a dog", "category": kind}
        for kind in ("conv", "detail", "complex")
    ]
    _write(root, "llava-bench-in-the-wild", "train", [one | {"image": picture()} for one in wild])
    asked = [{"id": str(n), "imageId": "0", "question": text, "answer": "yes"} for n, text in enumerate(_QUESTIONS)]
    _write(root, "GQA", "testdev", asked, part="testdev_balanced_instructions")
    _write(root, "GQA", "testdev", [{"id": "0", "image": picture()}], part="testdev_balanced_images")
    given = [{"answer": "yes", "answer_confidence": "yes", "answer_id": 1}] * 3
    rows = [
        {"question_id": number, "question": text, "answers": given, "answer": "yes", "image": picture()}
        for number, text in enumerate(_QUESTIONS)
    ]
    answer = {"answer": _TEXT, "answer_confidence": _TEXT, "answer_id": _NUMBER}
    _write(root, "VQAv2", "validation", rows, {"question_id": _NUMBER, "answers": [answer]})
    rows = [
        {"question": text, "options": ["a dog", "a sofa"], "answer": "0", "image": picture()} for text in _QUESTIONS
    ]
    _write(root, "ai2d", "test", rows, {"options": [_TEXT]})


def _write(
    root: Path,
    name: str,
    split: str,
    rows: Sequence[Mapping[str, Any]],
    kinds: Mapping[str, Any] | None = None,
    part: str = "",
) -> None:
    """One split as parquet; columns are text but for pictures and those that ``kinds`` names.

    A data set of several configurations (``part``) says in its card where each of them is.
    """
    folder = root / _HUB / name / (part or "data")
    folder.mkdir(parents=True)
    known = dict.fromkeys(rows[0], _TEXT) | {"image": datasets.Image()} | dict(kinds or {})
    features = datasets.Features({column: known[column] for column in rows[0]})
    datasets.Dataset.from_list(list(rows), features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    if part:
        card = folder.parent / "README.md"
        before = card.read_text().removesuffix("---\n") if card.exists() else "---\nconfigs:\n"
        files = f"  data_files:\n  - split: {split}\n    path: {part}/{split}-*\n"
        card.write_text(f"{before}- config_name: {part}\n{files}---\n")
