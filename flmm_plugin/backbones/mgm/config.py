"""Read the configuration of a published MGM (Mini-Gemini) repository, in the terms of transformers' classes.

Its ``config.json`` is the language model's, with ``mm_*`` entries for the rest; the two vision towers are named by the
folders that the authors trained with, whose last part says which public model it is. Their weights are in the
repository's own shards under the towers' original key names, so only their numbers are needed here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from flmm_plugin.errors import BackboneUnsupported

#: Numbers of the low-resolution tower (a ``CLIPVisionConfig``), by the last part of its name.
CLIP_TOWERS: dict[str, dict[str, Any]] = {
    "clip-vit-large-patch14-336": {
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
        "image_size": 336, "patch_size": 14, "projection_dim": 768, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
    },
}  # fmt: skip

#: Numbers of the high-resolution tower (a ``ConvNextConfig``), by the last part of its name.
CONVNEXT_TOWERS: dict[str, dict[str, Any]] = {
    "openclip-convnext-large-d-320-laion2B-s29B-b131K-ft-soup": {
        "hidden_sizes": [192, 384, 768, 1536], "depths": [3, 3, 27, 3], "hidden_act": "gelu",
    },
}  # fmt: skip

#: ``model_type`` of the repository -> of its language model; the older names are those of earlier uploads.
LANGUAGE_MODELS = {"mgm": "llama", "mgm_gemma": "gemma", "mini_gemini": "llama", "mini_gemini_gemma": "gemma"}

# Published entries that fix how pictures are read, and the only values that are built here.
_FIXED = {
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_feature": "patch",
    "image_aspect_ratio": "pad",
    "mm_use_im_start_end": False,
}


def mgm_config(published: Mapping[str, Any], name: str) -> Any:
    """A ``LlavaConfig`` with what `flmm_plugin.backbones.mgm.model` needs beside it.

    Args:
        published: Content of the repository's ``config.json``.
        name: The repository as the user called it.

    Returns:
        The configuration, with ``aux_config`` (numbers of the ConvNeXt), ``image_size_aux`` (its input side),
        ``image_grid`` (tiles per side) and ``image_global`` (whether the whole picture is shown beside the tiles).
        ``image_token_index`` is one past the vocabulary.

    Raises:
        BackboneUnsupported: A tower or an option that is not built here.
    """
    from transformers import AutoConfig, CLIPVisionConfig, LlavaConfig

    for entry, expected in _FIXED.items():
        if published.get(entry, expected) != expected:
            raise BackboneUnsupported(f"{name} has {entry}={published[entry]!r}; only {expected!r} is known of MGM")
    kind = LANGUAGE_MODELS[str(published["model_type"])]
    text = {key: value for key, value in published.items() if not key.startswith(("mm_", "image_"))}
    for entry in ("model_type", "architectures", "auto_map", "transformers_version", "_name_or_path"):
        text.pop(entry, None)
    text_config = AutoConfig.for_model(kind, **text)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**_tower(published, "mm_vision_tower", CLIP_TOWERS, name)),
        text_config=text_config,
        image_token_index=text_config.vocab_size,
        vision_feature_layer=int(published.get("mm_vision_select_layer", -2)),
        tie_word_embeddings=bool(text_config.tie_word_embeddings),
    )
    config.aux_config = _tower(published, "mm_vision_tower_aux", CONVNEXT_TOWERS, name)
    config.image_size_aux = int(published["image_size_aux"])
    config.image_grid = int(published.get("image_grid", 1))
    config.image_global = bool(published.get("image_global", False))
    config.dtype = text_config.dtype
    _check_sizes(config, name)
    return config


def _tower(published: Mapping[str, Any], entry: str, known: Mapping[str, dict[str, Any]], name: str) -> dict[str, Any]:
    """Numbers of a tower by the last part of its name: the rest is a folder of whoever trained the model."""
    tower = PurePosixPath(str(published.get(entry))).name
    if tower not in known:
        raise BackboneUnsupported(f"{name} has the {entry} {tower!r}; known: {', '.join(known)}")
    return known[tower]


def _check_sizes(config: Any, name: str) -> None:
    """Every CLIP patch must hold a whole square of ConvNeXt cells (stride 4), in every tile."""
    patches = config.vision_config.image_size // config.vision_config.patch_size
    cells = config.image_size_aux // 4
    if cells % (patches * config.image_grid):
        raise BackboneUnsupported(
            f"{name} has image_size_aux={config.image_size_aux}, which is not a multiple of 4 * {patches} patches * "
            f"{config.image_grid} tiles; restore its config.json"
        )
