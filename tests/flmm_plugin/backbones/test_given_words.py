"""Given words on every family: signs of the model are plain text, and nothing longer than its context runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from flmm_plugin.capture import read_sequence
from flmm_plugin.context_length import context_limit
from flmm_plugin.errors import BadText
from flmm_plugin.grounded_lmm import GroundedLMM
from flmm_plugin.passages import plain_tokens

OF_OTHERS = ("[SEG]", "<|im_end|>", "<image>", "<IMG_CONTEXT>", "<|image_pad|>", "<image_placeholder>")


def test_no_phrase_spells_a_token_of_the_model(
    family: str, load_family: Callable[..., Any], noise_image: Callable[..., Any]
) -> None:
    lmm = GroundedLMM(load_family(family))
    tokenizer, placeholder = lmm.backbone.tokenizer, lmm.backbone.processor.image_token
    signs = {placeholder, *tokenizer.all_special_tokens, *OF_OTHERS}
    for sign in signs:
        ids = plain_tokens(tokenizer, f"a {sign} dog")
        assert set(ids).isdisjoint({*tokenizer.all_special_ids, lmm.backbone.image_token_id})
        assert tokenizer.decode(ids) == f"a {sign} dog"
    # Every sign in one pass: what the model sees as places for pictures is what the picture has.
    maps = lmm.attention_maps(noise_image(90, 60), " ".join(sorted(signs))).maps
    assert bool(torch.isfinite(torch.from_numpy(maps)).all())


def test_what_is_longer_than_the_context_does_not_run(
    family: str, load_family: Callable[..., Any], noise_image: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    lmm, picture = GroundedLMM(load_family(family)), noise_image(90, 60)
    limit = context_limit(lmm.backbone)
    assert limit is not None
    chat: Any = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    encoded = lmm.backbone.encode([chat], [[picture]])
    just = encoded.extended([[5] * (limit - encoded.length)], lmm.backbone.pad_id)
    over = encoded.extended([[5] * (limit - encoded.length + 1)], lmm.backbone.pad_id)
    slots = [torch.tensor([just.length - 1])]

    def runs(*_: Any, **__: Any) -> Any:
        raise InterruptedError("the model runs")

    monkeypatch.setattr(type(lmm.backbone), "forward_body", runs)
    with pytest.raises(InterruptedError):
        read_sequence(lmm.backbone, just, slots, [just.image_tokens[0][0].slots])
    with pytest.raises(BadText, match=str(limit)):
        read_sequence(lmm.backbone, over, slots, [over.image_tokens[0][0].slots])
    for phrase in ("dog " * limit, "x" * 10_000_000):
        with pytest.raises(BadText, match=str(limit)):
            lmm.attention_maps(picture, phrase)
