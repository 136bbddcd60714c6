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
    from flmm_plugin.errors import FlmmError as FlmmError
    from flmm_plugin.grounded_lmm import GroundedLMM as GroundedLMM
    from flmm_plugin.records import ChatAnswer as ChatAnswer
    from flmm_plugin.records import GroundedAnswer as GroundedAnswer
    from flmm_plugin.records import Grounding as Grounding
    from flmm_plugin.records import decode_rle as decode_rle
    from flmm_plugin.records import encode_rle as encode_rle
    from flmm_plugin.records import masks_json as masks_json
    from flmm_plugin.records import parse_masks_json as parse_masks_json

_HOME = {
    "FlmmError": "errors",
    "GroundedLMM": "grounded_lmm",
    "ChatAnswer": "records",
    "GroundedAnswer": "records",
    "Grounding": "records",
    "decode_rle": "records",
    "encode_rle": "records",
    "masks_json": "records",
    "parse_masks_json": "records",
}

__all__ = [
    "ChatAnswer",
    "FlmmError",
    "GroundedAnswer",
    "GroundedLMM",
    "Grounding",
    "__version__",
    "decode_rle",
    "encode_rle",
    "masks_json",
    "parse_masks_json",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
