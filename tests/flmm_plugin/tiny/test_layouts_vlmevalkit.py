"""The world's tables for VLMEvalKit: the same pictures, prompts and answers as lmms-eval's tasks have of the world."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from flmm_plugin.tasks.task_files import dotted, task_config
from flmm_plugin.tiny.layouts_questions import write_mme, write_pope
from flmm_plugin.tiny.layouts_vlmevalkit import TABLES, write_tables


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    root = write_tables(tmp_path_factory.mktemp("tables"), scenes=4, seed=3)
    return root, {name: pd.read_csv(root / f"{name}.tsv", sep="\t") for name in TABLES}


@pytest.mark.parametrize(
    ("name", "task", "write"),
    [("MME_TINY", "flmm_tiny_mme", write_mme), ("POPE_TINY", "flmm_tiny_pope_direct", write_pope)],
)
def test_the_whole_prompt_is_lmms_eval_s(
    tables: tuple[Path, dict[str, Any]], tmp_path: Path, name: str, task: str, write: Any
) -> None:
    pytest.importorskip("lmms_eval")
    root, read = tables
    config = task_config(task)
    prompt, words = dotted(config["doc_to_text"]), config["lmms_eval_specific_kwargs"]["default"]
    theirs = pd.read_parquet(write(tmp_path, scenes=4, seed=3)).to_dict("records")
    ours = read[name].to_dict("records")
    assert [row["question"] for row in ours] == [prompt(doc, words) for doc in theirs]
    assert [row["answer"].lower() for row in ours] == [doc["answer"].lower() for doc in theirs]
    for row, doc in zip(ours, theirs, strict=True):
        with Image.open(root / "images" / row["image_path"]) as mine:
            assert np.array_equal(np.asarray(mine), np.asarray(Image.open(io.BytesIO(doc["image"]["bytes"]))))


def test_every_choice_is_asked_in_every_rotation(tables: tuple[Path, dict[str, Any]]) -> None:
    rows = tables[1]["MMBench_TINY"]
    for _, turned in rows.groupby(rows["index"] % 1_000_000):
        assert len(turned) == 4
        assert set(turned["answer"]) == set("ABCD")
        assert len({row[row["answer"]] for _, row in turned.iterrows()}) == 1, "the right option is the same each time"
