"""Tiny MGM repositories, written as the published ones are: shards under the names of the original parts.

CLIP, Llama and Gemma are those of transformers, the ConvNeXt is written here with timm's names (a slow test holds it
against timm, whose import alone takes seconds), the rest is plain ``nn.Sequential``. Nothing here knows how
`flmm_plugin` names or computes anything.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from flmm_plugin.backbones.mgm import config as mgm_config

from .families import Family, clip_numbers, text_numbers, tokenizer

#: 12 x 12 patches: of a wide picture padded to a square, 4 x 4 would leave less than one row.
mgm_config.CLIP_TOWERS["tiny-clip"] = clip_numbers(image_size=168, projection_dim=8)
mgm_config.CONVNEXT_TOWERS["tiny-convnext"] = {"hidden_sizes": [4, 8, 12, 16], "depths": [1, 1, 2, 1]}


class LayerNorm2d(nn.LayerNorm):
    """Over the channels of ``[b, c, h, w]``."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Block(nn.Module):
    """A ConvNeXt block (arXiv 2201.03545, figure 4), under timm's names."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(size, size, 7, padding=3, groups=size)
        self.norm = nn.LayerNorm(size, eps=1e-6)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(size, 4 * size), "fc2": nn.Linear(4 * size, size)})
        # Large enough that every block counts.
        self.gamma = nn.Parameter(torch.full((size,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm(self.conv_dw(x).permute(0, 2, 3, 1))
        inner = self.mlp["fc2"](F.gelu(self.mlp["fc1"](inner)))
        return x + (inner * self.gamma).permute(0, 3, 1, 2)


class Stage(nn.Module):
    def __init__(self, before: int, size: int, depth: int) -> None:
        super().__init__()
        halve = nn.Sequential(LayerNorm2d(before, eps=1e-6), nn.Conv2d(before, size, 2, stride=2))
        self.downsample = nn.Identity() if before == size else halve
        self.blocks = nn.Sequential(*(Block(size) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.downsample(x))


class ConvNeXt(nn.Module):
    """Stem and stages; the authors leave the head out."""

    def __init__(self, depths: list[int], sizes: list[int]) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, sizes[0], 4, stride=4), LayerNorm2d(sizes[0], eps=1e-6))
        before = [sizes[0], *sizes[:-1]]
        self.stages = nn.Sequential(*map(Stage, before, sizes, depths))


@dataclass(frozen=True)
class Parts:
    """The modules of one repository, as the authors put them together."""

    language_model: nn.Module
    clip: nn.Module
    convnext: nn.Module
    projector: nn.Module
    query: nn.Module
    key: nn.Module
    value: nn.Module

    @classmethod
    def build(cls, gemma: bool, vocabulary: int) -> Parts:
        from transformers import (
            CLIPVisionConfig,
            CLIPVisionModel,
            GemmaConfig,
            GemmaForCausalLM,
            LlamaConfig,
            LlamaForCausalLM,
        )

        torch.manual_seed(0)
        numbers = text_numbers(vocabulary, num_key_value_heads=1 if gemma else 4)
        if gemma:
            language_model: nn.Module = GemmaForCausalLM(GemmaConfig(**numbers, head_dim=16))
        else:
            language_model = LlamaForCausalLM(LlamaConfig(**numbers))
        sizes, depths = (mgm_config.CONVNEXT_TOWERS["tiny-convnext"][name] for name in ("hidden_sizes", "depths"))
        wide, low, hidden = sum(sizes), 16, int(numbers["hidden_size"])
        parts = cls(
            language_model,
            CLIPVisionModel(CLIPVisionConfig(**mgm_config.CLIP_TOWERS["tiny-clip"])),
            ConvNeXt(depths, sizes),
            nn.Sequential(nn.Linear(low, hidden), nn.GELU(), nn.Linear(hidden, hidden)),
            nn.Sequential(nn.LayerNorm(low), nn.Linear(low, low)),
            nn.Sequential(nn.LayerNorm(wide), nn.Linear(wide, low)),
            nn.Sequential(nn.LayerNorm(wide), nn.Linear(wide, low)),
        )
        for module in (parts.query, parts.key, parts.value, parts.projector):
            for parameter in module.parameters():
                nn.init.normal_(parameter, std=0.5)
        for module in vars(parts).values():
            module.eval().requires_grad_(False)
        return parts

    def published(self) -> dict[str, Tensor]:
        """All tensors under the names of the published shards."""
        named: dict[str, Tensor] = dict(self.language_model.state_dict())
        for key, value in self.clip.state_dict().items():
            named["model.vision_tower.vision_tower.vision_model." + key.removeprefix("vision_model.")] = value
        named |= {f"model.vision_tower_aux.vision_{key}": value for key, value in self.convnext.state_dict().items()}
        parts = {"vlm_uni_query": self.query, "vlm_uni_aux": self.key, "vlm_uni_val": self.value, "mm": self.projector}
        for prefix, module in parts.items():
            named |= {f"model.{prefix}_projector.{key}": value for key, value in module.state_dict().items()}
        return {key: value.contiguous().clone() for key, value in named.items()}


def save_mgm(folder: Path, *, gemma: bool = False, hd: bool = False) -> Parts:
    """Write the repository: two shards with their index, config, generation config, tokenizer; no processor."""
    # A tokenizer that knows no <image>, as MGM's.
    tokens = tokenizer(image_token="<unused>")
    parts = Parts.build(gemma, len(tokens))
    tensors = parts.published()
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for shard, keys in shards.items():
        save_file({key: tensors[key] for key in keys}, folder / shard, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {key: shard for shard, keys in shards.items() for key in keys}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {
        **json.loads(parts.language_model.config.to_json_string()),
        "model_type": "mgm_gemma" if gemma else "mgm",
        "architectures": ["MGMGemmaForCausalLM" if gemma else "MGMLlamaForCausalLM"],
        "mm_vision_tower": "model_zoo/OpenAI/tiny-clip", "mm_vision_tower_aux": "model_zoo/OpenAI/tiny-convnext",
        "mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": -2, "mm_vision_select_feature": "patch",
        "mm_hidden_size": 16, "mm_hidden_size_aux": 40, "image_aspect_ratio": "pad", "mm_use_im_start_end": False,
        "image_size_aux": 192 if hd else 96, "image_grid": 2 if hd else 1, "image_global": hd,
        "tokenizer_padding_side": "right", "torch_dtype": "float32",
    }  # fmt: skip
    config.pop("dtype", None)
    (folder / "config.json").write_text(json.dumps(config))
    parts.language_model.generation_config.save_pretrained(folder)
    tokens.save_pretrained(folder)
    return parts


def shown(backbone: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """HD's sequence is the whole picture (the last view), then the tiles; otherwise there is one view."""
    red = inputs["pixel_values"][:, :, 0].float()
    if red.shape[1] > 1:
        red = red.roll(1, dims=1)
    return F.avg_pool2d(red, 14).flatten()


def layer_by_layer(views: int, layers: int, heads: int) -> list[tuple[int, int, int]]:
    return [(view, layer, head) for layer in range(layers) for view in range(views) for head in range(heads)]


# Two interpolations, one without smoothing, between the picture and CLIP's patches.
_common: dict[str, Any] = {"paper": True, "native": False, "blur": 0.12}
FAMILIES = {
    "mgm_llama": Family(save_mgm, shown, "mgm", **_common),
    "mgm_gemma": Family(partial(save_mgm, gemma=True), shown, "mgm", **_common),
    "mgm_hd": Family(partial(save_mgm, hd=True), shown, "mgm", 2, map_order=layer_by_layer, **_common),
}
