"""Heads that were trained in a template of their own get their phrases in it; chat stays in the model's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image

from flmm_plugin.backbones.inputs import written_around
from flmm_plugin.errors import UnknownArgument
from flmm_plugin.grounded_lmm import GroundedLMM
from flmm_plugin.heads import GroundingHeads, HeadsManifest

TEMPLATE = "User: {image}\n{prompt}\n\nAssistant:"


@pytest.fixture
def grounded(load_llava: Callable[..., Any]) -> Callable[..., GroundedLMM]:
    def make(template: str) -> GroundedLMM:
        torch.manual_seed(0)
        manifest = HeadsManifest(
            "x", 3, 4, 64, sam=None, decoder={"base_channels": 4, "upsample_to": 16}, template=template
        )
        backbone = load_llava("mha")
        manifest = HeadsManifest(**{**vars(manifest), "backbone": backbone.name})
        return GroundedLMM(backbone, GroundingHeads.build(manifest).eval())

    return make


def texts_of(lmm: GroundedLMM, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the processor gets from now on."""
    seen: list[str] = []
    real = lmm.backbone._processed

    def spy(texts: list[str], images: Any) -> Any:
        seen.extend(texts)
        return real(texts, images)

    monkeypatch.setattr(lmm.backbone, "_processed", spy)
    return seen


def test_grounding_is_written_in_the_heads_template_and_chat_is_not(
    grounded: Callable[..., GroundedLMM],
    noise_image: Callable[..., Image.Image],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lmm, image = grounded(TEMPLATE), noise_image()
    seen = texts_of(lmm, monkeypatch)
    prompt = lmm.heads.manifest.prompt if lmm.heads is not None else ""
    together = lmm.ground(image, ["the dog", "a horse"])
    lmm.ground(image, ["the dog"], joint=False, prompt="A {brace}?")
    lmm.attention_maps(image, "the dog")
    lmm.ground_text(image, "What is it?", "a dog", [(0, 5)])
    assert seen == [
        f"User: <image>\n{prompt}\n\nAssistant:",
        "User: <image>\nA {brace}?\n\nAssistant:",
        f"User: <image>\n{prompt}\n\nAssistant:",
        "User: <image>\nWhat is it?\n\nAssistant:",
    ]
    seen.clear()
    lmm.chat(image, "What is it?", max_new_tokens=2)
    lmm.ground_text(image, "What is it?", "What is it?", [(0, 4)], where="question")
    assert seen == ["USER: <image>\nWhat is it? ASSISTANT:"] * 2
    plain = grounded("")
    assert abs(together[0].logits - plain.ground(image, ["the dog", "a horse"])[0].logits).max() > 1e-6


def test_the_first_token_is_written_once(
    grounded: Callable[..., GroundedLMM], noise_image: Callable[..., Image.Image]
) -> None:
    backbone = grounded(TEMPLATE).backbone
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Look."}]}]
    encoded = backbone.encode([chat], [[noise_image()]], template=TEMPLATE)
    text = backbone.tokenizer.decode(encoded.item_ids(0)).replace("<image>" * 16, "<image>")
    assert text == "<s>User: <image>\nLook.\n\nAssistant:"
    assert len(encoded.image_tokens[0][0].slots) == 16


def test_a_template_that_cannot_be() -> None:
    chat = [{"role": "user", "content": [{"type": "text", "text": "Look."}]}]
    for template in ("{image} only", "{prompt}", "{image}{image}{prompt}"):
        with pytest.raises(UnknownArgument, match="once each"):
            written_around(chat, template, "<image>")
    with pytest.raises(UnknownArgument, match="one turn"):
        written_around([*chat, *chat], TEMPLATE, "<image>")
