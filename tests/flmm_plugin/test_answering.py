"""Answer, then ground the answer as a whole, on a tiny random model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from flmm_plugin.errors import HeadsMismatch
from flmm_plugin.grounded_lmm import GroundedLMM
from flmm_plugin.heads import GroundingHeads, HeadsManifest

Load = Callable[..., Any]
QUESTION = "What is on the red sofa?"


@pytest.fixture(scope="module")
def lmm(load_llava: Load) -> GroundedLMM:
    torch.manual_seed(0)
    small = {"base_channels": 4, "upsample_to": 16}
    manifest = HeadsManifest(backbone="mha", layers=3, heads=4, hidden_size=64, decoder=small, sam=None)
    return GroundedLMM(copy.copy(load_llava("mha")), GroundingHeads.build(manifest).eval())


def test_without_a_beginning_the_answer_is_the_chat_s(lmm: GroundedLMM, noise_image: Load) -> None:
    image = noise_image(50, 70)
    chatted = lmm.chat(image, QUESTION, max_new_tokens=8, do_sample=False)
    answer = lmm.ground_answer(image, QUESTION, max_new_tokens=8, do_sample=False)
    assert (answer.text, answer.token_ids) == (chatted.text, chatted.token_ids)
    (grounding,) = answer.groundings
    assert grounding.span is not None
    assert grounding.phrase == answer.text[slice(*grounding.span)] == answer.text.strip()
    assert grounding.mask.shape == (70, 50)


def test_what_was_given_is_not_grounded(lmm: GroundedLMM, noise_image: Load) -> None:
    image = noise_image(50, 70)
    answer = lmm.ground_answer(image, QUESTION, begin="It is the", max_new_tokens=8, do_sample=False)
    assert answer.text.startswith("It is the")
    (grounding,) = answer.groundings
    assert grounding.span is not None
    assert grounding.span[0] >= len("It is the")
    assert grounding.phrase == answer.text[slice(*grounding.span)]

    # A second way to the same mask: the whole text teacher-forced behind the question, read in one pass.
    tokenizer = lmm.backbone.tokenizer
    forced = tokenizer.encode("It is the", add_special_tokens=False)
    chat = [[{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]]
    encoded = lmm.backbone.encode(chat, [[image]]).extended([forced], lmm.backbone.pad_id)
    generated = lmm.backbone.model.generate(**encoded.inputs, max_new_tokens=8, do_sample=False, pad_token_id=0)
    assert list(answer.token_ids) == generated[0, encoded.length :].tolist()
    text = tokenizer.decode([*forced, *answer.token_ids], skip_special_tokens=True)
    assert text == answer.text
    if tokenizer.encode(text, add_special_tokens=False) == [*forced, *answer.token_ids]:
        (again,) = lmm.ground_text(image, QUESTION, text, [grounding.span])
        assert np.abs(again.logits - grounding.logits).max() < 2e-3


def test_the_beginning_changes_what_is_said(lmm: GroundedLMM, noise_image: Load) -> None:
    texts = {
        lmm.ground_answer(noise_image(), QUESTION, begin=begin, max_new_tokens=6, do_sample=False).token_ids
        for begin in ("", "a man rides", "the dog")
    }
    assert len(texts) > 1


def test_an_answer_that_ends_at_once_has_no_mask(lmm: GroundedLMM, noise_image: Load) -> None:
    first = lmm.ground_answer(noise_image(), QUESTION, max_new_tokens=1, do_sample=False).token_ids[0]

    class Names:
        """The tokenizer, to which the first word of the answer is a token without text."""

        def __getattr__(self, name: str) -> Any:
            return getattr(lmm.backbone.tokenizer, name)

        @property
        def all_special_ids(self) -> list[int]:
            return [*lmm.backbone.tokenizer.all_special_ids, first]

    mute = copy.copy(lmm)
    mute.backbone = copy.copy(lmm.backbone)
    mute.backbone.tokenizer = Names()
    answer = mute.ground_answer(noise_image(), QUESTION, max_new_tokens=1, do_sample=False)
    assert answer.token_ids == (first,)
    assert answer.groundings == ()


def test_a_model_without_heads_is_refused(lmm: GroundedLMM, noise_image: Load) -> None:
    plain = GroundedLMM(lmm.backbone, None)
    with pytest.raises(HeadsMismatch, match="chat only"):
        plain.ground_answer(noise_image(), QUESTION)
