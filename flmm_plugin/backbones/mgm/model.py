"""MGM (Mini-Gemini): a CLIP view whose patches look things up in a ConvNeXt view, before a Llama or Gemma.

Built from transformers' CLIP, ConvNeXt, Llama and Gemma; what is MGM's own is the lookup (`PatchInfoMining`) and the
order of its tiles. Source: the Mini-Gemini paper (arXiv 2403.18814, section 3) and the published weights' layout.

Shapes: p pictures, v views of a picture, k patches of a view, d CLIP's hidden size, e the ConvNeXt's four stages
together, S x S the ConvNeXt's cells (stride 4).
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ConvNextConfig, ConvNextModel, LlavaForConditionalGeneration
from transformers.models.llava.modeling_llava import LlavaModel

from flmm_plugin.backbones.llava_like import LlavaLike, as_tiles, embedding_scale


class PatchInfoMining(nn.Module):
    """Each CLIP patch attends to the ConvNeXt cells that lie within it, and adds what it finds to itself.

    Args:
        low: Hidden size of CLIP's patches, d.
        high: Channels of the ConvNeXt's cells, e.
    """

    def __init__(self, low: int, high: int) -> None:
        super().__init__()
        self.query = nn.Sequential(nn.LayerNorm(low), nn.Linear(low, low))
        self.key = nn.Sequential(nn.LayerNorm(high), nn.Linear(high, low))
        self.value = nn.Sequential(nn.LayerNorm(high), nn.Linear(high, low))

    def forward(self, patches: Tensor, cells: Tensor) -> Tensor:
        """Look up the details of every patch.

        Args:
            patches: ``[v, k, d]``, raster order of a square.
            cells: ``[v, e, S, S]`` over the same square; S is a multiple of its side in patches.

        Returns:
            ``[v, k, d]``.
        """
        side = int(patches.shape[1] ** 0.5)
        # v, rows of patches, rows of cells, columns of patches, columns of cells, e
        within = cells.unflatten(2, (side, -1)).unflatten(4, (side, -1)).permute(0, 2, 4, 3, 5, 1)
        within = within.flatten(3, 4).flatten(1, 2)
        key = self.key(within).transpose(-1, -2)
        scores = self.query(patches)[:, :, None] @ (key / patches.shape[-1] ** 0.5)
        # Infinite scores of half precision must not make every weight of the patch undefined.
        found = scores.nan_to_num().softmax(dim=-1) @ self.value(within)
        return cast("Tensor", patches + found[:, :, 0])


class MGMModel(LlavaModel):
    """CLIP, ConvNeXt, lookup, projector and language model."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        aux = ConvNextConfig(**config.aux_config)
        tower = cast("Any", ConvNextModel(aux))
        # Published weights have none for it, and nothing reads its output.
        tower.layernorm = nn.Identity()
        self.aux_tower = tower
        self.mining = PatchInfoMining(config.vision_config.hidden_size, sum(config.aux_config["hidden_sizes"]))
        cast("Any", self).post_init()
        # The lookup's three parts work on one tensor; a split through it would put them on different devices.
        self._no_split_modules = {*(self._no_split_modules or ()), "PatchInfoMining"}

    def aux_features(self, pixels: Tensor) -> Tensor:
        """All four stages at the first one's resolution, ``[p, e, S, S]``."""
        state = self.aux_tower.embeddings(pixels)
        stages = []
        for stage in self.aux_tower.encoder.stages:
            state = stage(state)
            stages.append(state)
        size = stages[0].shape[-2:]
        # Interpolated in float32 whatever the precision, as it was in training.
        larger = [_bilinear(one.float(), size).to(one.dtype) for one in stages[1:]]
        return torch.cat([stages[0], *larger], dim=1)

    def clip_features(self, views: Tensor) -> Tensor:
        """Patches of each view, ``[v, k, d]``, the class token left out."""
        out = self.vision_tower(views, output_hidden_states=True, return_dict=True)
        return cast("Tensor", out.hidden_states[self.config.vision_feature_layer][:, 1:])


