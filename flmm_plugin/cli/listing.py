"""``flmm list``: models and tasks by the names that lmms-eval knows them by, and what each needs."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_NAME = re.compile(r"^(task|group):[ \t]*(?P<name>[^\s#]+)[ \t]*$", re.MULTILINE)

# Folder of tasks -> the benchmark of `flmm data` that they read.
_BENCHMARK_OF = {
    "png": "png",
    "keywords": "png",
    "gcg": "gcg",
    "reasonseg": "reasonseg",
    "viscot": "viscot",
    "pope_viscot": "pope",
}


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
    from flmm_plugin.adapters.lmms_eval.seam import TASKS_FOLDER

    found: list[dict[str, str]] = []
    for path in sorted(TASKS_FOLDER.rglob("*.yaml")):
        for match in _NAME.finditer(path.read_text(encoding="utf-8")):
            found.append({"name": match["name"], "kind": match[1], "needs": _task_needs(path, match["name"])})
    return sorted(found, key=lambda task: (task["kind"] != "group", task["name"]))


def _model_needs(name: str) -> str:
    from flmm_plugin.errors import DataNotFound
    from flmm_plugin.tiny import heads_path, tiny_path

    if name != "flmm_tiny":
        return "--model_args pretrained=FOLDER_OR_HUB_NAME,heads=FILE (heads=None to chat only)"
    try:
        tiny_path(), heads_path()
    except DataNotFound as exc:
        return str(exc)
    return "nothing: its weights are in the package"


def _task_needs(path: Path, name: str) -> str:
    from flmm_plugin.datasets.refer import data_root

    if path.parent.name == "tiny":
        return "nothing: its data writes itself"
    if path.parent.name in _BENCHMARK_OF:
        return _parts_needed(_BENCHMARK_OF[path.parent.name], data_root())
    if path.parent.name != "refcoco":
        return "see the README of its folder"
    dataset = next((known for known in ("refcoco+", "refcocog", "refcoco") if known in name), None)
    root = data_root()
    wanted = ("refcoco", "refcoco+", "refcocog") if dataset is None else (dataset,)
    absent = [one for one in wanted if not _has_annotations(root, one)]
    return f"{', '.join(absent)} under {root} (set FLMM_DATA)" if absent else f"nothing: its data is under {root}"


def _parts_needed(name: str, root: Path) -> str:
    from flmm_plugin.data.registry import benchmark_of

    needed = [part for part in benchmark_of(name).parts if not part.optional]
    here = sum(any((root / place).exists() for place in part.places) for part in needed)
    if here == len(needed):
        return f"nothing: its data is under {root}"
    return f"{len(needed) - here} of {len(needed)} parts of {name} under {root} (flmm data list {name})"


def _has_annotations(root: Path, dataset: str) -> bool:
    return any((root / place / dataset / "instances.json").is_file() for place in ("coco", "."))


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
    widths = [max((len(row[column]) for row in rows), default=0) for column in columns]
    return "\n".join(
        "  " + "  ".join(row[column].ljust(width) for column, width in zip(columns, widths, strict=True)).rstrip()
        for row in rows
    )
