"""What tasks that read official files share: refusals, empty splits, metrics whose tool is missing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from loguru import logger

from flmm_plugin.errors import UnknownArgument
from flmm_plugin.tasks.task_files import task_files
from flmm_plugin.tiny import layouts_gcg

utils = pytest.importorskip("lmms_eval.utils")


@pytest.fixture
def said() -> Iterator[list[str]]:
    lines: list[str] = []
    sink = logger.add(lambda message: lines.append(str(message)), format="{level} {message}")
    yield lines
    logger.remove(sink)


def task(name: str, **data: Any) -> Any:
    config = utils.load_yaml_config(str(task_files()[name]), mode="full")
    config["dataset_kwargs"] = {**config.get("dataset_kwargs", {}), **data}
    return config["class"](config=config)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    layouts_gcg.write_grandf(tmp_path, scenes=2, splits=("val",))
    (tmp_path / "ReasonSeg" / "val").mkdir(parents=True)
    return tmp_path


def test_unknown_settings_are_refused(root: Path) -> None:
    with pytest.raises(UnknownArgument, match="encodr"):
        task("flmm_gcg_val", root=str(root), encodr="words")


def test_a_split_without_documents_is_skipped_with_a_notice(root: Path, said: list[str]) -> None:
    empty = task("flmm_reasonseg_val", root=str(root))
    empty.build_all_requests(limit=None, rank=0, world_size=1)
    assert empty.instances == []
    assert "has nothing of split val; the task is skipped" in "".join(said)


def test_facts_that_change_numbers_are_kept(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLMM_SENTENCE_ENCODER", raising=False)
    made = task("flmm_gcg_val", root=str(root))
    assert made.config.metadata["sentence_encoder"] == "bert-base-uncased"
    assert made.config.metadata["annotations"] == f"sha256:{made.docs.digest}"
    assert made.config.metadata["protocol"] == "flmm"
    assert task("flmm_gcg_tiny", root=str(root)).config.metadata["sentence_encoder"] == "words"


def test_a_missing_tool_makes_its_metric_n_a(root: Path, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    functions = task("flmm_gcg_val", root=str(root)).aggregation()
    captions = [{"image_id": "sa_1", "caption": "a dog", "reference": "a dog"}]
    assert functions["METEOR"](captions) is None
    assert functions["CIDEr"](captions) is None
    assert "METEOR is not available: METEOR and CIDEr need Java" in "".join(said)
    table = [{"image_id": "sa_1", "I": [[4]], "U": [[5]], "predicted": 1}]
    assert functions["mIoU"](table) == pytest.approx(80)


def test_a_part_of_a_split_says_so(root: Path, said: list[str]) -> None:
    complete = task("flmm_gcg_val", root=str(root)).aggregation()["complete"]
    assert complete([{"count": 1, "expected": 2}] * 2) == 1
    assert "PARTIAL" not in "".join(said)
    assert complete([{"count": 1, "expected": 2}]) == 0
    assert "flmm_gcg_val: PARTIAL RESULT over 1 of 2 official items" in "".join(said)


def test_odd_pictures_are_listed(root: Path, said: list[str]) -> None:
    path = root / "GranDf" / "annotations" / "val_test" / "val_gcg_coco_caption_gt.json"
    path.write_text(path.read_text().replace('"labels": [', '"labels": ["nothing", ', 1))
    task("flmm_gcg_val", root=str(root)).build_all_requests(limit=None, rank=0, world_size=1)
    assert "picture sa_100000 has" in "".join(said)
