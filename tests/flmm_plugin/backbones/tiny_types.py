"""A tiny random instance of any image-text-to-text type of transformers, saved to a folder.

Its classes and its processor are the real ones. Made by rules, not type by type: the class's own default configuration
with small numbers in it, the processor that the auto classes name for it with its defaults, a byte-level tokenizer that
knows every special token that the processor's code names. `FACTS` holds what no rule gives.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.models.smolvlm import processing_smolvlm as smolvlm_processing

from .families import _SENTENCES, template

#: Every image-text-to-text type of the installed transformers.
TYPES = tuple(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)

WIDTH, HEADS, HEAD = 64, 4, 16
# Patches along the side of a view.
SIDE = 8

_EXACT: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "embed_dim", "d_model", "projection_dim", "out_hidden_size", "output_dim"), WIDTH),
    **dict.fromkeys(("num_attention_heads", "num_heads", "attention_heads", "encoder_attention_heads"), HEADS),
    **dict.fromkeys(("decoder_attention_heads", "n_heads", "num_query_heads"), HEADS),
    **dict.fromkeys(("head_dim", "global_head_dim", "v_head_dim", "qk_nope_head_dim", "qk_rope_head_dim"), HEAD),
    "qk_head_dim": 2 * HEAD,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "num_experts_per_token"), 2),
    **dict.fromkeys(("n_group", "topk_group"), 1),
    **dict.fromkeys(("vision_feature_layer", "vision_feature_layers"), -2),
    "deepstack_visual_indexes": [0],
    "fullatt_block_indexes": [1],
    "global_attn_indexes": [1],
    "initializer_range": 0.1,
    "tie_word_embeddings": False,
}
_LAYERS = ("num_hidden_layers", "depth", "num_layers", "encoder_layers", "decoder_layers", "layers", "n_layers")
_WIDER = re.compile(r"(intermediate_size|ffn_dim|d_ff|mlp_dim|ffn_hidden_size|intermediate_dim)$")
_KV = re.compile(r"num_(global_)?(key_value|kv)_heads$")


_AS_IS: tuple[str, ...] = ()


def tokenizer(names: Mapping[str, str], others: list[str]) -> Any:
    """Byte-level BPE with named special tokens and further ones."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    spare = [f"<spare_{number}>" for number in range(24)]
    special = list(dict.fromkeys(["<pad>", "<s>", "</s>", "<unk>", *names.values(), *others, *spare]))
    backend = Tokenizer(models.BPE(unk_token=None))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384 + len(special), special_tokens=special, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    backend.train_from_iterator(_SENTENCES * 20, trainer)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        padding_side="left", extra_special_tokens=dict(names),
    )  # fmt: skip


_STANDARD = ("bos", "eos", "pad", "unk", "sep", "cls", "mask")


def special_tokens(processor_class: type) -> tuple[dict[str, str], list[str]]:
    """Named special tokens that a processor's code asks its tokenizer for, and other tokens that it writes."""
    names: dict[str, str] = {}
    classes = [one for one in processor_class.__mro__ if "transformers.models" in one.__module__]
    source = "".join(inspect.getsource(sys.modules[one.__module__]) for one in classes)
    for name in re.findall(r"tokenizer\.(\w+_token)(?:_id)?\b", source) + re.findall(
        r'tokenizer, "(\w+_token)"', source
    ):
        if not name.startswith((*_STANDARD, "add_")):
            names[name] = f"<{name.removesuffix('_token')}>"
    for name, text in re.findall(r'(\w+_token)\b[^\n]*?(?:=|else|,)\s*"([^"\s]{2,40})"', source):
        # Processors write a placeholder for a moment, where the image token is being repeated.
        if name in names and text != name and "placeholder" not in text:
            names[name] = text
    for name, text in re.findall(r'tokenizer, "(\w+_token)", "([^"\s]+)"', source):
        names[name] = text
    for name, text in re.findall(r'^([A-Z_]+_TOKEN) = "([^"\s]+)"', source, re.MULTILINE):
        if name.lower() in names:
            names[name.lower()] = text
    others = re.findall(r'"(<[^"\s{}]{1,40}>|\[[A-Z_]+\]|<?\|[^"\s{}]+\|>?)"', source)
    return names, list(dict.fromkeys([*others, *re.findall(r"<[A-Z][A-Z_]+>", source)]))


