"""Heads small enough to run in milliseconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from flmm_plugin.heads import GroundingHeads, HeadsManifest

SMALL_SAM: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 8,
    "encoder_dim": 16,
    "depth": 1,
    "heads": 2,
    "prompt_dim": 16,
    "decoder_mlp_dim": 16,
    "decoder_heads": 2,
    "mask_channels": 16,
}


@pytest.fixture
def small_sam() -> dict[str, Any]:
    """Numbers of a SAM with a 4 x 4 embedding grid."""
    return dict(SMALL_SAM)


@pytest.fixture
def make_manifest() -> Callable[..., HeadsManifest]:
    """Manifest of heads for 2 layers x 3 heads, any entry replaced."""

    def make(**changes: Any) -> HeadsManifest:
        return HeadsManifest(
            **{
                "backbone": "tests/tiny-lmm",
                "layers": 2,
                "heads": 3,
                "hidden_size": 8,
                "decoder": {"base_channels": 4, "upsample_to": 16},
                "sam": dict(SMALL_SAM),
                "keyword_selector": True,
                **changes,
            }
        )

    return make


@pytest.fixture
def make_heads(make_manifest: Callable[..., HeadsManifest]) -> Callable[..., GroundingHeads]:
    """Heads with weights large enough that every input visibly changes the output."""

    def make(seed: int = 0, **changes: Any) -> GroundingHeads:
        heads = GroundingHeads.build(make_manifest(**changes))
        torch.manual_seed(seed)
        for parameter in heads.parameters():
            nn.init.normal_(parameter, std=0.3)
        return heads.eval()

    return make
