"""Families of large multimodal models, one file each, and how one is found from its configuration.

`load_backbone` is the only name that the rest of the package needs; families are imported when one is asked for.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flmm_plugin.errors import BackboneUnsupported, UnknownArgument

if TYPE_CHECKING:
    import torch

    from flmm_plugin.backbones.base import Backbone

# model_type of the checkpoint's config -> where its family is implemented.
FAMILIES: dict[str, str] = {
    "llava": "flmm_plugin.backbones.llava:LlavaBackbone",
    "llava_next": "flmm_plugin.backbones.llava_next:LlavaNextBackbone",
    "llava_onevision": "flmm_plugin.backbones.llava_onevision:LlavaOnevisionBackbone",
    "internvl": "flmm_plugin.backbones.internvl:InternVLBackbone",
    "qwen2_vl": "flmm_plugin.backbones.qwen_vl:Qwen2VLBackbone",
    "qwen2_5_vl": "flmm_plugin.backbones.qwen_vl:Qwen25VLBackbone",
    "qwen3_vl": "flmm_plugin.backbones.qwen_vl:Qwen3VLBackbone",
    "deepseek_vl": "flmm_plugin.backbones.deepseek_vl:DeepseekVLBackbone",
    "deepseek_vl_hybrid": "flmm_plugin.backbones.deepseek_vl:DeepseekVLHybridBackbone",
}

EMBEDDED = "flmm_tiny"

_ARGUMENTS = ("revision", "dtype", "device", "device_map", "attn_implementation", "system_prompt")


def load_backbone(
    pretrained: str | PathLike[str] = EMBEDDED,
    *,
    revision: str | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    device_map: str | dict[str, Any] | None = None,
    attn_implementation: str | None = None,
    system_prompt: str | None = None,
    **unknown: Any,
) -> Backbone:
    """Load a frozen model with its own processor.

    Args:
        pretrained: A hub name, a folder, or ``flmm_tiny`` for the model that the package carries.
        revision: Branch, tag or commit on the hub.
        dtype: ``auto`` (as stored), a name such as ``bfloat16``, or a torch dtype.
        device: Where to put it; default: the first CUDA device, else the CPU. Not together with ``device_map``.
        device_map: Passed to transformers: splits the model over devices.
        attn_implementation: The attention kernel, as in transformers; default: transformers' own choice.
        system_prompt: A system turn put before every chat that has none.
        **unknown: Refused, with the nearest known argument.

    Raises:
        UnknownArgument: An argument that does not exist.
        BackboneUnsupported: The checkpoint is of a family that is not implemented, or cannot be loaded.
    """
    refuse_unknown("load_backbone", unknown, _ARGUMENTS)
    name = folder = fspath(pretrained)
    if name == EMBEDDED:
        from flmm_plugin.tiny import tiny_path

        folder = str(tiny_path())
    family = _family_of(folder, name, revision)
    module, _, attribute = FAMILIES[family].partition(":")
    backbone: Backbone = getattr(importlib.import_module(module), attribute).load(
        folder,
        name=name,
        revision=revision,
        dtype=dtype,
        device=device,
        device_map=device_map,
        attn_implementation=attn_implementation,
        system_prompt=system_prompt,
    )
    return backbone


def refuse_unknown(where: str, unknown: Iterable[str], known: Sequence[str]) -> None:
    """Raise `UnknownArgument` for the first unknown name, offering the nearest known one."""
    for name in unknown:
        near = difflib.get_close_matches(name, known, 1, 0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
        raise UnknownArgument(f"{where} has no argument {name!r}; {hint}")


def _family_of(folder: str, name: str, revision: str | None) -> str:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, revision=revision)
    except (OSError, ValueError, KeyError) as exc:
        looks_local = folder.startswith((".", "/", "~")) or Path(folder).exists()
        near = difflib.get_close_matches(name, [EMBEDDED], 1, 0.6)
        if near and not looks_local:
            raise UnknownArgument(f"there is no backbone {name!r}; did you mean {EMBEDDED!r}?") from exc
        raise BackboneUnsupported(
            f"{name!r} has no configuration that transformers can read ({exc}); give a folder with config.json, a hub "
            f"name, or {EMBEDDED!r}"
        ) from exc
    family = str(config.model_type)
    if family not in FAMILIES:
        raise BackboneUnsupported(
            f"{name!r} is a {family!r} model; implemented families: {', '.join(sorted(FAMILIES))}. "
            "A new one is one file in flmm_plugin/backbones"
        )
    return family
