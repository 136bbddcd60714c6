"""Choose the stock model of a proof: which adapter of lmms-eval it is for a checkpoint, and with which arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flmm_plugin import bundled
from flmm_plugin.errors import UnknownArgument

#: Name for ``--stock``: transformers alone, without an adapter of the harness.
PLAIN = "plain"

#: Model arguments that say which model it is and how it computes: stock and F-LMM runs both get them.
SHARED = (
    "pretrained", "revision", "dtype", "device", "device_map", "attn_implementation", "trust_remote_code",
    "system_prompt", "load_in_4bit", "load_in_8bit",
)  # fmt: skip

#: Shared arguments that lmms-eval's adapters do not take.
_PLAIN_ONLY = ("system_prompt", "load_in_4bit", "load_in_8bit")

#: ``model_type`` of a checkpoint -> lmms-eval's own adapter, where one speaks transformers' checkpoints of the family.
#: What is not here, or does not work with the versions that are installed, is answered by plain transformers, and the
#: verdict says so.
ADAPTERS = {"llava": "llava_hf", "llava_next": "llava_hf", "llava_onevision": "llava_hf"}


def shared(given: Mapping[str, Any]) -> dict[str, Any]:
    """Select, of the F-LMM run's model arguments, those that both runs get.

    Raises:
        UnknownArgument: An argument that changes chat on purpose.
    """
    if given.get("visual_cot") not in (None, "none", ""):
        raise UnknownArgument(
            f"visual_cot={given['visual_cot']} gives other answers on purpose, which no check can call unchanged; "
            "leave it out of --model_args"
        )
    return {name: given[name] for name in SHARED if given.get(name) not in (None, "", "none")}


def stock_arguments(given: Mapping[str, Any], default: str) -> dict[str, Any]:
    """Make the arguments of a stock model, with a checkpoint that transformers finds.

    Args:
        given: Model arguments of the F-LMM run.
        default: The F-LMM model's own checkpoint, or empty.

    Raises:
        UnknownArgument: There is no checkpoint, or an argument changes chat on purpose.
    """
    pretrained = given.get("pretrained") or default
    if not pretrained:
        raise UnknownArgument("this model has no checkpoint of its own: --model_args pretrained=FOLDER_OR_HUB_NAME")
    if bundled.is_model(pretrained):
        pretrained = str(bundled.model(pretrained).checkpoint())
    return shared({**given, "pretrained": pretrained})


def adapter_for(arguments: Mapping[str, Any]) -> tuple[str, str]:
    """Choose the stock adapter of lmms-eval for a checkpoint.

    Args:
        arguments: Model arguments, as `stock_arguments` returns them.

    Returns:
        Its name, or `PLAIN` and the reason why it is no adapter of lmms-eval's.
    """
    from transformers import AutoConfig

    if beyond := [name for name in _PLAIN_ONLY if arguments.get(name)]:
        return PLAIN, f"lmms-eval's adapters take no {beyond[0]}"
    family = AutoConfig.from_pretrained(arguments["pretrained"], revision=arguments.get("revision")).model_type
    if family not in ADAPTERS:
        return PLAIN, f"no adapter of lmms-eval's is known to work for {family} with these versions"
    return ADAPTERS[family], ""
