"""The YAML files of this package's tasks, read without lmms-eval: which functions score which metric.

A package of somebody else brings a benchmark with an entry point of the group `BENCHMARKS`, whose value is the name of
a folder of it that is made as those of ``tasks/`` are.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from loguru import logger

from flmm_plugin import files
from flmm_plugin.data.own import own_folder, own_sets, own_task
from flmm_plugin.errors import UnknownArgument
from flmm_plugin.suggestions import did_you_mean

TASKS_FOLDER = Path(__file__).resolve().parent

BENCHMARKS = "flmm_plugin.benchmarks"


class _Loader(yaml.SafeLoader):
    """YAML with lmms-eval's ``!function``, whose dotted name is kept as text and imported by nobody."""


def _dotted_name(loader: Any, node: Any) -> str:
    return str(loader.construct_scalar(node))


_Loader.add_constructor("!function", _dotted_name)


@functools.cache
def brought_packages() -> Mapping[str, Path]:
    """Return the packages of benchmarks that other installed packages bring, by their dotted names: their folders."""
    found: dict[str, Path] = {}
    for entry in metadata.entry_points(group=BENCHMARKS):
        try:
            spec = importlib.util.find_spec(entry.value)
        except ImportError:
            spec = None
        places = list(spec.submodule_search_locations or ()) if spec is not None else []
        if places:
            found[entry.value] = Path(places[0]).resolve()
        else:
            logger.warning(
                f"flmm: the entry point {entry.name} of {BENCHMARKS} names {entry.value}, which is no package"
            )
    return found


def task_folders() -> tuple[Path, ...]:
    """Return the folders that have task files: of this package, of benchmarks that others bring, of one's own data."""
    return (*_shipped_folders(), *_own_tasks())


def _shipped_folders() -> tuple[Path, ...]:
    return (TASKS_FOLDER, *brought_packages().values())


def _own_tasks() -> tuple[Path, ...]:
    """Write a task file for each split of one's own data; no folder where there is none."""
    folder = own_folder() / "tasks" / "own"
    wanted = {
        folder / f"{own_task(name, split)}.yaml": (name, split) for name, parts in own_sets().items() for split in parts
    }
    for path in set(folder.glob("*.yaml")) - set(wanted):
        path.unlink(missing_ok=True)
    for path, (name, split) in wanted.items():
        content = {
            "include": str(TASKS_FOLDER / "own" / "_own_yaml"), "task": path.stem, "dataset_kwargs": {"name": name},
            "test_split": split,
        }  # fmt: skip
        text = yaml.safe_dump(content, sort_keys=False)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            files.write(path, text)
    return (folder,) if wanted else ()


def is_ours(path: str | os.PathLike[str]) -> bool:
    """Return whether a task file is in one of `task_folders`."""
    return any(Path(path).is_relative_to(folder) for folder in task_folders())


def task_files() -> Mapping[str, Path]:
    """Return the YAML file of every single task of this package, by the task's name."""
    return _files("task")


def group_files() -> Mapping[str, Path]:
    """Return the YAML file of every group of tasks, by the group's name."""
    return _files("group")


def _files(kind: str) -> Mapping[str, Path]:
    return _named(kind, tuple(path for folder in _own_tasks() for path in sorted(folder.glob("*.yaml"))))


@functools.cache
def _named(kind: str, own: tuple[Path, ...]) -> Mapping[str, Path]:
    paths = [path for folder in _shipped_folders() for path in sorted(folder.rglob("*.yaml"))]
    contents = {path: _load(path) for path in (*paths, *own)}
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
    known = task_files()
    if name not in known:
        hint = did_you_mean(name, known)
        raise UnknownArgument(f"{name!r} is no task of flmm-plugin{hint} (flmm list shows them all)")
    return _merged(known[name])


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


def module_of(function: str | None) -> ModuleType | None:
    """Return the module of a function's dotted name; None for no name, and for a function of a harness."""
    name = (function or "").rpartition(".")[0]
    return None if not name or name.startswith("lmms_eval.") else importlib.import_module(name)


def dotted(path: str) -> Callable[..., Any]:
    """Return the function of a dotted name, as `task_config` has it."""
    module, _, name = path.rpartition(".")
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found
