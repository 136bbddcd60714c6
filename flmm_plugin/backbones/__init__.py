"""Families of large multimodal models, one file each, and how one is found from its configuration.

`load_backbone` is the only name that the rest of the package needs; families are imported when one is asked for.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable, Sequence
from importlib import metadata
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flmm_plugin import bundled
from flmm_plugin.bundled import EMBEDDED
from flmm_plugin.devices import checked_device
from flmm_plugin.errors import BackboneUnsupported, UnknownArgument
from flmm_plugin.nearest import did_you_mean

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
    **dict.fromkeys(
        ("mgm", "mgm_gemma", "mini_gemini", "mini_gemini_gemma"), "flmm_plugin.backbones.mgm.backbone:MGMBackbone"
    ),
    "hpt": "flmm_plugin.backbones.hpt.backbone:HPTBackbone",
}

#: Entry points of other packages that bring a family: model type -> ``package.module:Class``.
ENTRY_POINTS = "flmm_plugin.backbones"

#: What `load_backbone` takes; what loads an LMM for somebody takes these too.
ARGUMENTS = (
    "revision",
    "dtype",
    "device",
    "device_map",
    "attn_implementation",
    "system_prompt",
    "preprocessing",
    "load_in_4bit",
    "load_in_8bit",
    "trust_remote_code",
)


def load_backbone(
    pretrained: str | PathLike[str] = EMBEDDED,
    *,
    revision: str | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    device_map: str | dict[str, Any] | None = None,
    attn_implementation: str | None = None,
    system_prompt: str | None = None,
    preprocessing: str | None = None,
    load_in_4bit: bool = False,
    load_in_8bit: bool = False,
    trust_remote_code: bool = False,
    **unknown: Any,
) -> Backbone:
    """Load a frozen model with its own processor.

    A model of a family without a file of its own goes the generic way (`flmm_plugin.backbones.auto`).

    Args:
        pretrained: A hub name, a folder, or ``flmm_tiny`` for the model that the package carries.
        revision: Branch, tag or commit on the hub.
        dtype: ``auto`` (as stored), a name such as ``bfloat16``, or a torch dtype.
        device: Where to put it; default: the first CUDA device, else the CPU. Not together with ``device_map``.
        device_map: Passed to transformers: splits the model over devices.
        attn_implementation: The attention kernel, as in transformers; default: transformers' own choice.
        system_prompt: A system turn put before every chat that has none.
        preprocessing: What pictures go through before grounding: ``stock`` (default), ``paper``
            (`flmm_plugin.backbones.preprocessing`). Chat is always stock.
        load_in_4bit: Quantise the weights to 4 bits while loading (bitsandbytes).
        load_in_8bit: Quantise them to 8 bits.
        trust_remote_code: Run code from the model's repository, for families that cannot do without.
        **unknown: Refused, with the nearest known argument.

    Raises:
        UnknownArgument: An argument that does not exist, or that this family does not take.
        BackboneUnsupported: The checkpoint cannot be loaded, or not by this package.
    """
    refuse_unknown("load_backbone", unknown, ARGUMENTS)
    if isinstance(device, str):
        checked_device(device, "device=")
    name, folder = fspath(pretrained), _folder(pretrained)
    family = family_of(pretrained, revision=revision)
    load = family_class(family, name).load
    options: dict[str, Any] = {
        "revision": revision,
        "dtype": dtype,
        "device": device,
        "device_map": device_map,
        "attn_implementation": attn_implementation,
        "system_prompt": system_prompt,
    }
    special = {"load_in_4bit": load_in_4bit, "load_in_8bit": load_in_8bit, "trust_remote_code": trust_remote_code}
    for argument, value in special.items():
        if value:
            if argument not in inspect.signature(load).parameters:
                raise UnknownArgument(f"{family} models do not take {argument}; leave it out for {name}")
            options[argument] = value
    backbone = load(folder, name=name, **options)
    backbone.preprocess(preprocessing)
    return backbone


def families() -> dict[str, str]:
    """Model type -> ``module:Class`` of every family, those of installed packages included (which go first)."""
    found = dict(FAMILIES)
    for entry in metadata.entry_points(group=ENTRY_POINTS):
        found[entry.name] = entry.value
    return found


def family_class(family: str, name: str) -> type[Backbone]:
    """The class that implements a model type; the generic one where there is none of its own.

    Args:
        family: ``model_type`` of a config.
        name: The model, for messages.

    Raises:
        BackboneUnsupported: Not a model that looks at pictures and writes text, or the package that brings its family
            is broken.
    """
    known = families()
    if family not in known:
        from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

        if family not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
            raise BackboneUnsupported(
                f"{name!r} is a {family!r} model, which is none that transformers loads to look at pictures and write "
                f"text; implemented families: {', '.join(sorted(known))}. docs/add-a-backbone.md adds one"
            )
        from flmm_plugin.backbones.auto import AutoBackbone

        return AutoBackbone
    module, _, attribute = known[family].partition(":")
    try:
        found: type[Backbone] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as exc:
        raise BackboneUnsupported(
            f"family {family!r} should be {known[family]}, which cannot be imported ({exc}); repair or uninstall the "
            "package that brings it"
        ) from exc
    return found


def family_of(pretrained: str | PathLike[str], *, revision: str | None = None) -> str:
    """``model_type`` of a checkpoint, from its configuration alone."""
    return _family_of(_folder(pretrained), fspath(pretrained), revision)


def _folder(pretrained: str | PathLike[str]) -> str:
    name = fspath(pretrained)
    return str(bundled.model(name).checkpoint()) if bundled.is_model(name) else name


def refuse_unknown(where: str, unknown: Iterable[str], known: Sequence[str]) -> None:
    """Raise `UnknownArgument` for the first unknown name, offering the nearest known one."""
    for name in unknown:
        hint = did_you_mean(name, known) or f"; known: {', '.join(known)}"
        raise UnknownArgument(f"{where} has no argument {name!r}{hint}")


def _family_of(folder: str, name: str, revision: str | None) -> str:
    from transformers import PreTrainedConfig

    try:
        # As a dictionary: some families are loaded here that transformers' own table of configurations lacks.
        config, _ = PreTrainedConfig.get_config_dict(folder, revision=revision)
        if not config.get("model_type") and _is_hpt(folder, revision):
            return "hpt"
    except (OSError, ValueError, KeyError) as exc:
        if _is_hpt(folder, revision):
            return "hpt"
        looks_local = folder.startswith((".", "/", "~")) or Path(folder).exists()
        hint = did_you_mean(name, [EMBEDDED], 0.6)
        if hint and not looks_local:
            raise UnknownArgument(f"there is no backbone {name!r}{hint}") from exc
        raise BackboneUnsupported(
            f"{name!r} has no configuration that transformers can read ({exc}); give a folder with config.json, a hub "
            f"name, or {EMBEDDED!r}"
        ) from exc
    family = config.get("model_type")
    if not family:
        raise BackboneUnsupported(
            f"the config.json of {name!r} names no model_type; take it from the model's repository"
        )
    return str(family)


def _is_hpt(folder: str, revision: str | None) -> bool:
    """HPT's repositories have no configuration but those of their parts."""
    from transformers import PreTrainedConfig

    try:
        config, _ = PreTrainedConfig.get_config_dict(folder, subfolder="projector", revision=revision)
    except (OSError, ValueError):
        return False
    return config.get("model_type") == "hformer"
