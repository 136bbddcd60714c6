"""The YAML files of this package's tasks, read without lmms-eval: which functions score which metric."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from flmm_plugin.errors import UnknownArgument
from flmm_plugin.nearest import did_you_mean

TASKS_FOLDER = Path(__file__).resolve().parent


#: The numbers that stand for a benchmark, by the package that scores it: the first one that a run printed.
HEADLINES: Mapping[str, tuple[str, ...]] = {
    "refcoco": ("cIoU",),
    "png": ("AR",),
    "keywords": ("F1",),
    "gcg": ("mIoU",),
    "reasonseg": ("gIoU",),
    "viscot": ("judged", "anls"),
    "pope_viscot": ("pope_accuracy",),
    "tiny": ("mme_perception_score", "acc"),
}


class _Loader(yaml.SafeLoader):
    """YAML with lmms-eval's ``!function``, whose dotted name is kept as text and imported by nobody."""


def _dotted_name(loader: Any, node: Any) -> str:
    return str(loader.construct_scalar(node))


_Loader.add_constructor("!function", _dotted_name)


@functools.cache
def task_files() -> Mapping[str, Path]:
    """Task name -> its YAML file, for every single task of this package."""
    found: dict[str, Path] = {}
    for path in sorted(TASKS_FOLDER.rglob("*.yaml")):
        content = _load(path)
        if isinstance(content.get("task"), str):
            found[content["task"]] = path
    return found


def task_config(name: str) -> dict[str, Any]:
    """A task's configuration, includes merged in as lmms-eval does; functions are their dotted names.

    Raises:
        UnknownArgument: There is no such task; the nearest one is offered.
    """
    files = task_files()
    if name not in files:
        hint = did_you_mean(name, files)
        raise UnknownArgument(f"{name!r} is no task of flmm-plugin{hint} (flmm list shows them all)")
    return _merged(files[name])


def aggregations(name: str) -> dict[str, Callable[[Any], Any]]:
    """Metric -> the function that turns the documents' records into the printed number, in the task's order."""
    return {entry["metric"]: dotted(entry["aggregation"]) for entry in task_config(name).get("metric_list", ())}


def headline(name: str) -> tuple[str, ...]:
    """The metrics that stand for a task, the benchmark's own number first; the first one that was printed counts.

    >>> headline("flmm_png"), headline("flmm_tiny_reasonseg"), headline("flmm_tiny_choice")
    (('AR',), ('gIoU',), ('acc',))
    """
    config = task_config(name)
    package = str(config["process_results"]).removeprefix("flmm_plugin.tasks.").partition(".")[0]
    listed = {entry["metric"] for entry in config["metric_list"]}
    return tuple(metric for metric in HEADLINES[package] if metric in listed)


def _merged(path: Path) -> dict[str, Any]:
    content = _load(path)
    includes = content.pop("include", [])
    merged: dict[str, Any] = {}
    for include in reversed([includes] if isinstance(includes, str) else includes):
        merged.update(_merged(path.parent / include))
    return {**merged, **content}


def _load(path: Path) -> dict[str, Any]:
    # A loader that makes nothing but plain data: `safe_load` with one tag more.
    content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    return content if isinstance(content, dict) else {}


def dotted(path: str) -> Callable[..., Any]:
    """The function of a dotted name, as `task_config` has it."""
    module, _, name = path.rpartition(".")
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found
