"""The wrapped `TaskManager`: what it adds, what it overrides and for whom, and how it gives up."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from loguru import logger

from flmm_plugin.adapters import patching
from flmm_plugin.adapters.lmms_eval import task_folder

OURS = {"refcoco_seg": {"ours": True}, "flmm_refcoco_val": {"ours": True}, "mme": {"ours": True}}
THEIRS = {"refcoco_seg": {"ours": False}, "mme": {"ours": False}}


@pytest.fixture
def lines() -> Iterator[list[str]]:
    task_folder._warn.cache_clear()
    task_folder._announce_once.cache_clear()
    said: list[str] = []
    sink = logger.add(lambda message: said.append(str(message)), format="{level} {message}")
    yield said
    logger.remove(sink)


def harness(**parts: Any) -> ModuleType:
    """A stand-in for ``lmms_eval.tasks``."""

    class TaskManager:
        def __init__(self, model_name: Any = None) -> None:
            self.model_name = model_name
            self.index = self.initialize_tasks(include_path=None, include_defaults=True)

        def initialize_tasks(self, include_path: Any = None, include_defaults: bool = True) -> dict[str, Any]:
            return dict(THEIRS)

        def _get_task_and_group(self, folder: str) -> dict[str, Any]:
            assert Path(folder) == task_folder.TASKS_FOLDER
            return dict(OURS)

    for name, value in parts.items():
        setattr(TaskManager, name, value)
    module = ModuleType("lmms_eval.tasks")
    module.TaskManager = TaskManager  # type: ignore[attr-defined]
    return module


def whose(index: dict[str, Any]) -> dict[str, bool]:
    return {name: entry["ours"] for name, entry in index.items()}


def test_for_other_models_built_in_names_stay(lines: list[str]) -> None:
    module = harness()
    task_folder.wrap(module)
    for model in (None, "llava_hf", object()):
        assert whose(module.TaskManager(model).index) == {
            "refcoco_seg": False, "mme": False, "flmm_refcoco_val": True,
        }  # fmt: skip
    assert lines == []


def test_for_our_models_three_names_mean_masks_and_it_is_said_once(lines: list[str]) -> None:
    module = harness()
    task_folder.wrap(module)

    class OurModel:
        answers_with_masks = True

    for model in ("flmm_tiny", OurModel()):
        assert whose(module.TaskManager(model).index) == {"refcoco_seg": True, "mme": False, "flmm_refcoco_val": True}
    assert len(lines) == 1
    assert "refcoco_seg mean flmm-plugin's mask tasks" in lines[0]


def test_wrapping_twice_is_wrapping_once() -> None:
    module = harness()
    task_folder.wrap(module)
    once = module.TaskManager.initialize_tasks
    task_folder.wrap(module)
    assert module.TaskManager.initialize_tasks is once


@pytest.mark.parametrize("gone", ["initialize_tasks", "_get_task_and_group"])
def test_a_missing_method_names_the_public_way(lines: list[str], gone: str) -> None:
    module = harness()
    delattr(module.TaskManager, gone)
    task_folder.wrap(module)
    task_folder.wrap(ModuleType("lmms_eval.tasks"))
    assert len(lines) == 1
    assert f"--include_path {task_folder.TASKS_FOLDER}" in lines[0]


def test_tasks_that_cannot_be_indexed_leave_the_harness_alone(lines: list[str]) -> None:
    def fail(self: Any, folder: str) -> Any:
        raise OSError("unreadable")

    module = harness(_get_task_and_group=fail)
    task_folder.wrap(module)
    assert whose(module.TaskManager("flmm_tiny").index) == {"refcoco_seg": False, "mme": False}
    assert "unreadable" in lines[0]
    assert "--include_path" in lines[0]


def test_a_module_that_is_imported_later_is_wrapped_once_it_ran(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A package of the same name as the harness's, so that the finder does its real work on something small.
    package = tmp_path / "lmms_eval"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "tasks.py").write_text(
        "class TaskManager:\n"
        "    model_name = None\n"
        "    def initialize_tasks(self):\n        return {}\n"
        "    def _get_task_and_group(self, folder):\n        return {'flmm_refcoco_val': folder}\n"
    )
    for name in [name for name in sys.modules if name.split(".")[0] == "lmms_eval"]:
        monkeypatch.delitem(sys.modules, name)
    others = [one for one in sys.meta_path if type(one).__module__ != patching.__name__]
    monkeypatch.setattr(sys, "meta_path", others)
    monkeypatch.syspath_prepend(str(tmp_path))
    task_folder.install()
    task_folder.install()
    assert [type(one).__module__ for one in sys.meta_path].count(patching.__name__) == 1
    try:
        module = importlib.import_module("lmms_eval.tasks")
        assert module.TaskManager().initialize_tasks() == {"flmm_refcoco_val": str(task_folder.TASKS_FOLDER)}
        assert [type(one).__module__ for one in sys.meta_path].count(patching.__name__) == 0
        assert type(module.__spec__.loader).__name__ == "SourceFileLoader"
        task_folder.install()  # imported by now: wraps directly, which changes nothing
        assert module.TaskManager().initialize_tasks() == {"flmm_refcoco_val": str(task_folder.TASKS_FOLDER)}
    finally:
        for name in ("lmms_eval", "lmms_eval.tasks"):
            sys.modules.pop(name, None)
