"""The frozen side of a training run: the LMM with heads for it, and what is sealed.

The heads that learn are a copy without SAM's image encoder: what accelerate wraps, distributes and saves holds nothing
that is frozen.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from flmm_plugin.backbones import load_backbone
from flmm_plugin.backbones.base import Backbone
from flmm_plugin.grounded_lmm import GroundedLMM
from flmm_plugin.heads import GroundingHeads
from flmm_plugin.seal import FrozenSeal
from flmm_plugin.training.building import build_heads
from flmm_plugin.training.recipe import TrainRecipe


def load_lmm(recipe: TrainRecipe, device: str, backbone: Backbone | None = None, data: str = "") -> GroundedLMM:
    """The frozen model of a recipe, with fresh heads.

    Args:
        recipe: Says which.
        device: Where to.
        backbone: Loaded already.
        data: What the heads will be trained on.
    """
    asked = recipe.backbone
    if backbone is None:
        backbone = load_backbone(
            asked.pretrained,
            revision=asked.revision,
            dtype=asked.dtype,
            device=None if asked.device_map else device,
            device_map=asked.device_map,
            attn_implementation=asked.attn_implementation,
            load_in_4bit=asked.load_in_4bit,
            load_in_8bit=asked.load_in_8bit,
            trust_remote_code=asked.trust_remote_code,
        )
    if recipe.control == "random":
        draw_weights(backbone)
    return GroundedLMM(backbone, build_heads(recipe, backbone, data).to(device).eval())


@torch.no_grad()
def draw_weights(backbone: Backbone, seed: int = 12345) -> Backbone:
    """Give a model the weights that its architecture is born with: the control ``random``. Returns ``backbone``."""
    model = backbone.model
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        fresh = type(model)(model.config)
    model.load_state_dict(fresh.state_dict())
    return backbone


class _Elsewhere(nn.Module):
    """Stands for SAM's frozen image encoder in the heads that are trained, which get embeddings instead of pictures."""

    def __init__(self, img_size: int) -> None:
        super().__init__()
        self.img_size = img_size


def without_encoder(heads: GroundingHeads) -> GroundingHeads:
    """A copy of the heads that shares nothing with them and has no image encoder."""
    if heads.mask_refiner is None:
        return copy.deepcopy(heads)
    sam = heads.mask_refiner.sam
    encoder = sam.image_encoder
    heads.mask_refiner.clear_cache()
    sam.image_encoder = _Elsewhere(int(encoder.img_size))
    try:
        return copy.deepcopy(heads)
    finally:
        sam.image_encoder = encoder


def seals_of(lmm: GroundedLMM) -> list[FrozenSeal]:
    """Seals of all that must not change: the LMM, and SAM's image encoder where there is one."""
    heads = lmm.heads
    if heads is None or heads.mask_refiner is None:
        return [lmm.seal]
    return [lmm.seal, FrozenSeal(heads.mask_refiner.sam.image_encoder)]
