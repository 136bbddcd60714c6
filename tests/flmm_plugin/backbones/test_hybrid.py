"""A model whose layers are partly linear: it chats as ever, and heads read the maps of all of its layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from flmm_plugin.backbones import load_backbone
from flmm_plugin.capture import capture_passages
from flmm_plugin.grounded_lmm import GroundedLMM
from flmm_plugin.heads import GroundingHeads, HeadsManifest
from flmm_plugin.heads.attention_rules import AttentionArgmax
from flmm_plugin.passages import Passage

from .families import _QWEN_TOKENS, save, template, text_numbers, tokenizer

KINDS = ("linear", "softmax", "linear")
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}


def save_qwen3_5(folder: Path) -> None:
    from transformers import Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    tokens = tokenizer(**_QWEN_TOKENS)
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 0], "partial_rotary_factor": 0.5}
    numbers = text_numbers(len(tokens), num_hidden_layers=3, num_key_value_heads=2, head_dim=8, rope_parameters=rope)
    vision = {"hidden_size": 32, "num_position_embeddings": 64, "patch_size": 8, "depth": 2, "num_heads": 2}
    vision |= {"intermediate_size": 32, "out_hidden_size": 32}
    config = transformers.Qwen3_5Config(
        text_config={**numbers, **LINEAR},
        vision_config=vision,
        tie_word_embeddings=False,
        **{f"{name}_token_id": getattr(tokens, f"{name}_token_id") for name in
           ("image", "video", "vision_start", "vision_end")},
    )  # fmt: skip
    sizes = {"shortest_edge": 16 * 8**2, "longest_edge": 256 * 8**2}
    pictures, videos = (kind(size=sizes, patch_size=8) for kind in (Qwen2VLImageProcessor, Qwen2VLVideoProcessor))
    text = template("<|vision_start|><|image_pad|><|vision_end|>")
    processor = transformers.Qwen3VLProcessor(pictures, tokens, videos, chat_template=text)
    save(folder, lambda: transformers.Qwen3_5ForConditionalGeneration(config), processor)


@pytest.fixture(scope="module")
def lmm(tmp_path_factory: pytest.TempPathFactory) -> GroundedLMM:
    if not hasattr(transformers, "Qwen3_5Config"):
        pytest.skip("this transformers has no Qwen3.5: run it with the pinned one (constraints.txt)")
    folder = tmp_path_factory.mktemp("hybrid") / "qwen3_5"
    save_qwen3_5(folder)
    return GroundedLMM(load_backbone(folder, device="cpu", dtype="float32"))


def test_facts_name_the_kinds_of_layers(lmm: GroundedLMM) -> None:
    facts = lmm.backbone.facts
    assert (facts.layer_kinds, facts.linear_heads, facts.heads) == (KINDS, 6, 4)
    assert facts.attention_maps == 6 + 4 + 6


def test_every_layer_gives_maps_and_those_of_linear_ones_are_signed(lmm: GroundedLMM, noise_image: Any) -> None:
    backbone = lmm.backbone
    chats = [
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
        for text in ("A?", "the dog?")
    ]
    passages = [Passage.of_phrases(backbone.tokenizer, ["the cat", "sofa"], separator=".")] * 2
    encoded = backbone.encode(chats, [[noise_image(seed=index)] for index in range(2)])
    encoded = encoded.extended([passage.ids for passage in passages], backbone.pad_id)
    for captured in capture_passages(backbone, encoded, passages, "mean"):
        maps = captured.maps(backbone)
        assert maps.shape[1] == 16
        assert maps[:, 6:10].min() >= 0
        assert maps[:, :6].min() < 0 < maps[:, :6].max()
        assert maps[:, 10:].min() < 0 < maps[:, 10:].max()


def test_heads_of_a_hybrid_ground_and_its_answers_are_those_of_the_model(lmm: GroundedLMM, noise_image: Any) -> None:
    manifest = HeadsManifest(**lmm.backbone.facts.entries, sam=None)
    grounding = GroundedLMM(lmm.backbone, GroundingHeads.build(manifest).eval())
    picture = noise_image(seed=3)
    (found,) = grounding.ground(picture, ["the dog"])
    assert found.mask.shape == (picture.height, picture.width)
    plain = lmm.chat(picture, "Where?", max_new_tokens=5)
    answer = grounding.ground_answer(picture, "Where?", max_new_tokens=5)
    assert answer.token_ids == plain.token_ids


def test_rules_without_training_see_nothing_where_a_map_is_negative() -> None:
    maps = torch.zeros(1, 2, 4, 4)
    maps[0, 0, 0, 0] = 1.0
    maps[0, 1, 3, 3] = -5.0
    logits = AttentionArgmax()(maps)[0]
    assert logits[2, 2] > 0 > logits[-3, -3]
