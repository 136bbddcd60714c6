"""``flmm list``: models and tasks by the names that lmms-eval knows them by, and what each needs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from flmm_plugin import bundled
from flmm_plugin.cli.output import aligned, print_json


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
    """Return one entry per model that this package adds to lmms-eval."""
    from flmm_plugin.adapters.lmms_eval.models import MODELS

    return [{"name": name, "class": path, "needs": _model_needs(name)} for name, path in MODELS.items()]


def families() -> list[dict[str, str]]:
    """Return one entry per family of models that `GroundedLMM` speaks, by ``model_type``."""
    from flmm_plugin import backbones

    return [{"name": name, "class": path} for name, path in backbones.families().items()]


def tasks() -> list[dict[str, str]]:
    """Return one entry per task and group, with whether its data is there; groups come first."""
    from flmm_plugin.tasks.task_files import group_files, task_files

    found = [("group", name, path) for name, path in group_files().items()]
    found += [("task", name, path) for name, path in task_files().items()]
    return [
        {"name": name, "kind": kind, "needs": _task_needs(path.parent.name, name)}
        for kind, name, path in sorted(found, key=lambda one: one[:2])
    ]


def _model_needs(name: str) -> str:
    from flmm_plugin.adapters.answering.defaults import DEFAULTS
    from flmm_plugin.errors import DataNotFound

    if not bundled.is_model(name):
        given = DEFAULTS[name].pretrained or "--model_args pretrained=FOLDER_OR_HUB_NAME"
        return f"{given}; for masks, heads (flmm heads list)"
    try:
        bundled.model(name).checkpoint()
        bundled.model(name).heads()
    except DataNotFound as exc:
        return str(exc)
    return "nothing: its weights are in the package"


def _task_needs(folder: str, name: str) -> str:
    from flmm_plugin.data.root import data_root
    from flmm_plugin.tasks.benchmarks import benchmarks_of_folder
    from flmm_plugin.tasks.task_files import task_config, task_files

    options = task_config(name).get("dataset_kwargs") if name in task_files() else None
    if folder == "tiny" or bundled.is_data_root(str((options or {}).get("root"))):
        return "nothing: its data writes itself"
    root, needed = data_root(), benchmarks_of_folder(folder, [name])
    if not needed:
        return "see the README of its folder"
    missing = [one for one in needed if not one.is_here(root)]
    if not missing:
        return f"nothing: its data is under {root}"
    here = ", ".join(f"{one.here(root)} of {one.name}" for one in missing)
    return f"data: {here} are under {root} (flmm data list {missing[0].name})"


def _list(args: argparse.Namespace) -> int:
    content = {"models": models(), "families": families(), "tasks": tasks()}
    if args.json:
        print_json(content)
        return 0
    print("models (lmms_eval --model NAME)")
    print(_table(content["models"], ("name", "needs")))
    print("\nfamilies of checkpoints (flmm --model FOLDER_OR_HUB_NAME), by model_type")
    print(_table(content["families"], ("name", "class")))
    print("\ntasks (lmms_eval --tasks NAME,...); stock tasks of lmms-eval run through the same models")
    print(_table(content["tasks"], ("name", "kind", "needs")))
    return 0


def _table(entries: Sequence[dict[str, str]], columns: Sequence[str]) -> str:
    rows = [columns, *([entry[column] for column in columns] for entry in entries)]
    return "\n".join(f"  {line}" for line in aligned(rows).splitlines())
