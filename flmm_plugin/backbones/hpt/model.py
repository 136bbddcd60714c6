"""HPT: a CLIP or SigLIP tower at another working size, its projector, and a language model of the Llama kind.

Each part has a folder of its own in the published repositories and is loaded by itself; here they are put together
under LLaVA's text side.

Shapes: p pictures, k patches, d hidden size of the language model.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlavaConfig, LlavaForConditionalGeneration
from transformers.models.llava.modeling_llava import LlavaModel

from flmm_plugin.backbones.llava_like import LlavaLike

#: Stored input side and patch of a tower -> the side that HPT works at: Air's CLIP, Air-1.5's SigLIP.
WORKING_SIZES = {(336, 14): 392, (384, 14): 448}

#: The tower's layer whose output goes to the projector.
FEATURE_LAYER = -2


class HPTForConditionalGeneration(LlavaLike):
    """The parts of a published repository, put together.

    Args:
        language_model: A causal language model: its body and head are taken over.
        tower: A vision tower at its working size.
        projector: The tower's patches to tokens of the language model.
    """

    def __init__(self, language_model: Any, tower: Any, projector: nn.Module) -> None:
        # Copies: what is built from them sets attention kernels in them, and those of the parts must stay.
        make: Any = LlavaConfig
        config = make(
            vision_config=copy.deepcopy(tower.config),
            text_config=copy.deepcopy(language_model.config),
            image_token_index=language_model.config.vocab_size,
            vision_feature_layer=FEATURE_LAYER,
            tie_word_embeddings=bool(language_model.config.tie_word_embeddings),
            attn_implementation=language_model.config._attn_implementation,
        )
        # What is built here holds no memory; the parts that have weights take its place.
        with torch.device("meta"):
            super(LlavaForConditionalGeneration, self).__init__(config)
            self._rebuilt(LlavaModel(config))
            cast("Any", self).post_init()
        self.model.language_model = language_model.model
        self.lm_head = language_model.lm_head
        self.model.vision_tower, self.model.multi_modal_projector = tower, projector
        self.config.text_config, self.config.vision_config = language_model.config, tower.config
        self.generation_config = language_model.generation_config
        if hasattr(language_model, "hf_device_map"):
            self.hf_device_map = language_model.hf_device_map

    def picture_features(self, pixel_values: Tensor, high_res_pixel_values: Tensor | None = None) -> Tensor:
        """Features of each picture, ``[p, k, d]``, from ``pixel_values [p, 3, s, s]``."""
        out = self.model.vision_tower(pixel_values, output_hidden_states=True, return_dict=True)
        vision: Any = self.config.vision_config
        side = pixel_values.shape[-1] // int(vision.patch_size)
        # A class token, where the tower has one, comes before the patches.
        patches = out.hidden_states[FEATURE_LAYER][:, -side * side :]
        return cast("Tensor", self.model.multi_modal_projector(patches))


def resize_tower(tower: Any, side: int) -> None:
    """Let a tower take pictures of another size: its table of positions is interpolated once (bicubic).

    Args:
        tower: A ``CLIPVisionModel`` or ``SiglipVisionModel``, weights loaded; changed in place.
        side: New side of the square input, in pixels.
    """
    embeddings = next(module for module in tower.modules() if hasattr(module, "position_embedding"))
    patch = int(tower.config.patch_size)
    old, new = int(tower.config.image_size) // patch, side // patch
    table = embeddings.position_embedding.weight.detach()
    extra, cells = table[: len(table) - old * old], table[len(table) - old * old :]
    square = cells.float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(square, size=(new, new), mode="bicubic", align_corners=False)
    larger = torch.cat([extra, resized.flatten(2)[0].T.to(table.dtype)])
    embeddings.position_embedding = nn.Embedding(len(larger), larger.shape[1], _weight=larger)
    embeddings.position_ids = torch.arange(len(larger), device=table.device)[None]
    embeddings.num_patches, embeddings.num_positions = new * new, len(larger)
    embeddings.image_size = tower.config.image_size = side
