"""Tiny random instances of every family's real classes and real processor, for the conformance tests.

A family of the suite is a `Family`: how to save one to a folder, as any checkpoint is, and what its image tokens were
shown. `test_conformance.py` does the rest with `load_backbone(folder)`. A new one is an entry in `FAMILIES`; one that
needs much code of its own gets a file beside this one and is added here.

Sizes: 2 layers x 4 heads, hidden size 32, views of 4 x 4 tokens; all of them together build in seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Shown = Callable[[Any, Mapping[str, Tensor]], Tensor]


def views_then_layers(views: int, layers: int, heads: int) -> list[tuple[int, int, int]]:
    """All maps of the coarse view, then all of the fine one; layer by layer, head by head."""
    return [(view, layer, head) for view in range(views) for layer in range(layers) for head in range(heads)]


@dataclass(frozen=True)
class Family:
    """One column of the conformance table.

    Attributes:
        save: Writes config, weights, processor, tokenizer and chat template into a folder.
        shown: ``shown(backbone, inputs) -> [placeholders]``: the mean of the red channel (normalised, as the model
            gets it) over the input pixels behind every image placeholder of the batch, chat by chat in the order of
            the sequence; NaN for placeholders that show nothing (newlines). Built on the model's own packing, so that
            it is an opinion of its own about where things are.
        model_type: What the saved config says, and what `Backbone.family` must be.
        maps_per_image: What `BackboneFacts` must say.
        options: Further arguments of `load_backbone`.
        paper: Whether the paper grounded it, so that ``preprocessing="paper"`` is accepted.
        native: Whether transformers' own auto class loads the folder.
        map_order: (view, layer, head) of every channel of the attention maps, for so many of each.
    """

    save: Callable[[Path], object]
    shown: Shown
    model_type: str
    maps_per_image: int = 1
    options: dict[str, Any] = field(default_factory=dict)
    paper: bool = False
    native: bool = True
    map_order: Callable[[int, int, int], list[tuple[int, int, int]]] = views_then_layers


# --- what image tokens were shown ----------------------------------------------------------------------------------


def shown_in_one_view(backbone: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """Families with one view per picture: the patches of ``pixel_values [pictures, 3, H, W]`` in raster order."""
    patch = int(backbone.model.config.vision_config.patch_size)
    return F.avg_pool2d(inputs["pixel_values"][:, :1].float(), patch).flatten()


# --- parts ---------------------------------------------------------------------------------------------------------

_SENTENCES = [
    "USER: What is in the image? Please give me a description of the image. ASSISTANT: a man rides a brown horse.",
    "the dog and the cat sit on a red sofa near the window, on the left of the big blue table.",
]


def tokenizer(**special: str) -> Any:
    """Byte-level BPE with an image token: any text encodes, offsets work.

    Args:
        **special: Named special tokens, as a family's processor asks for them; ``image_token="<image>"`` by default.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    named = {"image_token": "<image>", **special}
    backend = Tokenizer(models.BPE(unk_token=None))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384, special_tokens=["<pad>", "<s>", "</s>", *named.values()], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    backend.train_from_iterator(_SENTENCES * 20, trainer)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", padding_side="left",
        extra_special_tokens=named,
    )  # fmt: skip


