"""The YAML files of this package's tasks, read without lmms-eval: which functions score which metric."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from flmm_plugin.errors import UnknownArgument
from flmm_plugin.suggestions import did_you_mean

TASKS_FOLDER = Path(__file__).resolve().parent


class _Loader(yaml.SafeLoader):
    """YAML with lmms-eval's ``!function``, whose dotted name is kept as text and imported by nobody."""


def _dotted_name(loader: Any, node: Any) -> str:
    return str(loader.construct_scalar(node))


_Loader.add_constructor("!function", _dotted_name)


def task_files() -> Mapping[str, Path]:
    """Return the YAML file of every single task of this package, by the task's name."""
    return _files("task")


def group_files() -> Mapping[str, Path]:
    """Return the YAML file of every group of tasks, by the group's name."""
    return _files("group")


@functools.cache
def _files(kind: str) -> Mapping[str, Path]:
    contents = {path: _load(path) for path in sorted(TASKS_FOLDER.rglob("*.yaml"))}
    return {content[kind]: path for path, content in contents.items() if isinstance(content.get(kind), str)}


def single_tasks(names: Iterable[str]) -> list[str]:
    """Return the tasks of this package that some names mean, groups taken apart; other names are passed over."""
    found: dict[str, None] = {}
    for name in names:
        if name in task_files():
            found[name] = None
        elif name in group_files():
            listed = _load(group_files()[name])["task"]
            members = [one["task"] if isinstance(one, dict) else one for one in listed]
            found.update(dict.fromkeys(single_tasks(members)))
    return list(found)


def task_config(name: str) -> dict[str, Any]:
    """Return a task's configuration, includes merged in as lmms-eval does; functions are their dotted names.

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
    """Return the function of a dotted name, as `task_config` has it."""
    module, _, name = path.rpartition(".")
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found
