"""Tiny random instances of every family's real classes and real processor, for the conformance tests.

A family of the suite is a `Family`: how to save one to a folder, as any checkpoint is, and what its image tokens were
shown. `test_conformance.py` does the rest with `load_backbone(folder)`. A new one is an entry in `FAMILIES`; one that
needs much code of its own gets a file beside this one and is added here.

Sizes: 2 layers x 4 heads, hidden size 32, views of 4 x 4 tokens; all of them together build in seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.image_processing_utils import select_best_resolution

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
        blur: How much of a cell's area the processor's resampling may smear over its rim.
        map_order: (view, layer, head) of every channel of the attention maps, for so many of each.
    """

    save: Callable[[Path], object]
    shown: Shown
    model_type: str
    maps_per_image: int = 1
    options: dict[str, Any] = field(default_factory=dict)
    paper: bool = False
    native: bool = True
    blur: float = 0.08
    map_order: Callable[[int, int, int], list[tuple[int, int, int]]] = views_then_layers


# --- what image tokens were shown ----------------------------------------------------------------------------------


def shown_in_one_view(backbone: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """Families with one view per picture: the patches of ``pixel_values [pictures, 3, H, W]`` in raster order."""
    patch = int(backbone.model.config.vision_config.patch_size)
    return F.avg_pool2d(inputs["pixel_values"][:, :1].float(), patch).flatten()


def shown_in_tiles(backbone: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """LLaVA's ``anyres``: base view and tiles, ``[pictures, views, 3, H, W]``, packed by the model."""
    config, model = backbone.model.config, backbone.model.model
    patch, side = int(config.vision_config.patch_size), int(config.vision_config.image_size)
    alone = inputs.get("batch_num_images", torch.ones(len(inputs["image_sizes"]), dtype=torch.long))
    several = [bool(count > 1) for count in alone.tolist() for _ in range(count)]
    features = []
    for views, size, one_view in zip(inputs["pixel_values"], inputs["image_sizes"], several, strict=True):
        height, width = select_best_resolution(size.tolist(), config.image_grid_pinpoints)
        used = views[:1] if one_view else views[: 1 + (height // side) * (width // side)]
        features.append(F.avg_pool2d(used[:, :1].float(), patch).flatten(1)[..., None])
    options: dict[str, Any] = {"vision_feature_select_strategy": "default"}
    if "batch_num_images" in inputs:
        options = {"vision_aspect_ratio": config.vision_aspect_ratio}
    packed, _ = model.pack_image_features(
        features, inputs["image_sizes"], image_newline=torch.tensor([float("nan")]), **options
    )
    return torch.cat(list(packed)).flatten()


def shown_in_merged_patches(backbone: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """Qwen: flat patches, those of one token next to each other."""
    processor = backbone.processor.image_processor
    red = inputs["pixel_values"].reshape(len(inputs["pixel_values"]), 3, -1)[:, 0]
    return red.float().mean(-1).reshape(-1, processor.merge_size**2).mean(-1)


def shown_after_pixel_shuffle(backbone: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """InternVL: the patches of every tile, merged by the model's own shuffle."""
    patch = int(backbone.model.config.vision_config.patch_size[0])
    patches = F.avg_pool2d(inputs["pixel_values"][:, :1].float(), patch).permute(0, 2, 3, 1)
    merged = backbone.model.model.pixel_shuffle(patches, scale_factor=backbone.model.config.downsample_ratio)
    return merged.mean(-1).flatten()


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


# --- a family that this package has no file for --------------------------------------------------------------------


def save_vipllava(folder: Path) -> None:
    """ViP-LLaVA: several layers of the tower beside each other, one view, LLaVA's processor."""
    from transformers import CLIPImageProcessor, CLIPVisionConfig, LlamaConfig, LlavaProcessor, VipLlavaConfig
    from transformers import VipLlavaForConditionalGeneration as VipLlava

    tokens = tokenizer()
    config = VipLlavaConfig(
        vision_config=CLIPVisionConfig(**clip_numbers()), text_config=LlamaConfig(**text_numbers(len(tokens))),
        image_token_index=tokens.image_token_id, image_seq_length=16, vision_feature_layers=[-2, -1],
    )  # fmt: skip
    pictures = CLIPImageProcessor(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    processor = LlavaProcessor(
        pictures, tokens, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=template(),
    )  # fmt: skip
    save(folder, lambda: VipLlava(config), processor)


# --- LLaVA-NeXT and LLaVA-OneVision --------------------------------------------------------------------------------

TILINGS = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]


def save_llava_next(folder: Path, *, mistral: bool) -> None:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextConfig, LlavaNextImageProcessor, MistralConfig
    from transformers import LlavaNextForConditionalGeneration as LlavaNext
    from transformers import LlavaNextProcessor as Processor

    tokens = tokenizer()
    numbers = text_numbers(len(tokens), num_key_value_heads=2 if mistral else 4)
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**clip_numbers()),
        text_config=MistralConfig(**numbers, sliding_window=None) if mistral else LlamaConfig(**numbers),
        image_token_index=tokens.image_token_id, image_grid_pinpoints=TILINGS,
    )  # fmt: skip
    pictures = LlavaNextImageProcessor(
        size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}, image_grid_pinpoints=TILINGS
    )
    processor = Processor(
        pictures, tokens, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=template(),
    )  # fmt: skip
    save(folder, lambda: LlavaNext(config), processor)


def save_llava_onevision(folder: Path) -> None:
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionImageProcessor,
        LlavaOnevisionProcessor,
        LlavaOnevisionVideoProcessor,
        Qwen2Config,
        SiglipVisionConfig,
    )
    from transformers import LlavaOnevisionForConditionalGeneration as Onevision

    tokens = tokenizer(video_token="<video>")
    tilings = [[56 * rows, 56 * columns] for rows in (1, 2, 3) for columns in (1, 2, 3)]
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**clip_numbers(vision_use_head=False)),
        text_config=Qwen2Config(**text_numbers(len(tokens), num_key_value_heads=2)),
        image_token_index=tokens.image_token_id, video_token_index=tokens.video_token_id,
        image_grid_pinpoints=tilings, vision_aspect_ratio="anyres_max_4",
    )  # fmt: skip
    pictures = LlavaOnevisionImageProcessor(size={"height": 56, "width": 56}, image_grid_pinpoints=tilings)
    processor = LlavaOnevisionProcessor(
        pictures, tokens, LlavaOnevisionVideoProcessor(), num_image_tokens=16, vision_feature_select_strategy="full",
        chat_template=template(), vision_aspect_ratio="anyres_max_4",
    )  # fmt: skip
    save(folder, lambda: Onevision(config), processor)


