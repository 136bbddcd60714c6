"""Families of models: the table of all of them, and which one a checkpoint belongs to. Needs no torch."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flmm_plugin import bundled
from flmm_plugin.bundled import EMBEDDED
from flmm_plugin.errors import BackboneUnsupported, UnknownArgument
from flmm_plugin.suggestions import did_you_mean

if TYPE_CHECKING:
    from flmm_plugin.backbones.base import Backbone
    from flmm_plugin.heads.manifest import BackboneFacts


@dataclass(frozen=True)
class Family:
    """One family: the name of its models in evaluation tools, and the classes that implement it.

    Attributes:
        model: Name for ``--model``, which begins with ``flmm_``.
        pretrained: Checkpoint that the name stands for, where no other is given.
        classes: ``model_type`` of a checkpoint's config -> ``module:Class`` in this package.
    """

    model: str
    pretrained: str
    classes: Mapping[str, str]


#: The class whose instances measure where image tokens lie: for every type without a file of its own.
_AUTO = "auto:AutoBackbone"


def _measured(model: str, pretrained: str, *types: str) -> Family:
    """Return a family that needs no file of its own."""
    return Family(model, pretrained, dict.fromkeys(types, _AUTO))


#: A new family is one line here, with a file in this folder where measuring is not enough. Types that chat, but cannot
#: ground, have a name too; docs/conformance.md says which.
FAMILIES = (
    Family("flmm_llava", "llava-hf/llava-1.5-7b-hf", {"llava": "llava:LlavaBackbone"}),
    Family("flmm_llava_next", "llava-hf/llava-v1.6-vicuna-7b-hf", {"llava_next": "llava_next:LlavaNextBackbone"}),
    Family(
        "flmm_llava_onevision",
        "llava-hf/llava-onevision-qwen2-7b-ov-hf",
        {"llava_onevision": "llava_onevision:LlavaOnevisionBackbone"},
    ),
    Family(
        "flmm_qwen2_5_vl",
        "Qwen/Qwen2.5-VL-3B-Instruct",
        {"qwen2_5_vl": "qwen_vl:Qwen25VLBackbone", "qwen2_vl": "qwen_vl:Qwen2VLBackbone"},
    ),
    Family(
        "flmm_qwen3_vl",
        "Qwen/Qwen3-VL-4B-Instruct",
        dict.fromkeys(("qwen3_vl", "qwen3_vl_moe"), "qwen_vl:Qwen3VLBackbone"),
    ),
    Family("flmm_internvl", "OpenGVLab/InternVL3-8B-hf", {"internvl": "internvl:InternVLBackbone"}),
    Family(
        "flmm_deepseekvl",
        "deepseek-community/deepseek-vl-1.3b-chat",
        {
            "deepseek_vl": "deepseek_vl:DeepseekVLBackbone",
            "deepseek_vl_hybrid": "deepseek_vl:DeepseekVLHybridBackbone",
        },
    ),
    Family(
        "flmm_mgm",
        "YanweiLi/MGM-2B",
        dict.fromkeys(("mgm", "mgm_gemma", "mini_gemini", "mini_gemini_gemma"), "mgm.backbone:MGMBackbone"),
    ),
    Family("flmm_hpt", "HyperGAI/HPT", {"hpt": "hpt.backbone:HPTBackbone"}),
    _measured("flmm_qwen3_5", "Qwen/Qwen3.5-4B", "qwen3_5", "qwen3_5_moe"),
    _measured("flmm_glm4v", "zai-org/GLM-4.1V-9B-Thinking", "glm4v", "glm4v_moe", "glm46v"),
    _measured("flmm_gemma3", "google/gemma-3-4b-it", "gemma3"),
    _measured("flmm_gemma4", "google/gemma-4-E4B-it", "gemma4"),
    _measured("flmm_mistral3", "mistralai/Mistral-Small-3.1-24B-Instruct-2503", "mistral3"),
    _measured("flmm_pixtral", "mistral-community/pixtral-12b", "pixtral"),
    _measured("flmm_smolvlm", "HuggingFaceTB/SmolVLM2-2.2B-Instruct", "smolvlm", "idefics3"),
    _measured("flmm_paligemma", "google/paligemma2-3b-mix-448", "paligemma"),
    _measured("flmm_minicpmv", "openbmb/MiniCPM-V-4.6", "minicpmv4_6", "minicpmv4_7"),
    _measured("flmm_kimi", "moonshotai/Kimi-K2.5", "kimi_k25"),
    _measured("flmm_molmo2", "allenai/Molmo2-8B", "molmo2"),
    _measured("flmm_lfm2_vl", "LiquidAI/LFM2-VL-1.6B", "lfm2_vl", "lfm3_vl"),
    _measured("flmm_llama4", "meta-llama/Llama-4-Scout-17B-16E-Instruct", "llama4"),
)

#: Types that this package tells apart, and what their configurations call themselves.
_CALLED = {"pixtral": "llava"}

#: Entry points of other packages that bring a family: model type -> ``package.module:Class``.
ENTRY_POINTS = "flmm_plugin.backbones"


def families() -> dict[str, str]:
    """Return ``module:Class`` of every model type, those of installed packages included (which go first)."""
    known = {kind: f"{__package__}.{place}" for family in FAMILIES for kind, place in family.classes.items()}
    return known | {entry.name: entry.value for entry in metadata.entry_points(group=ENTRY_POINTS)}


def family_class(family: str, name: str) -> type[Backbone]:
    """Return the class that implements a model type; the generic one where there is none of its own.

    Args:
        family: ``model_type`` of a checkpoint's configuration.
        name: The model as the user called it, for messages.

    Raises:
        BackboneUnsupported: Not a model that looks at pictures and writes text, or the package that brings its family
            is broken.
    """
    known = families()
    place = known.get(family, f"{__package__}.{_AUTO}")
    if place == f"{__package__}.{_AUTO}":
        from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

        if _CALLED.get(family, family) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
            raise BackboneUnsupported(
                f"{name!r} is a {family!r} model, which is none that this transformers loads to look at pictures and "
                f"write text; implemented families: {', '.join(sorted(known))}. docs/add-a-backbone.md adds one"
            )
    module, _, attribute = place.partition(":")
    try:
        found: type[Backbone] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as exc:
        raise BackboneUnsupported(
            f"family {family!r} should be {place}, which cannot be imported ({exc}); repair or uninstall the "
            "package that brings it"
        ) from exc
    return found


def folder_of(pretrained: str | PathLike[str]) -> str:
    """Return the folder of a model that a package ships; any other name as it is."""
    name = fspath(pretrained)
    return str(bundled.model(name).checkpoint()) if bundled.is_model(name) else name


def family_of(pretrained: str | PathLike[str], *, revision: str | None = None) -> str:
    """Return ``model_type`` of a checkpoint, from its configuration alone; ``pixtral`` for a LLaVA with that tower.

    Args:
        pretrained: A folder or a hub name.
        revision: Branch, tag or commit on the hub.

    Raises:
        BackboneUnsupported: No configuration, or one without a model type.
        UnknownArgument: Nearly the name of a model that the package carries.
    """
    from transformers import PreTrainedConfig

    name, folder = fspath(pretrained), folder_of(pretrained)
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
    tower = str((config.get("vision_config") or {}).get("model_type"))
    return tower if _CALLED.get(tower) == family else str(family)


def facts_of(pretrained: str | PathLike[str], *, revision: str | None = None) -> BackboneFacts:
    """Return the numbers of a checkpoint that heads must fit, from its configuration alone.

    Args:
        pretrained: A folder or a hub name.
        revision: Branch, tag or commit on the hub.

    Raises:
        BackboneUnsupported: No configuration, of no known family, or without these numbers.
        UnknownArgument: Not a name of anything.
    """
    from flmm_plugin.heads.manifest import BackboneFacts

    name = fspath(pretrained)
    maps = family_class(family_of(name, revision=revision), name).maps_per_image
    text = _text_config(name, revision)
    numbers = {key: getattr(text, key, None) for key in ("num_hidden_layers", "num_attention_heads", "hidden_size")}
    missing = [key for key, value in numbers.items() if not isinstance(value, int)]
    if missing or not isinstance(maps, int):
        raise BackboneUnsupported(
            f"the configuration of {name!r} does not say {', '.join(missing) or 'how many views it has'}; give the "
            "model by a name that the paper lists (flmm heads convert --help)"
        )
    layers, heads, hidden = (int(value) for value in numbers.values() if value is not None)
    return BackboneFacts(name, layers, heads, hidden, maps, revision)


def _text_config(name: str, revision: str | None) -> Any:
    from transformers import AutoConfig, PreTrainedConfig

    try:
        return AutoConfig.from_pretrained(name, revision=revision).get_text_config()
    except (OSError, ValueError, KeyError):
        # Families that transformers' own table of configurations lacks: the file as it is.
        content, _ = PreTrainedConfig.get_config_dict(name, revision=revision)
        return PreTrainedConfig.from_dict(content)


def _is_hpt(folder: str, revision: str | None) -> bool:
    """Look for HPT's projector: its repositories have no configuration but those of their parts."""
    from transformers import PreTrainedConfig

    try:
        config, _ = PreTrainedConfig.get_config_dict(folder, subfolder="projector", revision=revision)
    except (OSError, ValueError):
        return False
    return config.get("model_type") == "hformer"
