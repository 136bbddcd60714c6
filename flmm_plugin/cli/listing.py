"""``flmm list``: models and tasks by the names that lmms-eval knows them by, and what each needs."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flmm_plugin import bundled

if TYPE_CHECKING:
    from flmm_plugin.data.registry import Benchmark

# Folder of tasks -> the benchmark of `flmm data` that they read; refcoco's holds three.
_BENCHMARK_OF = {
    "png": "png",
    "keywords": "png",
    "gcg": "gcg",
    "reasonseg": "reasonseg",
    "viscot": "viscot",
    "pope_viscot": "pope",
}

_NAME = re.compile(r"^(task|group):[ \t]*(?P<name>[^\s#]+)[ \t]*$", re.MULTILINE)


def add_subcommand(commands: Any) -> None:
    """Add ``list`` to the parser of ``flmm``."""
    parser = commands.add_parser(
        "list",
        help="models and tasks, and what each needs",
        description="Models and tasks by the names to give lmms_eval --model and --tasks, and what each needs here.",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    parser.set_defaults(run=_list)


def models() -> list[dict[str, str]]:
    """One entry per model of lmms-eval's that this package adds."""
    from flmm_plugin.adapters.lmms_eval.models import MODELS

    return [{"name": name, "class": path, "needs": _model_needs(name)} for name, path in MODELS.items()]


def families() -> list[dict[str, str]]:
    """One entry per family of models that `GroundedLMM` speaks, by the ``model_type`` of their configuration."""
    from flmm_plugin import backbones

    return [{"name": name, "class": path} for name, path in backbones.families().items()]


def tasks() -> list[dict[str, str]]:
    """One entry per task and group, with whether its data is there."""
    from flmm_plugin.tasks.task_files import TASKS_FOLDER

    found: list[dict[str, str]] = []
    for path in sorted(TASKS_FOLDER.rglob("*.yaml")):
        for match in _NAME.finditer(path.read_text(encoding="utf-8")):
            found.append({"name": match["name"], "kind": match[1], "needs": _task_needs(path, match["name"])})
    return sorted(found, key=lambda task: (task["kind"] != "group", task["name"]))


def _model_needs(name: str) -> str:
    from flmm_plugin.errors import DataNotFound

    if not bundled.is_model(name):
        return "--model_args pretrained=FOLDER_OR_HUB_NAME,heads=FILE (heads=None to chat only)"
    try:
        bundled.model(name).checkpoint()
        bundled.model(name).heads()
    except DataNotFound as exc:
        return str(exc)
    return "nothing: its weights are in the package"


def _task_needs(path: Path, name: str) -> str:
    from flmm_plugin.datasets.refer import data_root

    if path.parent.name == "tiny":
        return "nothing: its data writes itself"
    root, wanted = data_root(), _benchmarks_of(path.parent.name, name)
    if not wanted:
        return "see the README of its folder"
    missing = [one for one in wanted if not one.is_here(root)]
    if not missing:
        return f"nothing: its data is under {root}"
    here = ", ".join(f"{one.here(root)} of {one.name}" for one in missing)
    return f"data: {here} are under {root} (flmm data list {missing[0].name})"


def _benchmarks_of(folder: str, task: str) -> list[Benchmark]:
    """The benchmarks that a task or group reads; a group of RefCOCO's folder that names none reads all three."""
    from flmm_plugin.data.registry import BENCHMARKS

    if folder == "refcoco":
        family = [BENCHMARKS[name] for name in ("refcoco+", "refcocog", "refcoco")]
        return [one for one in family if one.name in task][:1] or family
    return [BENCHMARKS[name] for name in (_BENCHMARK_OF.get(folder),) if name]


def _list(args: argparse.Namespace) -> int:
    content: dict[str, list[dict[str, str]]] = {"models": models(), "families": families(), "tasks": tasks()}
    if args.json:
        print(json.dumps(content, indent=1))
        return 0
    print("models (lmms_eval --model NAME)")
    print(_aligned(content["models"], ("name", "needs")))
    print("\nfamilies of checkpoints (flmm --model FOLDER_OR_HUB_NAME), by model_type")
    print(_aligned(content["families"], ("name", "class")))
    print("\ntasks (lmms_eval --tasks NAME,...); stock tasks of lmms-eval run through the same models")
    print(_aligned(content["tasks"], ("name", "kind", "needs")))
    return 0


def _aligned(rows: Sequence[Mapping[str, str]], columns: Sequence[str]) -> str:
    rows = [dict(zip(columns, columns, strict=True)), *rows]
    widths = [max(len(row[column]) for row in rows) for column in columns]
    return "\n".join(
        "  " + "  ".join(row[column].ljust(width) for column, width in zip(columns, widths, strict=True)).rstrip()
        for row in rows
    )
