"""The embedded LMM: transformers' own LLaVA classes at a size that ships inside the package.

A CLIP vision tower (112 px, 14 x 14 image tokens), a two-layer projector and a Llama decoder over a byte-level BPE
vocabulary, so that any text round-trips. Built here, trained by `tools.tiny.train_lmm`, saved as a plain
transformers checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flmm_plugin.tiny import language
from flmm_plugin.tiny.scenes import sample_scene
from flmm_plugin.tiny.untrained import fresh_model

IMAGE_TOKEN = "<image>"
IMAGE_SIZE, PATCH = 112, 8
GRID = IMAGE_SIZE // PATCH
# A turn's words: a plain string, or transformers' list of parts.
_WORDS = (
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}{{ '<image>\n' }}{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}"
)
CHAT_TEMPLATE = (
    "{% for m in messages %}"
    "{% if m['role'] == 'user' %}{{ 'USER: ' }}"
    + _WORDS
    + "{% elif m['role'] == 'assistant' %}{{ ' ASSISTANT: ' }}"
    + _WORDS
    + "{{ eos_token }}"
    "{% else %}" + _WORDS + "{{ ' ' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
)


def corpus(scenes: int = 1500, seed: int = 7) -> Iterable[str]:
    """Sentences of the world's language, each opened by a space as the tokenizer will see words."""
    rng = np.random.default_rng(seed)
    for _ in range(scenes):
        scene = sample_scene(rng, max_things=4)
        turns = [language.caption(scene), language.refer_list(scene, rng)]
        turns += [language.question(scene, kind, rng) for kind in language.QUESTION_KINDS]
        for turn in turns:
            yield f"USER: \n{turn.question} ASSISTANT: {turn.answer}"


def build_tokenizer() -> Any:
    """Byte-level BPE whose merges cover the world's words; any other text falls back to bytes, and round-trips."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE(unk_token=None))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=640,
        min_frequency=20,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<pad>", "<s>", "</s>", IMAGE_TOKEN],
    )
    backend.train_from_iterator(corpus(), trainer)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        padding_side="left",
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
        extra_special_tokens={"image_token": IMAGE_TOKEN},
    )


def build_processor(tokenizer: Any) -> Any:
    """LLaVA's processor with the pad-to-square picture pipeline, so that no part of a picture is ever cropped away."""
    from transformers import LlavaImageProcessor, LlavaProcessor

    pictures = LlavaImageProcessor(
        size={"shortest_edge": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        do_pad=True,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.25, 0.25, 0.25],
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return LlavaProcessor(
        pictures,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE_TOKEN,
    )


def build_model(
    vocab_size: int,
    image_token_id: int,
    *,
    seed: int = 0,
    width: int = 192,
    layers: int = 6,
    heads: int = 6,
    vision_width: int = 128,
    vision_layers: int = 4,
) -> Any:
    """A fresh LMM of the embedded shape, initialised so that a short training moves at once."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    vision = CLIPVisionConfig(
        hidden_size=vision_width,
        intermediate_size=2 * vision_width,
        num_hidden_layers=vision_layers,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH,
        projection_dim=64,
        hidden_act="gelu",
    )
    text = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=2048,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=True,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=image_token_id,
        image_seq_length=GRID * GRID,
        vision_feature_layer=[-1, 0],
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        tie_word_embeddings=True,
    )
    model = fresh_model(config, seed)
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = 0, 2
    model.generation_config.bos_token_id = 1
    return model


def see(model: Any, pixels: Tensor) -> Tensor:
    """Image tokens as the decoder gets them: ``[b, 3, 112, 112]`` -> ``[b, h*w, d]``.

    Two of the tower's layers side by side, as LLaVA's ``vision_feature_layer`` allows: the last, which knows what is
    there, and the first, which still says plainly where it is. From the last alone the decoder did not learn to
    answer "where".
    """
    states = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
    chosen = torch.cat([states[layer][:, 1:] for layer in model.config.vision_feature_layer], -1)
    seen: Tensor = model.model.multi_modal_projector(chosen)
    return seen


def save(model: Any, processor: Any, folder: Path, *, half: bool = True) -> None:
    """Write a plain transformers checkpoint (safetensors, processor, chat template)."""
    import copy

    folder.mkdir(parents=True, exist_ok=True)
    (copy.deepcopy(model).half() if half else model).save_pretrained(folder)
    processor.save_pretrained(folder)
    # Stored as halves to be small, computed in single precision: "auto" follows this entry.
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = "float32"
    for part in ("text_config", "vision_config"):
        config[part]["dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
