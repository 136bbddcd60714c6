"""A processor held against its model's configuration: what it leaves open is completed, what contradicts is named.

Files of older checkpoints lack fields that transformers now needs, or hold null: LLaVA's ``patch_size``,
``vision_feature_select_strategy`` and ``num_additional_image_tokens``, for instance, of which earlier versions of
transformers took the model's own. Only what is missing is filled in: whatever the stock processor works with stays.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

# Steps of an image processor, and the fields without which it does not take them.
_NEEDED = {
    "do_resize": ("size", "resample"),
    "do_center_crop": ("crop_size",),
    "do_rescale": ("rescale_factor",),
    "do_normalize": ("image_mean", "image_std"),
}


def complete_processor(processor: Any, config: Any) -> None:
    """Fill in, in place, what a processor's files leave open and its model's configuration or tokenizer says."""
    if not getattr(processor, "chat_template", None):
        processor.chat_template = getattr(getattr(processor, "tokenizer", None), "chat_template", None)
    for owner, name, value in _fields(processor, config):
        if getattr(owner, name) is None and value is not None:
            setattr(owner, name, value)
    if hasattr(processor, "num_additional_image_tokens") and not processor.num_additional_image_tokens:
        # 0 is what the class takes where the file says nothing: right only if the counts then agree.
        kept = _kept_tokens(config)
        dropped = processor.vision_feature_select_strategy == "default"
        processor.num_additional_image_tokens = 0 if kept is None else max(0, kept + dropped)


def contradictions(processor: Any, config: Any) -> list[str]:
    """Fields in which a processor and its model's configuration differ, or that are empty, each as a short clause."""
    found = [
        f"{name} is {_plain(getattr(owner, name))}, the model's configuration says {_plain(value)}"
        for owner, name, value in _fields(processor, config)
        if value is not None and _plain(getattr(owner, name)) != _plain(value)
    ]
    kept = _kept_tokens(config)
    extra = getattr(processor, "num_additional_image_tokens", None)
    if extra is not None and kept is not None:
        dropped = getattr(processor, "vision_feature_select_strategy", None) == "default"
        if extra - dropped != kept:
            found.append(f"num_additional_image_tokens is {extra}, the model's configuration needs {kept + dropped}")
    pictures = getattr(processor, "image_processor", None)
    for step, needed in _NEEDED.items():
        on = getattr(pictures, step, False)
        empty = [step] if on is None else [name for name in needed if on and getattr(pictures, name, 0) is None]
        found += [f"{name} is empty" for name in empty]
    side = getattr(getattr(config, "vision_config", None), "image_size", None)
    for name in ("size", "crop_size"):
        sides = {value for value in dict(getattr(pictures, name, None) or {}).values() if value is not None}
        if isinstance(side, int) and sides and sides != {side}:
            found.append(f"{name} is {_plain(sides)}, the vision tower takes {side}")
    return found


def _fields(processor: Any, config: Any) -> Iterator[tuple[Any, str, Any]]:
    """Owner and name of each field that the configuration also knows, and what that says (None: nothing)."""
    vision = getattr(config, "vision_config", None)
    pictures = getattr(processor, "image_processor", None)
    patch, side = _one(getattr(vision, "patch_size", None)), _one(getattr(vision, "image_size", None))
    cells = (side // patch) ** 2 if patch and side else None
    tokens = getattr(config, "image_seq_length", None) or cells
    strategy = getattr(config, "vision_feature_select_strategy", None)
    for owner, name, value in (
        (processor, "patch_size", patch),
        (processor, "vision_feature_select_strategy", strategy or "default"),
        (processor, "num_image_tokens", cells),
        (processor, "image_seq_length", tokens),
        (processor, "vision_aspect_ratio", getattr(config, "vision_aspect_ratio", None)),
        (pictures, "image_grid_pinpoints", getattr(config, "image_grid_pinpoints", None)),
        (pictures, "patch_size", patch),
        (pictures, "merge_size", getattr(vision, "spatial_merge_size", None)),
        (pictures, "temporal_patch_size", getattr(vision, "temporal_patch_size", None)),
    ):
        if hasattr(owner, name):
            yield owner, name, value


def _kept_tokens(config: Any) -> int | None:
    """Tokens per view beside its patches that LLaVA's models keep of a tower; None for towers not known here."""
    tower = str(getattr(getattr(config, "vision_config", None), "model_type", ""))
    if not tower.startswith(("clip", "siglip")):
        return None
    strategy = getattr(config, "vision_feature_select_strategy", None) or "default"
    # "default" drops the first token: CLIP's class token, and a patch of towers without one.
    return tower.startswith("clip") - (strategy == "default")


def _one(value: Any) -> int | None:
    """The number of a square's side, given as a number or as a pair."""
    found = value[0] if isinstance(value, (list, tuple)) and value else value
    return found if isinstance(found, int) else None


def _plain(value: Any) -> Any:
    """As JSON has it, for comparing and for messages."""
    if isinstance(value, (list, tuple, set)):
        return [_plain(one) for one in value]
    return value
