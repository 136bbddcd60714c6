"""What ``--model_args`` may hold, and an answer to what it may not."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from flmm_plugin.errors import UnknownArgument
from flmm_plugin.nearest import did_you_mean

#: Where a harness without arguments for models takes them from: ``name=value,name=value``.
ARGUMENTS_VARIABLE = "FLMM_MODEL_ARGS"

#: Name -> what it means, as shown for an unknown one.
MODEL_ARGUMENTS = {
    "pretrained": "folder or hub id of the LMM",
    "revision": "version of it on the hub",
    "dtype": "float32, bfloat16, float16 or auto",
    "device": "cpu, cuda, cuda:1",
    "device_map": "how to split the LMM over devices, e.g. auto",
    "attn_implementation": "sdpa, eager, flash_attention_2",
    "batch_size": "requests per forward pass",
    "max_batch_size": "accepted because lmms-eval passes it on; not used",
    "system_prompt": "a system turn before every chat",
    "preprocessing": "what pictures go through before grounding: stock (as in chat) or paper; default: the heads' own",
    "load_in_4bit": "true: quantise the LMM's weights to 4 bits (bitsandbytes)",
    "load_in_8bit": "true: quantise them to 8 bits",
    "trust_remote_code": "true: run code from the LMM's repository, for families that cannot do without",
    "heads": "the grounding heads' file, `auto`, `none`, or without training: attention-argmax, attend-and-segment, "
    "localization-heads",
    "sam": "`none`: masks of the mask decoder alone; else the name of the SAM that the heads were trained with",
    "sam_checkpoint": "SAM weights for heads that were saved without an image encoder, and for those without training",
    "visual_cot": "v1 or v2: answer every question about one picture after a second look at what it is about",
    "visual_cot_views": "what that answer is given from: auto, both (whole picture and cut-out) or crop",
    "visual_cot_refine": "true: the mask refiner says where to look, not the mask decoder alone",
    "visual_cot_scale": "factor on the box that is cut out",
    "merge": "how the attention of a phrase's tokens is merged: mean or max",
}


def refuse_unknown(names: Iterable[str], model: str) -> None:
    """Raise `UnknownArgument` for the first name that is no model argument, with the nearest one that is."""
    for name in names:
        if name not in MODEL_ARGUMENTS:
            hint = did_you_mean(name, MODEL_ARGUMENTS) or "."
            listed = ", ".join(f"{known} ({meaning})" for known, meaning in MODEL_ARGUMENTS.items())
            raise UnknownArgument(f"{model} has no model argument {name!r}{hint} It takes: {listed}")


def checked_batch_size(value: Any) -> int:
    """A positive whole number; lmms-eval also hands over text."""
    try:
        size = int(value)
    except (TypeError, ValueError):
        size = 0
    if size < 1:
        raise UnknownArgument(
            f"batch_size {value!r} is no positive whole number; this model does not search for one, give it"
        )
    return size


def none_if_said(value: Any) -> Any:
    """None for the words ``none`` and ``null``: a command line cannot say None otherwise."""
    return None if isinstance(value, str) and value.strip().lower() in ("none", "null", "") else value


def as_switch(name: str, value: Any) -> bool:
    """True or false, also as a command line says it."""
    said = str(value).strip().lower()
    if said in ("true", "1", "yes"):
        return True
    if said in ("false", "0", "no", "none", ""):
        return False
    raise UnknownArgument(f"{name} is {value!r}; give true or false")


def arguments_of(text: str) -> dict[str, Any]:
    """``name=value,...`` as lmms-eval reads it: true, false and numbers are those, everything else is text.

    >>> arguments_of("pretrained=a/b,limit=3,fast=True")
    {'pretrained': 'a/b', 'limit': 3, 'fast': True}

    Raises:
        UnknownArgument: A part without ``=``.
    """
    parsed: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = part.partition("=")
        if not equals:
            raise UnknownArgument(f"{part!r} is no argument: write name=value,name=value")
        parsed[name.strip()] = _value(value.strip())
    return parsed


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
