"""Make the plugin's tasks visible to lmms-eval without a flag.

lmms-eval finds models by entry point and tasks by folder. It has no entry point for folders, so the models' entry
point, which is loaded before ``lmms_eval.tasks``, arranges that `TaskManager` indexes one folder more. This holds on
to a method that is not public (`TaskManager.initialize_tasks`); where it is missing, one warning names the public
way, ``--include_path``. Two more of its methods are extended where they are there: `match_tasks`, which offers the
nearest name, and `_get_config`, in which `flmm_plugin.adapters.lmms_eval.preflight` may change where data is read from.

Names: lmms-eval has groups ``refcoco_seg``, ``refcoco+_seg`` and ``refcocog_seg``, which are *captioning*. They mean
this plugin's mask tasks if, and only if, the model is one of its own.
"""

from __future__ import annotations

import functools
import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from loguru import logger

from flmm_plugin.adapters.answering.defaults import answers_with_masks
from flmm_plugin.adapters.lmms_eval import exit_status
from flmm_plugin.adapters.patching import AfterImport, is_wrapped, wrap_once
from flmm_plugin.tasks.task_files import TASKS_FOLDER, task_folders

#: Built-in names that mean mask tasks for this plugin's models.
OVERRIDDEN_NAMES = ("refcoco_seg", "refcoco+_seg", "refcocog_seg")

_NAME = re.compile(r"""^(?:task|group|tag):[ \t]*["']?([^\s"'#]+)""", re.MULTILINE)

_HARNESS_TASKS = "lmms_eval.tasks"


def install() -> None:
    """Make every later `TaskManager` know the plugin's tasks. May be called any number of times; never raises."""
    try:
        module = sys.modules.get(_HARNESS_TASKS)
        if module is None:
            AfterImport.place(_HARNESS_TASKS, wrap, _warn)
        elif getattr(module.__spec__, "_initializing", False):
            _warn(f"{_HARNESS_TASKS} was half imported when the plugin was loaded")
        else:
            wrap(module)
    except Exception as exc:  # one entry point that raises takes all later ones with it
        _warn(f"{type(exc).__name__}: {exc}")


def wrap(module: ModuleType) -> None:
    """Wrap methods of `TaskManager` in the executed module ``lmms_eval.tasks``, once; never raises."""
    try:
        manager: Any = getattr(module, "TaskManager", None)
        if not all(callable(getattr(manager, name, None)) for name in ("initialize_tasks", "_get_task_and_group")):
            _warn(f"{_HARNESS_TASKS}.TaskManager has no initialize_tasks to extend")
            return
        wrap_once(manager, "initialize_tasks", _initialize_tasks)
        if hasattr(manager, "match_tasks") and hasattr(manager, "_get_config"):
            wrap_once(manager, "match_tasks", _match_tasks)
            wrap_once(manager, "_get_config", _get_config)
    except Exception as exc:  # lmms-eval itself must go on working
        _warn(f"{type(exc).__name__}: {exc}")


def extends(manager: Any) -> bool:
    """Return whether a `TaskManager` class knows the plugin's tasks."""
    return is_wrapped(manager, "initialize_tasks", _initialize_tasks)


@functools.cache
def named_tasks(include_path: str | None = None) -> frozenset[str]:
    """Names of tasks and groups that lmms-eval's files and this package's have, as their text says: no torch.

    Args:
        include_path: Folder of more task files.
    """
    home = importlib.util.find_spec("lmms_eval")
    places = [Path(place) / "tasks" for place in (home.submodule_search_locations or ())] if home is not None else []
    files = [file for place in (*places, *task_folders(), *([Path(include_path)] if include_path else []))
             for file in place.rglob("*.yaml")]  # fmt: skip
    texts = (file.read_text(encoding="utf-8", errors="replace") for file in files)
    return frozenset(name for text in texts for name in _NAME.findall(text))


def task_index(model: str) -> Any:
    """Return lmms-eval's `TaskManager` with this package's tasks; it would name every file that is no task."""
    install()
    from lmms_eval.tasks import TaskManager

    for name in ("lmms_eval", "flmm_plugin"):
        logger.disable(name)
    try:
        return TaskManager(model_name=model)
    finally:
        for name in ("lmms_eval", "flmm_plugin"):
            logger.enable(name)


def _initialize_tasks(original: Callable[..., dict[str, Any]], self: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
    model = getattr(self, "model_name", None)
    if model is not None:  # else a listing, which need not wait for torch
        _begin(model)
    index = original(self, *args, **kwargs)
    try:
        ours: dict[str, Any] = {}
        for folder in reversed(task_folders()):
            ours.update(self._get_task_and_group(str(folder)))
    except Exception as exc:
        _warn(f"its tasks could not be indexed ({type(exc).__name__}: {exc})")
        return index
    merged = {**ours, **index}
    if answers_with_masks(model):
        taken = [name for name in OVERRIDDEN_NAMES if name in index and name in ours]
        merged.update({name: ours[name] for name in taken})
        if taken:
            _announce_once(", ".join(taken))
    return merged


def _begin(model: Any) -> None:
    """Begin an evaluation that owes a result; where this cannot be kept up, lmms-eval ends as it does."""
    try:
        exit_status.begin(model)
    except Exception as exc:
        logger.warning(f"flmm: this lmms-eval's exit status may be 0 after a failure ({type(exc).__name__}: {exc})")


def _match_tasks(original: Callable[..., list[str]], self: Any, task_list: list[str]) -> list[str]:
    found = original(self, task_list)
    exit_status.match_or_end(self, task_list, found)
    return found


def _get_config(original: Callable[..., dict[str, Any]], self: Any, name: str) -> dict[str, Any]:
    """Return a configuration with what `preflight.check` found to change: where the data of a task is read from."""
    return {**original(self, name), **getattr(self, "flmm_changes", {}).get(name, {})}


@functools.cache
def _announce_once(names: str) -> None:
    logger.info(
        f"flmm: with this model, {names} mean flmm-plugin's mask tasks; lmms-eval's captioning tasks of these "
        "groups keep their own names (refcoco_seg_val, ...)"
    )


@functools.cache
def _warn(reason: str) -> None:
    logger.warning(
        f"flmm: this lmms-eval does not take the plugin's tasks by itself ({reason}); add --include_path {TASKS_FOLDER}"
    )
