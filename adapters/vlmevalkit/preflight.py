"""Get the models and the data of this package that a command line names, before the kit is imported."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from flmm_plugin.adapters.answering.arguments import ARGUMENTS_VARIABLE, ModelArguments
from flmm_plugin.adapters.answering.defaults import DEFAULTS
from flmm_plugin.adapters.answering.needs import model_needs, needs_heads, reads
from flmm_plugin.adapters.vlmevalkit.benchmarks import BENCHMARKS
from flmm_plugin.adapters.vlmevalkit.command_line import Requested
from flmm_plugin.bundled import is_model
from flmm_plugin.needs import Need, missing, provide
from flmm_plugin.options import arguments_of
from flmm_plugin.tasks.data_needs import data_needs
from flmm_plugin.tasks.task_files import task_config


def bring(asked: Requested) -> None:
    """Fetch what a run needs of this package, or list it on one screen; the kit's own data is left to the kit.

    Args:
        asked: Names on the command line.

    Raises:
        UnknownArgument, HeadsMismatch: Arguments of a model that cannot be.
        NotReady: Something is missing that may not or cannot be fetched.
        OutputFailed: The disk has no room for it.
        DataNotFound, BadAnnotation, BadCheckpoint: A fetch failed.
    """
    models = [_arguments(name, options) for name, options in asked.ours]
    tasks = [task for name in asked.data for task in BENCHMARKS.get(name, {}).values()]
    if not models:
        return
    find = partial(_needs, models, tasks, any(name not in BENCHMARKS for name in asked.data))
    provide(find(), fetch=all(one.fetch and not is_model(one.pretrained) for one in models), again=find)


def _arguments(name: str, options: Mapping[str, Any]) -> ModelArguments:
    given = {**arguments_of(os.environ.get(ARGUMENTS_VARIABLE, "")), **options}
    return ModelArguments.read(DEFAULTS[name], given)


def _needs(models: Iterable[ModelArguments], tasks: list[str], chats: bool) -> list[Need]:
    """Return what the models and the tasks need, each once.

    Args:
        models: Arguments of this package's models.
        tasks: Names of tasks of this package.
        chats: Whether a data set of the kit's own is asked for.
    """
    options = [task_config(task).get("generation_kwargs") or {} for task in tasks] + [{}] * chats
    found = [
        need
        for one in models
        for need in model_needs(one, grounds=any(needs_heads(said, one.visual_cot) for said in options))
    ]
    found += data_needs(task for task in tasks if missing(data_needs([task])) == [] or not reads(task))
    return list({(need.kind, need.what): need for need in found}.values())