def of_layers(config: Mapping[str, Any], count: int) -> list[int]:
    """Layers that together show every kind: the first of each, two at least."""
    lists = [value for value in config.values() if isinstance(value, list) and len(value) == count]
    kinds = list(zip(*(map(str, one) for one in lists), strict=True)) if lists else [()] * count
    first = [kinds.index(kind) for kind in dict.fromkeys(kinds)]
    names = config.get("layer_types")
    if isinstance(names, list) and len(names) == count:
        first = [names.index(kind) for kind in dict.fromkeys(names)]
    return first if len(first) > 1 else [0, 1][:count]


def side_of_patch(config: Mapping[str, Any]) -> int | None:
    """Pixels along the side of a patch."""
    found = config.get("patch_size")
    return found[0] if isinstance(found, (list, tuple)) else found


def resize(pictures: Any, side: int) -> None:
    """Give an image processor's defaults the tower's small size."""
    for name in ("size", "crop_size"):
        size = dict(getattr(pictures, name, None) or {})
        entries = {key: value for key, value in size.items() if value is not None}
        if set(entries) in ({"height", "width"}, {"shortest_edge"}):
            setattr(pictures, name, dict.fromkeys(entries, side))


def shrunk(config: dict[str, Any], vocabulary: int) -> dict[str, Any]:
    """A configuration with small numbers, all of it consistent where the original was."""
    small: dict[str, Any] = {}
    layers = next((config[name] for name in _LAYERS if isinstance(config.get(name), int)), None)
    kept = of_layers(config, layers) if layers else []
    heads = next((config[k] for k in ("num_attention_heads", "num_heads") if isinstance(config.get(k), int)), None)
    for key, value in config.items():
        if key == "per_layer_config":
            small[key] = {
                kept.index(int(layer)): shrunk(one, vocabulary) for layer, one in (value or {}).items()
                if int(layer) in kept
            }  # fmt: skip
        elif isinstance(value, dict):
            small[key] = shrunk(value, vocabulary)
        elif value is None or (isinstance(value, (str, bool)) and key not in _EXACT) or key in _AS_IS:
            small[key] = value
        elif key in _LAYERS and layers:
            small[key] = len(kept)
        elif layers and isinstance(value, list) and len(value) == layers and layers > 2 and key not in _EXACT:
            small[key] = [value[index] for index in kept]
        elif key in _EXACT:
            small[key] = _EXACT[key]
            if key.startswith("vision_feature_layer") and isinstance(value, (list, tuple)):
                small[key] = [-2] * len(value)
        elif _KV.search(key):
            small[key] = HEADS if value == heads else HEADS // 2
        elif _WIDER.search(key) or key.endswith("hidden_size"):
            small[key] = WIDTH
        elif key in ("vocab_size", "vocab_size_per_layer_input"):
            small[key] = vocabulary
        elif key == "image_size" and side_of_patch(config):
            side = SIDE * side_of_patch(config)
            small[key] = [side, side] if isinstance(value, (list, tuple)) else side
        elif key == "mrope_section":
            small[key] = [HEAD // 4, HEAD // 8, HEAD // 8]
        else:
            small[key] = value
    return small


def named(table: Any, kind: str) -> str | None:
    """Name of the class that a table of the auto classes has for a type; that of torchvision where there are two."""
    found = table.get(kind)
    if isinstance(found, dict):
        return found.get("torchvision") or found.get("pil")
    if isinstance(found, (tuple, list)):
        return next((one for one in reversed(found) if one), None)
    return found


def of_transformers(name: str) -> Any:
    """A class of transformers by its name."""
    import transformers

    return getattr(transformers, name)


def text_of(config: Any) -> Any:
    """The configuration of the language model."""
    return config.get_text_config()


def part(name: str, kind: str, fact: Mapping[str, Any]) -> Any:
    """An image processor, video processor or feature extractor with its defaults."""
    from transformers.models.auto.feature_extraction_auto import FEATURE_EXTRACTOR_MAPPING_NAMES
    from transformers.models.auto.video_processing_auto import VIDEO_PROCESSOR_MAPPING_NAMES

    table = {
        "image_processor": IMAGE_PROCESSOR_MAPPING_NAMES, "video_processor": VIDEO_PROCESSOR_MAPPING_NAMES,
        "feature_extractor": FEATURE_EXTRACTOR_MAPPING_NAMES, "audio_processor": FEATURE_EXTRACTOR_MAPPING_NAMES,
    }[name]  # fmt: skip
    found = fact.get(f"{name}_class") or named(table, kind)
    return None if found is None else of_transformers(found)(**fact.get(name, {}))


_MROPE = {"text_config.rope_parameters.mrope_section": [4, 2, 2]}
_GLM_ROPE = {"text_config.rope_parameters.mrope_section": [2, 3, 3]}
_OMNI = {
    "ids": {"vision_start_token_id": "<|vision_bos|>"},
    "video_processor_class": "Qwen2VLVideoProcessor",
    "feature_extractor_class": "WhisperFeatureExtractor",
}
_PINPOINTS = [[112, 224], [224, 112], [224, 224], [336, 112], [112, 336]]
_NO_SPLIT = {"vision_config.image_size": 112, "vision_config.patch_size": 14}

#: What no rule gives. ``processor_class``, ``image_processor_class``: where the auto classes name none.
#: ``pictures``: attributes of the image processor. ``processor``: arguments of the processor. ``config``: numbers by
#: dotted path; ``...`` removes one. ``model_type``: what its configuration calls itself. ``image``: what a chat
#: template writes for a picture. ``tokens``: named tokens.
FACTS: dict[str, dict[str, Any]] = {
    "aria": {"config": {"projector_patch_to_query_dict": {"64": 64}, "vision_config.patch_size": 14}},
    "aya_vision": {
        "config": _NO_SPLIT,
        "processor": {"img_size": 112, "patch_size": 14, "downsample_factor": 2},
        "pictures": {"crop_to_patches": True, "max_patches": 4},
    },
    "cohere2_vision": {"pictures": {"max_patches": 4, "patch_size": 4}, "config": {"alignment_intermediate_size": 64}},
    "cosmos3_omni": {"processor_class": "Qwen3VLProcessor"},
    "ernie4_5_vl_moe": {
        "video_processor": {"draw_on_frames": False},
        "config": {
            "text_config.moe_intermediate_size": [64, 64],
            "text_config.rope_parameters.mrope_section": [2, 2, 4],
        },
    },
    "gemma3n": {"config": {}},
    "fast_vlm": {
        "processor_class": "LlavaProcessor",
        "image_processor_class": "CLIPImageProcessor",
        "config": {"vision_feature_layer": -1},
    },
    "fuyu": {"processor": {}},
    "gemma3": {
        "config": {"mm_tokens_per_image": 16, "vision_config.patch_size": 14, "vision_config.image_size": 112},
        "processor": {"image_seq_length": 16},
        "image": "<boi>",
        "image_id": "<image>",
    },
    "shieldgemma2": {"image": "<boi>"},
    "t5gemma2": {"image": "<boi>"},
    "gemma4": {
        "from": {"vision_config": {"model_type": "gemma4_vision"}},
        "config": {"vision_config.position_embedding_size": 256},
    },
    "ovis2": {"image_id": "<IMG_ATOM>", "processor": {"image_seq_length": 64}},
    "minimax_m3_vl": {"tokens": {"image_token": "]<]image[>[", "video_token": "]<]video[>["}},
    "muse_glimmer": {"config": {"out_hidden_size": 256}},
    "muse_spark": {"config": {"out_hidden_size": 256}},
    "molmo2": {
        "ids": {"image_patch_id": "<im_patch>"},
        "pictures": {"overlap_margins": [1, 1], "max_crops": 4},
        "config": {"adapter_config.vision_feature_layer": [-1, -2], "vision_config.num_position_embeddings": 64},
    },
    "idefics": {"pictures": {"image_size": 112}},
    "glm46v": {"config": _GLM_ROPE},
    "glm4v": {"config": _GLM_ROPE},
    "glm4v_moe": {
        "config": {"text_config.rope_parameters.mrope_section": [1, 1, 2]},
        "image_processor_class": "Glm4vImageProcessor",
        "video_processor_class": "Glm4vVideoProcessor",
    },
    "glm_ocr": {
        "config": _GLM_ROPE,
        "processor_class": "Glm46VProcessor",
        "image_processor_class": "Glm46VImageProcessor",
        "video_processor_class": "Glm46VVideoProcessor",
    },
    "glmga": {"config": _GLM_ROPE, "processor_class": "Glm46VProcessor"},
    "got_ocr2": {"processor": {"num_image_tokens": 4}},
    "idefics3": {
        "pictures": {"size": {"longest_edge": 448}, "max_image_size": {"longest_edge": 112}},
        "config": _NO_SPLIT,
    },
    "smolvlm": {
        "pictures": {"size": {"longest_edge": 448}, "max_image_size": {"longest_edge": 112}},
        "config": _NO_SPLIT,
    },
    "granite_docling": {
        "pictures": {"size": {"longest_edge": 448}, "max_image_size": {"longest_edge": 112}},
        "config": _NO_SPLIT,
    },
    "internvl": {"pictures": {"crop_to_patches": True, "max_patches": 4}},
    "qianfan_ocr": {"pictures": {"crop_to_patches": True, "max_patches": 4}, "image": "<image>"},
    "llava_onevision": {
        "config": {"vision_aspect_ratio": "anyres_max_4", "image_grid_pinpoints": _PINPOINTS},
        "pictures": {"image_grid_pinpoints": _PINPOINTS},
        "processor": {"num_image_tokens": 64},
    },
    **{
        kind: {"config": {"image_grid_pinpoints": _PINPOINTS}, "pictures": {"image_grid_pinpoints": _PINPOINTS}}
        for kind in ("llava_next", "llava_next_video", "granite4_vision")
    },
    "deepseek_vl_hybrid": {"pictures": {"high_res_size": {"height": 128, "width": 128}}},
    # Tables of positions that take every picture; older transformers fix the number of Janus' tokens.
    "janus": {"config": {"vision_config.image_size": 384}},
    "lighton_ocr": {"config": {"vision_config.image_size": 1024}},
    "mistral3": {"config": {"vision_config.image_size": 1024}},
    "llama4": {
        "image": "<|image|>",
        "image_id": "<|patch|>",
        "config": {
            "vision_config.vision_output_dim": 64,
            "vision_config.projector_input_dim": 64,
            "vision_config.projector_output_dim": 64,
            "vision_config.intermediate_size": 256,
        },
        "pictures": {"max_patches": 4},
    },
    "mllama": {"config": {"vision_config.vision_output_dim": 192}},
    "minicpmv4_6": {"pictures": {"scale_resolution": 112}},
    "minicpmv4_7": {"pictures": {"scale_resolution": 112}},
    "minicpm_ocr": {"pictures": {"scale_resolution": 112}},
    "paddleocr_vl": {"config": _MROPE, "pictures": {"temporal_patch_size": 1}},
    "qwen2_5_vl": {"config": _MROPE},
    "qwen2_vl": {"config": _MROPE},
    "qwen2_5_omni_thinker": {
        "config": _MROPE,
        "processor_class": "Qwen2_5OmniProcessor",
        "image_processor_class": "Qwen2VLImageProcessor",
        **_OMNI,
    },
    "qwen3_omni_moe_thinker": {
        "processor_class": "Qwen3OmniMoeProcessor",
        "image_processor_class": "Qwen2VLImageProcessor",
        **_OMNI,
    },
    "pixtral": {
        "model_type": "llava",
        "from": {"vision_config": {"model_type": "pixtral"}, "text_config": {"model_type": "mistral"}},
        "config": {
            "vision_config.image_size": 1024,
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
        },
    },
    "qwen3_vl_moe": {"image_processor_class": "Qwen2VLImageProcessor"},
    "step3p7": {"image": "<im_patch>"},
    "video_llama_3": {
        "processor_class": "VideoLlama3Processor",
        "image_processor_class": "VideoLlama3ImageProcessor",
        "video_processor_class": "VideoLlama3VideoProcessor",
    },
}


def settled(config: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with values by dotted path in it; ``...`` removes one."""
    for path, value in changes.items():
        *into, last = path.split(".")
        place = config
        for step in into:
            place = place.setdefault(step, {})
        if value is ...:
            place.pop(last, None)
        else:
            place[last] = value
    return config


def merged(numbers: Mapping[str, Any]) -> int:
    """Patches along the side of what becomes one token."""
    places = [numbers, numbers.get("vision_config") or {}]
    for place in places:
        for name in ("spatial_merge_size", "scale_factor", "downsample_factor", "merge_size"):
            if isinstance(place.get(name), int):
                return int(place[name])
        for name in ("downsample_ratio", "pixel_shuffle_ratio"):
            if isinstance(place.get(name), float) and place[name] < 1:
                return round(1 / place[name])
    return 1


def build(kind: str, folder: Path) -> None:
    """Save a tiny random instance of a type to a folder."""
    fact = FACTS.get(kind, {})
    if kind == "smolvlm" and not smolvlm_processing.num2words:
        # It spells out the number of a video's frames, and asks for the package that does even where there are none.
        smolvlm_processing.num2words = str
    processor_class = of_transformers(fact.get("processor_class") or named(PROCESSOR_MAPPING_NAMES, kind))
    names, others = special_tokens(processor_class)
    tokens = tokenizer({"image_token": "<image>"} | names | fact.get("tokens", {}), others)
    model_type = fact.get("model_type", kind)
    config_class = CONFIG_MAPPING[model_type]
    numbers = settled(shrunk(config_class(**fact.get("from", {})).to_dict(), len(tokens)), fact.get("config", {}))
    processor = processor_of(kind, fact, processor_class, tokens, numbers)
    for section in (numbers, numbers.get("text_config") or {}):
        for name, value in list(section.items()):
            if re.search(r"_token_(id|index)$", name) and not isinstance(value, (dict, list)):
                section[name] = token_id(re.sub(r"_(id|index)$", "", name), processor, tokens, value)
    if "image_id" in fact:
        numbers["image_token_id"] = numbers["image_token_index"] = tokens.convert_tokens_to_ids(fact["image_id"])
    config = config_class.from_dict(settled(numbers, fact.get("config", {})))
    for name, token in fact.get("ids", {}).items():
        setattr(config, name, tokens.convert_tokens_to_ids(token))
    for one in (config, text_of(config)):
        if not hasattr(one, "pad_token_id"):  # older transformers expect it in the file
            one.pad_token_id = tokens.pad_token_id
    torch.manual_seed(0)
    model = of_transformers(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[model_type])(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1 and not parameter.any():
                parameter.normal_(0, 0.1)  # a projector that begins at zero shows nothing
    if getattr(config, "image_token_id", None) is not None:
        model.generation_config.bad_words_ids = [[int(config.image_token_id)]]
    model.generation_config.pad_token_id = tokens.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def processor_of(
    kind: str, fact: Mapping[str, Any], processor_class: Any, tokens: Any, numbers: Mapping[str, Any]
) -> Any:
    """The processor of a type, sized as its vision tower."""
    vision = numbers.get("vision_config") or {}
    patch, side = side_of_patch(vision), vision.get("image_size")
    side = side[0] if isinstance(side, list) else side
    accepted = inspect.signature(processor_class.__init__).parameters
    arguments: dict[str, Any] = {"tokenizer": tokens}
    for name in accepted:
        if name in ("image_processor", "video_processor", "feature_extractor", "audio_processor"):
            arguments[name] = part(name, kind, fact)
    pictures = arguments.get("image_processor")
    if isinstance(side, int):
        resize(pictures, side)
        cells = (side // patch // merged(numbers)) ** 2
        for name in ("num_image_tokens", "image_seq_length", "image_seq_len"):
            if name in accepted and kind != "ovis2":
                arguments[name] = cells
    known = {
        "patch_size": patch, "temporal_patch_size": vision.get("temporal_patch_size"),
        "merge_size": vision.get("spatial_merge_size"), "encoder_patch_size": patch,
    }  # fmt: skip
    for name, value in known.items():
        if value is not None and isinstance(getattr(pictures, name, None), int):
            setattr(pictures, name, value)
    if "patch_size" in accepted and patch:
        arguments["patch_size"] = patch
    if "spatial_merge_size" in accepted:
        arguments["spatial_merge_size"] = merged(numbers)
    for name, value in fact.get("pictures", {}).items():
        setattr(pictures, name, value)
    processor = processor_class(**{**arguments, **fact.get("processor", {})})
    image = fact.get("image") or getattr(processor, "image_token", None) or tokens.image_token
    processor.chat_template = template(image + "\n")
    return processor


def token_id(name: str, processor: Any, tokens: Any, value: Any) -> Any:
    """Id of a named token, as processor or tokenizer know it; a spare one where neither does."""
    standard = {"pad_token": 0, "bos_token": 1, "eos_token": 2, "decoder_start_token": 1}
    if name in standard:
        return standard[name]
    for owner in (processor, tokens):
        found = getattr(owner, f"{name}_id", None)
        if isinstance(found, int):
            return found
        found = getattr(owner, name, None)
        if isinstance(found, str):
            return tokens.convert_tokens_to_ids(found)
    if value is None:
        return None
    return tokens.convert_tokens_to_ids(f"<spare_{sum(map(ord, name)) % 24}>")