# --- Qwen-VL -------------------------------------------------------------------------------------------------------

_QWEN_TOKENS = {
    "image_token": "<|image_pad|>", "video_token": "<|video_pad|>", "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
}  # fmt: skip


def save_qwen_vl(folder: Path, version: str) -> None:
    """``version``: 2, 2_5 or 3, as in the names of the classes."""
    import transformers
    from transformers import Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    tokens = tokenizer(**_QWEN_TOKENS)
    name = {"2": "Qwen2VL", "2_5": "Qwen2_5_VL", "3": "Qwen3VL"}[version]
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
    numbers = text_numbers(len(tokens), num_key_value_heads=2, rope_parameters=rope)
    if version == "3":
        numbers["head_dim"] = 8
        vision = {"hidden_size": 32, "num_position_embeddings": 64, "deepstack_visual_indexes": [0], "patch_size": 8}
    else:
        vision = {"hidden_size": 32, "patch_size": 7}
    vision |= {"depth": 2, "num_heads": 2, "intermediate_size": 32, "out_hidden_size": 32}
    if version == "2_5":
        vision |= {"fullatt_block_indexes": [1], "window_size": 28}
    if version == "2":
        vision |= {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2}
        for unknown in ("out_hidden_size", "intermediate_size"):
            del vision[unknown]
    config = getattr(transformers, f"{name}Config")(
        text_config=numbers, vision_config=vision, image_token_id=tokens.image_token_id,
        video_token_id=tokens.video_token_id, vision_start_token_id=tokens.vision_start_token_id,
        vision_end_token_id=tokens.vision_end_token_id, tie_word_embeddings=False,
    )  # fmt: skip
    patch = int(vision["patch_size"])
    sizes = {"shortest_edge": 16 * patch**2, "longest_edge": 256 * patch**2}
    pictures = Qwen2VLImageProcessor(size=sizes, patch_size=patch)
    videos = Qwen2VLVideoProcessor(size=sizes, patch_size=patch)
    processor = getattr(transformers, "Qwen3VLProcessor" if version == "3" else f"{name}Processor")(
        pictures, tokens, videos, chat_template=template("<|vision_start|><|image_pad|><|vision_end|>")
    )
    save(folder, lambda: getattr(transformers, f"{name}ForConditionalGeneration")(config), processor)


