"""Say what a model needs before it answers: its weights, and heads and SAM where something is grounded. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flmm_plugin.adapters.answering.requests import GIVEN_TEXT_FLAG, GROUND_FLAG, GROUNDED_CHAT_FLAG
from flmm_plugin.errors import FlmmError
from flmm_plugin.hub_files import weights_need
from flmm_plugin.needs import Need

if TYPE_CHECKING:
    from flmm_plugin.adapters.answering.arguments import ModelArguments
    from flmm_plugin.adapters.answering.visual_cot import VisualCotMode


def needs_heads(options: Mapping[str, Any], visual_cot: VisualCotMode) -> bool:
    """Tell whether a task needs heads to be answered.

    Args:
        options: The task's generation arguments, its marks among them.
        visual_cot: Which questions get a second look.
    """
    if any(options.get(flag) for flag in (GROUND_FLAG, GROUNDED_CHAT_FLAG, GIVEN_TEXT_FLAG)):
        return True
    return visual_cot.looks_twice(options)


def model_needs(arguments: ModelArguments, *, grounds: bool) -> list[Need]:
    """Say what a model needs, whether it is here or not; only the hub is asked, for the size of weights.

    Args:
        arguments: Arguments of the model, read and checked.
        grounds: Whether a task needs heads. If not, heads that ``auto`` stands for are neither loaded nor fetched.

    Raises:
        UnknownArgument, HeadsMismatch: Heads or SAM that contradict each other.
    """
    weights = weights_need(arguments.pretrained, arguments.options.revision)
    if arguments.heads is None or (arguments.heads_wait and not grounds):
        return [weights]
    from flmm_plugin.heads_choice import needs_for  # costs torch

    given = {name: value for name, value in arguments.grounding.items() if name != "merge"}
    return [weights, *needs_for(arguments.pretrained, arguments.heads, revision=arguments.options.revision, **given)]


def reads(task: str) -> bool:
    """Tell whether a task's own reader finds its documents: it may know a place that no list has.

    Args:
        task: Name of a task of this package.
    """
    from flmm_plugin.tasks.standalone import StandaloneTask

    try:
        docs = StandaloneTask(task).docs
        return len(docs) == 0 or Path(str(docs[0]["image_path"])).is_file()
    except (FlmmError, OSError, KeyError):
        return False
