"""What is looked at before anything is loaded."""

from __future__ import annotations

import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flmm_plugin.adapters.lmms_eval import preflight
from flmm_plugin.adapters.lmms_eval.preflight import Asked, NotReady, check, leaves
from flmm_plugin.adapters.lmms_eval.task_folder import TASKS_FOLDER, named_tasks
from flmm_plugin.errors import FlmmError, OutputFailed, UnknownArgument

lmms_eval = pytest.importorskip("lmms_eval")


def index() -> Any:
    """As lmms-eval's: this package's tasks and its own `mme`."""
    found: dict[str, dict[str, Any]] = {}
    for path in (*TASKS_FOLDER.rglob("*.yaml"), Path(lmms_eval.__file__).parent / "tasks" / "mme" / "mme.yaml"):
        kind = "group" if path.name.startswith("_group") else "python_task"
        name = path.stem.removeprefix("_group_")
        found[name] = {"type": kind, "yaml_path": str(path), **({"task": -1} if kind == "group" else {})}
    return SimpleNamespace(task_index=found)


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder and empty caches."""
    import datasets
    from huggingface_hub import constants

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FLMM_DATA", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    preflight._hub_answers.cache_clear()


def asked(tasks: str = "mme,refcoco_seg", model: str = "flmm_tiny", **rest: Any) -> Asked:
    return Asked(model, rest.pop("model_args", {}), tasks.split(","), index(), **rest)


def test_groups_are_walked_through() -> None:
    names = dict(leaves(index(), ["refcoco_seg", "mme", "nope", "mme"]))
    assert list(names) == ["flmm_refcoco_val", "flmm_refcoco_testA", "flmm_refcoco_testB", "mme"]
    assert names["mme"][0] is None
    assert names["flmm_refcoco_val"][0] == "refcoco"


def test_the_embedded_model_reads_its_own_world_where_no_data_is() -> None:
    from flmm_plugin.tasks.tiny.task import WorldTask

    for arguments in ({}, {"heads": "attention-argmax"}, {"pretrained": "flmm_tiny"}):
        changes = check(asked(model_args=arguments))
        assert set(changes) == {"mme", "flmm_refcoco_val", "flmm_refcoco_testA", "flmm_refcoco_testB"}
        assert changes["mme"]["class"] is WorldTask
        assert changes["flmm_refcoco_val"]["dataset_kwargs"]["root"] == "flmm_tiny_world"
        assert all("not the benchmark" in change["metadata"]["data"] for change in changes.values())
        assert all("world" in change["task_alias"] for change in changes.values())


def on_the_scenes() -> list[str]:
    """The tasks that read the synthetic scenes."""
    return [name for name, change in check(asked()).items() if "task_alias" in change]


def test_real_data_is_used_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lmms-lab-encoder" / "MME").mkdir(parents=True)
    assert "mme" not in on_the_scenes()
    (tmp_path / "lmms-lab-encoder" / "MME").rmdir()
    (tmp_path / "datasets" / "lmms-lab-encoder___mme").mkdir(parents=True)
    assert "mme" not in on_the_scenes()
    (tmp_path / "data" / "coco" / "refcoco").mkdir(parents=True)
    (tmp_path / "data" / "coco" / "train2014").mkdir()
    with pytest.raises(NotReady, match="annotations of RefCOCO"):  # begun: then it is to be finished
        check(asked())
    for name in ("refs(unc).p", "instances.json"):
        (tmp_path / "data" / "coco" / "refcoco" / name).touch()
    assert on_the_scenes() == []


def test_a_folder_that_was_named_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLMM_DATA", "/nowhere")
    with pytest.raises(NotReady, match=r"flmm data download refcoco .*--root /nowhere"):
        check(asked())


def test_all_that_is_missing_is_said_at_once_with_its_commands() -> None:
    tasks = "mme,refcoco_seg,flmm_reasonseg_val,flmm_viscot_sroie"
    with pytest.raises(NotReady) as caught:
        check(asked(tasks, "flmm_llava", model_args={"heads": "gone.safetensors", "sam_checkpoint": "sam.pth"}))
    for word in (
        "hf download llava-hf/llava-1.5-7b-hf", "gone.safetensors", "sam.pth",
        "hf download --repo-type dataset lmms-lab-encoder/MME", "flmm data download refcoco --root data",
        "val: pairs of", "pictures of sroie",
    ):  # fmt: skip
        assert word in str(caught.value)
    assert "test: pairs" not in str(caught.value)
    assert "docvqa" not in str(caught.value)


def test_no_network_is_found_out_in_one_try(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    tried = []

    def refuse(*args: Any, **kwargs: Any) -> Any:
        tried.append(args)
        raise OSError("no network")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(socket, "create_connection", refuse)
    with pytest.raises(NotReady):
        check(asked("mme,flmm_pope_direct", "flmm_llava"))
    assert len(tried) == 1


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        ({"num_fewshot": 2}, UnknownArgument, "few-shot"),
        ({"model": "flmm_tinny"}, UnknownArgument, "'flmm_tiny'"),
        ({"model": "flmm_auto"}, UnknownArgument, "pretrained"),
        ({"model_args": {"hedas": "x"}}, UnknownArgument, "'heads'"),
        ({"model_args": {"heads": "attention-agmax"}}, UnknownArgument, "attention-argmax"),
        ({"model_args": {"dtype": "flot32"}}, UnknownArgument, "float32"),
        ({"model_args": {"device": "cuda:99"}}, UnknownArgument, "cuda:99"),
        ({"device": "gpu"}, UnknownArgument, "'cuda'"),
        ({"batch_size": "auto"}, UnknownArgument, "batch_size"),
        ({"gen_kwargs": {"topk": 3}}, UnknownArgument, "top_k"),
        ({"output_path": "file"}, OutputFailed, "file"),
        ({"use_cache": "file/deeper"}, OutputFailed, "file"),
    ],
)
def test_what_is_refused(change: dict[str, Any], kind: type[FlmmError], said: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(kind, match=said):
        check(asked("flmm_tiny_refcoco", **change))


def test_names_are_known_without_an_index(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text('task: "my_task"\n', encoding="utf-8")
    assert {"mme", "flmm_qa", "refcoco_seg", "my_task"} <= named_tasks(str(tmp_path))
