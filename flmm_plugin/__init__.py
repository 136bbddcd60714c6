"""flmm-plugin: ground a frozen large multimodal model from its own attention, and leave its chat as it is.

    from flmm_plugin import GroundedLMM

    lmm = GroundedLMM.from_pretrained("flmm_tiny")
    for grounding in lmm.ground("scene.png", ["the small red circle"]):
        print(grounding.phrase, grounding.box, grounding.score)

Names are imported when first used: ``import flmm_plugin`` costs no torch, so harnesses may register it freely.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from flmm_plugin import errors, records
    from flmm_plugin.backbones import load_backbone
    from flmm_plugin.errors import FlmmError
    from flmm_plugin.grounded_lmm import GroundedLMM
    from flmm_plugin.grounding import AttentionMaps
    from flmm_plugin.heads import GroundingHeads, load_heads, save_heads
    from flmm_plugin.passages import GivenText, Keyword
    from flmm_plugin.records import (
        ChatAnswer,
        GroundedAnswer,
        Grounding,
        Groundings,
        MasksReply,
        decode_rle,
        encode_rle,
        masks_json,
        parse_masks_json,
    )
    from flmm_plugin.training.loop import train
    from flmm_plugin.training.recipe import TrainRecipe, read_recipe
    from flmm_plugin.visual_cot import CotQuestion, VisualCotAnswer, VisualCotOptions

# Module -> names that this package offers from it.
_NAMES = {
    "backbones": ("load_backbone",),
    "errors": ("FlmmError",),
    "grounded_lmm": ("GroundedLMM",),
    "grounding": ("AttentionMaps",),
    "heads": ("GroundingHeads", "load_heads", "save_heads"),
    "passages": ("GivenText", "Keyword"),
    "records": (
        "ChatAnswer",
        "GroundedAnswer",
        "Grounding",
        "Groundings",
        "MasksReply",
        "decode_rle",
        "encode_rle",
        "masks_json",
        "parse_masks_json",
    ),
    "training.recipe": ("TrainRecipe", "read_recipe"),
    "training.loop": ("train",),
    "visual_cot": ("CotQuestion", "VisualCotAnswer", "VisualCotOptions"),
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [
    "AttentionMaps",
    "ChatAnswer",
    "CotQuestion",
    "FlmmError",
    "GivenText",
    "GroundedAnswer",
    "GroundedLMM",
    "Grounding",
    "GroundingHeads",
    "Groundings",
    "Keyword",
    "MasksReply",
    "TrainRecipe",
    "VisualCotAnswer",
    "VisualCotOptions",
    "__version__",
    "decode_rle",
    "encode_rle",
    "errors",
    "load_backbone",
    "load_heads",
    "masks_json",
    "parse_masks_json",
    "read_recipe",
    "records",
    "save_heads",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in ("errors", "records"):
        return importlib.import_module(f"{__name__}.{name}")
    if name in _MODULE_OF:
        value = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
