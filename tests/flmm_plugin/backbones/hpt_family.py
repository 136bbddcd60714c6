"""Tiny HPT repositories: three folders, with a stand-in for the projector saved as remote code.

The stand-in is not HPT's projector, whose code is in its repository alone. It has the same interface, and it asks of
transformers what code of that age (BLIP-2's Q-Former) does: names that version 5 lacks, ``init_weights`` at the end of
the constructor, and methods that models once had.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from flmm_plugin.backbones.hpt import model as hpt_model

from .families import Family, clip_numbers, shown_in_one_view, text_numbers, tokenizer

#: 3 x 3 stored patches that work as 8 x 8.
hpt_model.WORKING_SIZES[(42, 14)] = 112

CONFIGURATION = """
from transformers import PretrainedConfig


class HformerConfig(PretrainedConfig):
    model_type = "hformer"

    def __init__(self, visual_hidden_size=16, llm_hidden_size=32, **kwargs):
        self.visual_hidden_size = visual_hidden_size
        self.llm_hidden_size = llm_hidden_size
        super().__init__(**kwargs)
"""

MODELING = """
import torch
from torch import nn
from transformers.modeling_utils import (
    PreTrainedModel,
    apply_chunking_to_forward,
    find_pruneable_heads_and_indices,
    prune_linear_layer,
)

from .configuration_hformer import HformerConfig
from .parts import Inner


class HformerModel(PreTrainedModel):
    config_class = HformerConfig

    def __init__(self, config):
        super().__init__(config)
        self.inner = Inner(config)
        self.linear = nn.Linear(config.visual_hidden_size, config.llm_hidden_size)
        self.init_weights()

    def _init_weights(self, module):
        pass

    def forward(self, x):
        mask = self.invert_attention_mask(torch.ones(x.shape[:2], device=x.device))
        assert mask.shape == (len(x), 1, 1, x.shape[1]) and not mask.any()
        assert self.get_head_mask(None, 3) == [None] * 3
        return self.linear(x + self.inner(x))
"""

PARTS = """
from torch import nn


class Inner(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.attention = nn.MultiheadAttention(config.visual_hidden_size, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x)[0]
"""


def save_hpt(folder: Path, *, siglip: bool = False) -> None:
    """Write ``llm/``, ``visual_encoder/`` and ``projector/``, and the empty config.json of the published HPT-Air."""
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        CLIPVisionModel,
        LlamaConfig,
        LlamaForCausalLM,
        SiglipImageProcessor,
        SiglipVisionConfig,
        SiglipVisionModel,
    )

    # A tokenizer that knows no <image>, as HPT's, and the token that ends a turn.
    tokens = tokenizer(image_token="<unused>", turn="<|eot_id|>" if siglip else "<|im_end|>")
    torch.manual_seed(0)
    llm = LlamaForCausalLM(LlamaConfig(**text_numbers(len(tokens), num_key_value_heads=2)))
    llm.save_pretrained(folder / "llm")
    tokens.save_pretrained(folder / "llm")
    numbers, square = clip_numbers(image_size=42), {"height": 42, "width": 42}
    pictures: Any
    if siglip:
        tower: Any = SiglipVisionModel(SiglipVisionConfig(**numbers, vision_use_head=False))
        pictures = SiglipImageProcessor(size=square)
    else:
        tower = CLIPVisionModel(CLIPVisionConfig(**numbers, projection_dim=8))
        pictures = CLIPImageProcessor(size={"shortest_edge": 42}, crop_size=square)
    tower.save_pretrained(folder / "visual_encoder")
    pictures.save_pretrained(folder / "visual_encoder")
    save_projector(folder / "projector")
    if not siglip:
        (folder / "config.json").write_bytes(b"")


def save_projector(folder: Path, *, visual_size: int = 16, hidden_size: int = 32) -> None:
    """The stand-in: code, configuration and weights."""
    folder.mkdir(exist_ok=True)
    (folder / "configuration_hformer.py").write_text(CONFIGURATION)
    (folder / "modeling_hformer.py").write_text(MODELING)
    (folder / "parts.py").write_text(PARTS)
    config = {
        "model_type": "hformer", "visual_hidden_size": visual_size, "llm_hidden_size": hidden_size,
        "auto_map": {"AutoConfig": "configuration_hformer.HformerConfig", "AutoModel": "modeling_hformer.HformerModel"},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(1)
    attention = torch.nn.MultiheadAttention(visual_size, 2, batch_first=True)
    linear = torch.nn.Linear(visual_size, hidden_size)
    tensors = {f"inner.attention.{key}": value for key, value in attention.state_dict().items()}
    tensors |= {f"linear.{key}": value for key, value in linear.state_dict().items()}
    save_file(tensors, folder / "model.safetensors")


TRUSTED = {"trust_remote_code": True}
FAMILIES = {
    "hpt_clip": Family(save_hpt, shown_in_one_view, "hpt", options=TRUSTED, paper=True, native=False),
    "hpt_siglip": Family(
        partial(save_hpt, siglip=True), shown_in_one_view, "hpt", options=TRUSTED, paper=True, native=False
    ),
}
