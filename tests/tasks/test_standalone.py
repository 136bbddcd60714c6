"""Tasks without a harness: the same documents, prompts and numbers as lmms-eval's classes have."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flmm_plugin.errors import UnknownArgument
from flmm_plugin.records import encode_rle
from flmm_plugin.tasks.standalone import StandaloneTask

LOOKUPS = """
import sys
from flmm_plugin.tasks.standalone import StandaloneTask
from flmm_plugin.tasks.task_files import task_config
assert "lmms_eval" not in sys.modules and "transformers" not in sys.modules
"""


def masks_reply(masks: list[Any]) -> str:
    import json

    return json.dumps({"masks": [encode_rle(mask) for mask in masks]})


def test_refcoco_documents_prompts_and_numbers(refer_folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lmms_eval")
    from flmm_plugin.tasks.refcoco.benchmark import prompt_of, read_documents
    from flmm_plugin.tasks.refcoco.scoring import score_reply as score
    from flmm_plugin.tasks.task_files import aggregations

    folder = refer_folder()
    monkeypatch.setenv("FLMM_DATA", str(folder.root))
    plain = StandaloneTask("flmm_refcoco_val")
    docs = read_documents("val", {"root": folder.root, "name": "refcoco"})
    assert [dict(doc) for doc in plain.docs] == [dict(doc) for doc in docs]
    assert [plain.prompt(doc) for doc in plain.docs] == [prompt_of(doc) for doc in docs]
    assert plain.generation_kwargs == {"flmm_ground": True, "do_sample": False}
    replies = []
    for doc in plain.docs:
        masks = [folder.mask(ann, doc["image_id"]) for ann in doc["ann_ids"]]
        masks[0][:, ::2] = False  # half right
        replies.append(masks_reply(masks))
    replies[-1] = "nonsense"
    ours = plain.numbers([plain.score(doc, reply) for doc, reply in zip(plain.docs, replies, strict=True)])
    logged = [score(doc, [reply]) for doc, reply in zip(docs, replies, strict=True)]
    theirs = {metric: add([one[metric] for one in logged]) for metric, add in aggregations("flmm_refcoco_val").items()}
    assert ours == theirs
    assert 0 < ours["cIoU"] < 100
    assert (ours["items"], ours["errors"]) == (3, 1)


def test_words_that_the_yaml_gives_are_in_the_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flmm_plugin.tiny.layouts_gcg import write_grandf, write_reasonseg

    write_reasonseg(tmp_path, scenes=2, splits=("val",))
    write_grandf(tmp_path, scenes=2, splits=("val",))
    monkeypatch.setenv("FLMM_DATA", str(tmp_path))
    reason = StandaloneTask("flmm_reasonseg_val")
    assert reason.docs[0]["query"] in reason.prompt(reason.docs[0])
    assert "Briefly answer" in reason.prompt(reason.docs[0])
    captions = StandaloneTask("flmm_gcg_val")
    assert captions.prompt(captions.docs[0]) == "Briefly describe the objects that appear in this image."


@pytest.mark.parametrize("name", ["flmm_tiny_mme", "flmm_pope_direct"])
def test_tasks_of_a_harness_are_refused(name: str) -> None:
    with pytest.raises(UnknownArgument, match="needs its harness"):
        StandaloneTask(name)


def test_no_harness_is_imported(refer_folder: Any) -> None:
    root = refer_folder().root
    code = f"import os; os.environ['FLMM_DATA'] = {str(root)!r}{LOOKUPS}StandaloneTask('flmm_refcoco_val')\n{LOOKUPS}"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_every_task_has_a_number_of_its_benchmark_first() -> None:
    from flmm_plugin.tasks.benchmarks import headline
    from flmm_plugin.tasks.task_files import aggregations, task_files

    for name in task_files():
        assert headline(name)
        assert set(headline(name)) <= set(aggregations(name))
    first = {
        name: headline(name)[0] for name in ("flmm_png", "flmm_reasonseg_val", "flmm_gcg_test", "flmm_refcoco_val")
    }
    assert first == {
        "flmm_png": "AR", "flmm_reasonseg_val": "gIoU", "flmm_gcg_test": "mIoU", "flmm_refcoco_val": "cIoU",
    }  # fmt: skip