# --- InternVL ------------------------------------------------------------------------------------------------------


def save_internvl(folder: Path) -> None:
    from transformers import (
        GotOcr2ImageProcessor,
        InternVLConfig,
        InternVLProcessor,
        InternVLVideoProcessor,
        InternVLVisionConfig,
        Qwen2Config,
    )
    from transformers import InternVLForConditionalGeneration as InternVL

    tokens = tokenizer(
        image_token="<IMG_CONTEXT>", context_image_token="<IMG_CONTEXT>", start_image_token="<img>",
        end_image_token="</img>", video_token="<video>",
    )  # fmt: skip
    vision = clip_numbers(image_size=[56, 56], patch_size=[7, 7])
    config = InternVLConfig(
        vision_config=InternVLVisionConfig(**vision),
        text_config=Qwen2Config(**text_numbers(len(tokens), num_key_value_heads=2)),
        image_token_id=tokens.context_image_token_id, image_seq_length=16, tie_word_embeddings=False,
    )  # fmt: skip
    pictures = GotOcr2ImageProcessor(size={"height": 56, "width": 56}, max_patches=4)
    processor = InternVLProcessor(
        pictures, tokens, InternVLVideoProcessor(), image_seq_length=16, chat_template=template("<IMG_CONTEXT>\n")
    )
    save(folder, lambda: InternVL(config), processor)


FAMILIES: dict[str, Family] = {
    "llava": Family(save_llava, shown_in_one_view, "llava", paper=True),
    "llava_next_vicuna": Family(partial(save_llava_next, mistral=False), shown_in_tiles, "llava_next", 2, paper=True),
    "llava_next_mistral": Family(partial(save_llava_next, mistral=True), shown_in_tiles, "llava_next", 2, paper=True),
    "llava_onevision": Family(save_llava_onevision, shown_in_tiles, "llava_onevision", 2, blur=0.2),
    "qwen2_vl": Family(partial(save_qwen_vl, version="2"), shown_in_merged_patches, "qwen2_vl"),
    "qwen2_5_vl": Family(partial(save_qwen_vl, version="2_5"), shown_in_merged_patches, "qwen2_5_vl"),
    "qwen3_vl": Family(partial(save_qwen_vl, version="3"), shown_in_merged_patches, "qwen3_vl"),
    "auto_vipllava": Family(save_vipllava, shown_in_one_view, "auto"),
    "internvl": Family(save_internvl, shown_after_pixel_shuffle, "internvl", 2),
}

# Families with a file of their own; imported last, because they are made of the parts above.
from . import deepseek_vl_family, hpt_family, mgm_family  # noqa: E402

FAMILIES |= deepseek_vl_family.FAMILIES | mgm_family.FAMILIES | hpt_family.FAMILIES
