"""What both arms of a proof are told: which model it is and how it computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flmm_plugin import bundled
from flmm_plugin.errors import UnknownArgument

#: Model arguments that say which model it is and how it computes: both arms get them.
SHARED = (
    "pretrained", "revision", "dtype", "device", "device_map", "attn_implementation", "trust_remote_code",
    "system_prompt", "load_in_4bit", "load_in_8bit",
)  # fmt: skip

#: Model arguments with which chat is another one on purpose.
_ON_PURPOSE = ("visual_cot",)


def shared(given: Mapping[str, Any]) -> dict[str, Any]:
    """What both arms are told, of the F-LMM arm's model arguments.

    Raises:
        UnknownArgument: An argument that changes chat on purpose.
    """
    for name in _ON_PURPOSE:
        if given.get(name) not in (None, "none", ""):
            raise UnknownArgument(
                f"{name}={given[name]} gives other answers on purpose, which no check can call unchanged; leave it out "
                "of --model_args"
            )
    return {name: given[name] for name in SHARED if given.get(name) not in (None, "", "none")}


def with_checkpoint(arguments: Mapping[str, Any], default: str) -> dict[str, Any]:
    """The arguments with a checkpoint that transformers finds.

    Args:
        arguments: As of `shared`.
        default: The model's own checkpoint, or empty.

    Raises:
        UnknownArgument: There is none.
    """
    pretrained = arguments.get("pretrained") or default
    if not pretrained:
        raise UnknownArgument("this model has no checkpoint of its own: --model_args pretrained=FOLDER_OR_HUB_NAME")
    if bundled.is_model(pretrained):
        pretrained = str(bundled.model(pretrained).checkpoint())
    return {**arguments, "pretrained": pretrained}