class MGMForConditionalGeneration(LlavaLike):
    """The published MGM-2B, MGM-7B and their HD variants."""

    def __init__(self, config: Any) -> None:
        # Past LLaVA's own constructor, which would build LLaVA's body.
        super(LlavaForConditionalGeneration, self).__init__(config)
        self._rebuilt(MGMModel(config))
        cast("Any", self).post_init()

    def picture_features(self, pixel_values: Tensor, high_res_pixel_values: Tensor | None) -> Tensor:
        """Features of each picture, ``[p, k, d]``; HD: of the whole picture, then of tile after tile.

        Args:
            pixel_values: ``[p, v, 3, s, s]``: the tiles row by row, then (``image_global``) the whole picture.
            high_res_pixel_values: ``[p, 3, 4 S, 4 S]``.
        """
        if high_res_pixel_values is None:
            raise ValueError("MGM sees a picture twice; give high_res_pixel_values beside pixel_values")
        body, per_side = self.model, int(self.config.image_grid)
        pictures, views = pixel_values.shape[:2]
        patches = body.clip_features(pixel_values.flatten(0, 1)).unflatten(0, (pictures, views))
        cells = body.aux_features(high_res_pixel_values).to(patches.device)
        tiles = patches[:, : per_side**2].flatten(0, 1)
        features = body.mining(tiles, as_tiles(cells, per_side)).reshape(pictures, -1, patches.shape[-1])
        if self.config.image_global:
            shrunk = _bilinear(cells.float(), [side // per_side for side in cells.shape[-2:]]).to(cells.dtype)
            features = torch.cat([body.mining(patches[:, -1], shrunk), features], dim=1)
        projected: Tensor = body.multi_modal_projector(features)
        scale = embedding_scale(self.get_input_embeddings())
        # In the precision of the features, as Gemma multiplies its own.
        return projected if scale is None else projected * torch.tensor(scale, dtype=projected.dtype)


def key_mapping() -> dict[str, str]:
    """Published tensor names -> names in `MGMForConditionalGeneration`, as ``from_pretrained`` takes them."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    with torch.device("meta"):
        probe = CLIPVisionModel(CLIPVisionConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1))
    # Versions of transformers differ in whether CLIP's towers have this level.
    clip = "model.vision_tower." + ("vision_model." if hasattr(probe, "vision_model") else "")
    # Applied one after another, each to what the one before made of the name; at most one group in each.
    aux, stages = "model.aux_tower.", r"^(model\.aux_tower\.encoder\.stages\.\d+\.)"
    layers = r"^(model\.aux_tower\.encoder\.stages\.\d+\.layers\.\d+\.)"
    names = {
        r"^model\.(embed_tokens|layers|norm)\.": r"model.language_model.\1.",
        r"^model\.mm_projector\.0\.": "model.multi_modal_projector.linear_1.",
        r"^model\.mm_projector\.2\.": "model.multi_modal_projector.linear_2.",
        r"^model\.vlm_uni_query_projector\.": "model.mining.query.",
        r"^model\.vlm_uni_aux_projector\.": "model.mining.key.",
        r"^model\.vlm_uni_val_projector\.": "model.mining.value.",
        r"^model\.vision_tower\.vision_tower\.vision_model\.": clip,
        r"^model\.vision_tower_aux\.vision_stem\.0\.": aux + "embeddings.patch_embeddings.",
        r"^model\.vision_tower_aux\.vision_stem\.1\.": aux + "embeddings.layernorm.",
        r"^model\.vision_tower_aux\.vision_stages\.": aux + "encoder.stages.",
        stages + r"downsample\.": r"\1downsampling_layer.",
        stages + r"blocks\.": r"\1layers.",
        layers + r"conv_dw\.": r"\1dwconv.",
        layers + r"norm\.": r"\1layernorm.",
        layers + r"mlp\.fc1\.": r"\1pwconv1.",
        layers + r"mlp\.fc2\.": r"\1pwconv2.",
        layers + r"gamma$": r"\1layer_scale_parameter",
    }
    return names


def _bilinear(maps: Tensor, size: Any) -> Tensor:
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)
