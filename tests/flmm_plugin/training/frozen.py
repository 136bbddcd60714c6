"""A tiny frozen model with a refiner, and samples for it; used by several test files."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from flmm_plugin.grounded_lmm import GroundedLMM
from flmm_plugin.heads import GroundingHeads, HeadsManifest
from flmm_plugin.images import open_image
from flmm_plugin.training.samples import TrainingSample

SMALL_SAM = {
    "image_size": 32, "patch_size": 4, "encoder_dim": 16, "depth": 1, "heads": 2, "prompt_dim": 16,
    "decoder_mlp_dim": 16, "decoder_heads": 2,
}  # fmt: skip


def frozen_lmm(backbone: Any, **changes: Any) -> GroundedLMM:
    """A backbone of conftest's shape with fresh heads."""
    torch.manual_seed(0)
    facts: dict[str, Any] = {
        "backbone": "mha", "layers": 3, "heads": 4, "hidden_size": 64, "sam": SMALL_SAM, "separator": ";",
        "decoder": {"base_channels": 4, "upsample_to": 16}, "keyword_selector": True,
    }  # fmt: skip
    own = copy.copy(backbone)
    own.name = "somewhere/mha"
    return GroundedLMM(own, GroundingHeads.build(HeadsManifest(**{**facts, **changes})).eval())


class Samples:
    """Makes samples about pictures of noise in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def picture(self, number: int, width: int = 60, height: int = 40) -> Path:
        path = self.folder / f"{number}.png"
        if not path.exists():
            pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
        return path

    def narrative(self, number: int = 0, **changes: Any) -> TrainingSample:
        facts: dict[str, Any] = {
            "pieces": ("There is", " a man", " near", " the big table", "."), "grounded": (1, 3), "separator": None,
            "keywords": True,
        }  # fmt: skip
        return self._sample(f"png/train/{number}", number, **{**facts, **changes})

    def expressions(self, number: int = 0, **changes: Any) -> TrainingSample:
        facts: dict[str, Any] = {
            "pieces": ("a brown horse", "; ", "the red sofa", ";"), "grounded": (0, 2), "separator": ";",
            "keywords": False,
        }  # fmt: skip
        return self._sample(f"refcoco/train/{number}", number, **{**facts, **changes})

    def question(self, number: int = 0, **changes: Any) -> TrainingSample:
        facts: dict[str, Any] = {
            "pieces": ("What color is ", "the big table", "?"), "grounded": (1,), "keywords": False,
            "prompt": "What color is the big table?", "in_question": True,
        }  # fmt: skip
        return self._sample(f"refcoco/train/question/{number}/0", number, **{**facts, **changes})

    def _sample(self, key: str, number: int, **facts: Any) -> TrainingSample:
        path = self.picture(number)
        count = len(facts["grounded"])
        defaults: dict[str, Any] = {
            "image_path": path,
            "image_loader": lambda: open_image(path),
            "prompt": "What is in the image?",
            "mask_loader": lambda: [np.ones((40, 60), dtype=bool)] * count,
        }
        return TrainingSample(key=key, **{**defaults, **facts})
