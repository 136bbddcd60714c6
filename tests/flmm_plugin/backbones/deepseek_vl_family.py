"""DeepSeek-VL for the conformance suite: one encoder (1.3B) and two (7B)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .families import Family, clip_numbers, save, shown_in_one_view, template, text_numbers, tokenizer


def save_deepseek_vl(folder: Path) -> None:
    from transformers import DeepseekVLConfig, DeepseekVLImageProcessor, DeepseekVLProcessor, LlamaConfig
    from transformers import DeepseekVLForConditionalGeneration as DeepseekVL

    tokens = tokenizer(image_token="<image_placeholder>")
    config = DeepseekVLConfig(
        vision_config=deepseek_siglip(), text_config=LlamaConfig(**text_numbers(len(tokens))),
        image_token_id=tokens.image_token_id, tie_word_embeddings=False,
    )  # fmt: skip
    pictures = DeepseekVLImageProcessor(size=square(168), image_mean=[0.5] * 3, image_std=[0.5] * 3)
    chat = template("<image_placeholder>")
    save(
        folder,
        lambda: DeepseekVL(config),
        DeepseekVLProcessor(pictures, tokens, chat_template=chat, num_image_tokens=144),
    )


def save_deepseek_vl_hybrid(folder: Path) -> None:
    from transformers import DeepseekVLHybridConfig, DeepseekVLHybridImageProcessor, LlamaConfig, SamVisionConfig
    from transformers import DeepseekVLHybridForConditionalGeneration as DeepseekVL
    from transformers import DeepseekVLHybridProcessor as Processor

    tokens = tokenizer(image_token="<image_placeholder>")
    sam = SamVisionConfig(
        hidden_size=16, output_channels=8, num_hidden_layers=2, num_attention_heads=2, image_size=192, patch_size=16,
        global_attn_indexes=[1], window_size=4, mlp_dim=32, num_pos_feats=8,
    )  # fmt: skip
    config = DeepseekVLHybridConfig(
        vision_config=deepseek_siglip(), high_res_vision_config=sam, image_token_id=tokens.image_token_id,
        text_config=LlamaConfig(**text_numbers(len(tokens))), tie_word_embeddings=False,
    )  # fmt: skip
    pictures = DeepseekVLHybridImageProcessor(size=square(168), high_res_size=square(192))
    chat = template("<image_placeholder>")
    save(folder, lambda: DeepseekVL(config), Processor(pictures, tokens, chat_template=chat, num_image_tokens=144))


def deepseek_siglip() -> Any:
    """12 x 12 patches: of a wide picture padded to a square, 4 x 4 would leave less than one row."""
    from transformers import SiglipVisionConfig

    return SiglipVisionConfig(**clip_numbers(image_size=168, vision_use_head=False))


def square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


FAMILIES = {
    "deepseek_vl": Family(save_deepseek_vl, shown_in_one_view, "deepseek_vl", paper=True),
    "deepseek_vl_hybrid": Family(save_deepseek_vl_hybrid, shown_in_one_view, "deepseek_vl_hybrid", paper=True),
}
