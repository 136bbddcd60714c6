"""Models to measure: the embedded one, and random ones of real families in shapes of real size.

Random weights: times and bytes depend on shapes, not on values. Processor and tokenizer are the families' own classes
with the embedded model's vocabulary, so that everything on the way from a picture to its masks is the real thing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from flmm_plugin import bundled
from flmm_plugin.backbones.registry import family_class
from flmm_plugin.grounded_lmm import GroundedLMM
from flmm_plugin.heads.grounding_heads import GroundingHeads
from flmm_plugin.heads.manifest import HeadsManifest
from flmm_plugin.options import LoadOptions

SMALL_SAM = {"image_size": 256, "patch_size": 16, "encoder_dim": 192, "depth": 6, "heads": 6, "prompt_dim": 128}
_QWEN = {
    "image_token": "<|image_pad|>", "video_token": "<|video_pad|>", "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
}  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """A random model and the picture that it looks at.

    Attributes:
        name: Name of the model in tables, such as ``llava-8x512``.
        family: ``model_type`` of the family: ``llava``, ``llava_next`` or ``qwen2_5_vl``.
        picture: Width and height of the picture in pixels; they decide how many image tokens the last two make.
        layers: Number of decoder layers, > 0.
        hidden: Width of the language model.
        heads: Number of attention heads per layer, > 0.
        kv_heads: Key-value heads; None: as many as heads.
        tower: Width of the vision tower.
        tower_layers: Layers of the vision tower.
        sam: ``vit_b``, ``vit_l``, ``vit_h``, or the numbers of a small SAM.
    """

    name: str
    family: str = "llava"
    picture: tuple[int, int] = (640, 480)
    layers: int = 8
    hidden: int = 512
    heads: int = 8
    kv_heads: int | None = None
    tower: int = 256
    tower_layers: int = 4
    sam: Any = "small"


def embedded(device: torch.device) -> GroundedLMM:
    """Load the embedded model with its heads."""
    return GroundedLMM.from_pretrained(bundled.EMBEDDED, device=str(device))


def random_lmm(shape: Shape, device: torch.device, dtype: torch.dtype = torch.float32) -> GroundedLMM:
    """Make a random model with random heads of the paper's size.

    Args:
        shape: Numbers of the model, and the size of its picture in pixels.
        device: Device of model and heads.
        dtype: Type of the model's weights; heads and SAM are float32.
    """
    torch.manual_seed(0)
    config, processor = {"llava": _llava, "llava_next": _llava_next, "qwen2_5_vl": _qwen}[shape.family](shape)
    from transformers import AutoModelForImageTextToText

    maker: Any = AutoModelForImageTextToText
    with device:
        model = maker.from_config(config, dtype=dtype).eval()
    options = LoadOptions(device=str(device), dtype=str(dtype).removeprefix("torch."))
    backbone = family_class(shape.family, shape.name)(model, processor, name=shape.name, options=options)
    sam = SMALL_SAM if shape.sam == "small" else shape.sam
    facts = {**backbone.facts.entries, "backbone": shape.name}
    heads = GroundingHeads.build(HeadsManifest(**facts, sam=sam)).to(device).eval()
    return GroundedLMM(backbone, heads)


def _tokenizer(**special: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(
        bundled.model(bundled.EMBEDDED).checkpoint(), extra_special_tokens=special, model_max_length=8192
    )


def _template(tokens: str) -> str:
    """Return a chat template with `tokens` where a picture stands."""
    return (
        "{% for m in messages %}{{ m['role'] }}: {% if m['content'] is string %}{{ m['content'] }}{% else %}"
        "{% for c in m['content'] %}{% if c['type'] == 'image' %}" + tokens + "{% else %}{{ c['text'] }}{% endif %}"
        "{% endfor %}{% endif %} {% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    )


def _text(shape: Shape, tokenizer: Any, **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": 32064,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.hidden * 11 // 4,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads or shape.heads,
        "max_position_embeddings": 8192,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        **more,
    }


def _clip(shape: Shape) -> dict[str, Any]:
    return {
        "hidden_size": shape.tower,
        "intermediate_size": 4 * shape.tower,
        "num_hidden_layers": shape.tower_layers,
        "num_attention_heads": shape.tower // 64,
        "image_size": 336,
        "patch_size": 14,
    }


def _pictures(**more: Any) -> dict[str, Any]:
    return {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}, **more}


def _processor_options(tokenizer: Any) -> dict[str, Any]:
    return {
        "patch_size": 14,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
        "chat_template": _template(f"{tokenizer.image_token}\n"),
    }


def _llava(shape: Shape) -> tuple[Any, Any]:
    """LLaVA-1.5: 576 image tokens."""
    from transformers import CLIPImageProcessor, CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaProcessor

    tokenizer = _tokenizer(image_token="<image>")
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**_clip(shape)), text_config=LlamaConfig(**_text(shape, tokenizer)),
        image_token_index=tokenizer.image_token_id, image_seq_length=576,
    )  # fmt: skip
    return config, LlavaProcessor(CLIPImageProcessor(**_pictures()), tokenizer, **_processor_options(tokenizer))


def _llava_next(shape: Shape) -> tuple[Any, Any]:
    """LLaVA-NeXT: a picture of 672 x 672 makes five views, 2,928 image tokens."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextConfig, LlavaNextImageProcessor, LlavaNextProcessor

    tokenizer = _tokenizer(image_token="<image>")
    tilings = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**_clip(shape)), text_config=LlamaConfig(**_text(shape, tokenizer)),
        image_token_index=tokenizer.image_token_id, image_grid_pinpoints=tilings,
    )  # fmt: skip
    pictures = LlavaNextImageProcessor(**_pictures(image_grid_pinpoints=tilings))
    return config, LlavaNextProcessor(pictures, tokenizer, **_processor_options(tokenizer))


def _qwen(shape: Shape) -> tuple[Any, Any]:
    """Qwen2.5-VL: one image token per 28 x 28 pixels."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    tokenizer = _tokenizer(**_QWEN)
    side = shape.hidden // shape.heads // 2
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [side - 2 * (side // 3), side // 3, side // 3]}
    vision = {
        "hidden_size": shape.tower, "patch_size": 14, "depth": shape.tower_layers, "num_heads": shape.tower // 64,
        "intermediate_size": 4 * shape.tower, "out_hidden_size": shape.hidden, "window_size": 112,
        "fullatt_block_indexes": [shape.tower_layers - 1],
    }  # fmt: skip
    config = Qwen2_5_VLConfig(
        text_config=_text(shape, tokenizer, rope_parameters=rope), vision_config=vision, tie_word_embeddings=False,
        image_token_id=tokenizer.image_token_id, video_token_id=tokenizer.video_token_id,
        vision_start_token_id=tokenizer.vision_start_token_id, vision_end_token_id=tokenizer.vision_end_token_id,
    )  # fmt: skip
    sizes = {"shortest_edge": 28**2, "longest_edge": 4096 * 28**2}
    processor = Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(size=sizes), tokenizer, Qwen2VLVideoProcessor(size=sizes),
        chat_template=_template("<|vision_start|><|image_pad|><|vision_end|>"),
    )  # fmt: skip
    return config, processor