def template(image: str = "<image>\n") -> str:
    """A chat template; ``image`` is what it writes for a picture."""
    return (
        "{% for m in messages %}{{ m['role'].upper() }}: {% if m['content'] is string %}{{ m['content'] }}{% else %}"
        "{% for c in m['content'] %}{% if c['type'] == 'image' %}" + image + "{% else %}{{ c['text'] }}{% endif %}"
        "{% endfor %}{% endif %} {% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    )


def text_numbers(vocabulary: int, **changes: Any) -> dict[str, Any]:
    """Arguments of a decoder's config: 2 layers x 4 heads, hidden size 32."""
    return {
        "vocab_size": vocabulary, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 4096, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False,
        "initializer_range": 0.2,  # peaked attention: a wrong row shows
        **changes,
    }  # fmt: skip


def clip_numbers(**changes: Any) -> dict[str, Any]:
    """Arguments of a CLIP or SigLIP tower: 4 x 4 patches of 14 pixels, 2 layers."""
    return {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56,
        "patch_size": 14, **changes,
    }  # fmt: skip


def save(folder: Path, model: Callable[[], Any], processor: Any) -> None:
    """Build the model with fixed random weights and save both; a random model may not say the image placeholder."""
    torch.manual_seed(0)
    built = model().eval()
    built.generation_config.bad_words_ids = [[int(built.config.image_token_id)]]
    built.save_pretrained(folder)
    processor.save_pretrained(folder)


# --- LLaVA-1.5 -----------------------------------------------------------------------------------------------------


def save_llava(folder: Path) -> None:
    from transformers import CLIPImageProcessor, CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaProcessor
    from transformers import LlavaForConditionalGeneration as Llava

    tokens = tokenizer()
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**clip_numbers()), text_config=LlamaConfig(**text_numbers(len(tokens))),
        image_token_index=tokens.image_token_id, image_seq_length=16,
    )  # fmt: skip
    pictures = CLIPImageProcessor(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    processor = LlavaProcessor(
        pictures, tokens, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=template(),
    )  # fmt: skip
    save(folder, lambda: Llava(config), processor)


# --- DeepSeek-VL ---------------------------------------------------------------------------------------------------


def save_deepseek_vl(folder: Path) -> None:
    from transformers import DeepseekVLConfig, DeepseekVLImageProcessor, DeepseekVLProcessor, LlamaConfig
    from transformers import DeepseekVLForConditionalGeneration as DeepseekVL

    tokens = tokenizer(image_token="<image_placeholder>")
    config = DeepseekVLConfig(
        vision_config=deepseek_siglip(), text_config=LlamaConfig(**text_numbers(len(tokens))),
        image_token_id=tokens.image_token_id, tie_word_embeddings=False,
    )  # fmt: skip
    pictures = DeepseekVLImageProcessor(size=square(56), image_mean=[0.5] * 3, image_std=[0.5] * 3)
    chat = template("<image_placeholder>")
    save(
        folder,
        lambda: DeepseekVL(config),
        DeepseekVLProcessor(pictures, tokens, chat_template=chat, num_image_tokens=16),
    )


def save_deepseek_vl_hybrid(folder: Path) -> None:
    from transformers import DeepseekVLHybridConfig, DeepseekVLHybridImageProcessor, LlamaConfig, SamVisionConfig
    from transformers import DeepseekVLHybridForConditionalGeneration as DeepseekVL
    from transformers import DeepseekVLHybridProcessor as Processor

    tokens = tokenizer(image_token="<image_placeholder>")
    sam = SamVisionConfig(
        hidden_size=16, output_channels=8, num_hidden_layers=2, num_attention_heads=2, image_size=128, patch_size=16,
        global_attn_indexes=[1], window_size=4, mlp_dim=32, num_pos_feats=8,
    )  # fmt: skip
    config = DeepseekVLHybridConfig(
        vision_config=deepseek_siglip(), high_res_vision_config=sam, image_token_id=tokens.image_token_id,
        text_config=LlamaConfig(**text_numbers(len(tokens))), tie_word_embeddings=False,
    )  # fmt: skip
    pictures = DeepseekVLHybridImageProcessor(size=square(56), high_res_size=square(128))
    chat = template("<image_placeholder>")
    save(folder, lambda: DeepseekVL(config), Processor(pictures, tokens, chat_template=chat, num_image_tokens=16))


def deepseek_siglip() -> Any:
    from transformers import SiglipVisionConfig

    return SiglipVisionConfig(**clip_numbers(vision_use_head=False))


def square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


FAMILIES: dict[str, Family] = {
    "deepseek_vl": Family(save_deepseek_vl, shown_in_one_view, "deepseek_vl"),
    "deepseek_vl_hybrid": Family(save_deepseek_vl_hybrid, shown_in_one_view, "deepseek_vl_hybrid"),
    "llava": Family(save_llava, shown_in_one_view, "llava", paper=True),
}
