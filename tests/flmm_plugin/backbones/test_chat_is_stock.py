"""Chat is the plain model's: the same ids as its own `generate` on what its own processor makes, or a named error.

The other arm loads model and processor straight from the folder; nothing of this package is in it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from flmm_plugin.errors import BackboneUnsupported, BadImage, FlmmError
from flmm_plugin.grounded_lmm import GroundedLMM

from .families import FAMILIES
from .test_grounding import heads_for

Load = Callable[..., Any]
GREEDY: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False}
# Width, height: of the paper's shapes, lines of pixels, 100 : 1, a single pixel.
SIZES = st.one_of(
    st.tuples(st.integers(1, 400), st.integers(1, 400)),
    st.sampled_from([(1, 3000), (3000, 1), (1000, 10), (10, 1000), (1, 1), (333, 2)]),
)


def noise(size: tuple[int, int]) -> Image.Image:
    width, height = size
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8))


def user(text: str, images: int = 1) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image"}] * images + [{"type": "text", "text": text}]}]


@pytest.fixture(scope="session")
def stock(family_folder: Callable[[str], Path]) -> Load:
    """``stock(family)(chats, pictures, **options)``: ids of each answer by transformers alone."""
    loaded: dict[str, Any] = {}

    def of(family: str) -> Load:
        if not FAMILIES[family].native:
            pytest.skip("no class of transformers loads this family: there is no stock answer")
        if family not in loaded:
            folder = family_folder(family)
            processor = AutoProcessor.from_pretrained(folder)
            processor.tokenizer.padding_side = "left"
            loaded[family] = AutoModelForImageTextToText.from_pretrained(folder).eval(), processor
        model, processor = loaded[family]

        def answer(chats: list[Any], pictures: list[list[Image.Image]], **options: Any) -> torch.Tensor:
            texts = [processor.apply_chat_template(chat, add_generation_prompt=True) for chat in chats]
            # One list for each chat where the processor tells chats with one picture from others.
            nested = FAMILIES[family].model_type == "llava_onevision"
            images = [some for some in pictures if some] if nested else [one for some in pictures for one in some]
            inputs = processor(images=images or None, text=texts, padding=True, return_tensors="pt")
            with torch.no_grad():
                found: torch.Tensor = model.generate(**inputs, **{**GREEDY, **options})
            return found[:, inputs["input_ids"].shape[1] :]

        return answer

    return of


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(size=SIZES)
def test_pictures_of_any_shape(family: str, size: tuple[int, int], stock: Load, load_family: Load) -> None:
    plain, lmm = stock(family), GroundedLMM(load_family(family))
    chat, picture = user("What is it?"), noise(size)
    try:
        expected = plain([chat], [[picture]])[0]
    except Exception:  # whatever the stock processor says of such a picture
        with pytest.raises(BadImage):
            lmm.chat(picture, "What is it?", **GREEDY)
        return
    found = lmm.chat(picture, "What is it?", **GREEDY).token_ids
    assert torch.equal(torch.tensor(found), expected[: len(found)])


@settings(max_examples=2, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.tuples(st.integers(2, 200), st.integers(2, 200)), min_size=4, max_size=4))
def test_batches_several_pictures_and_none(
    family: str, sizes: list[tuple[int, int]], stock: Load, load_family: Load
) -> None:
    pictures = [noise(size) for size in sizes]
    given_pictures = [pictures[:1], pictures[1:3], [], pictures[3:]]
    chats = [user("What is it?"), user("Which of the two?", 2), user("Who are you?", 0), user("Where? " * 9)]
    options = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": -1}
    expected = stock(family)(chats, given_pictures, **options)
    found = GroundedLMM(load_family(family)).chat_batch(chats, given_pictures, **options)
    assert torch.equal(torch.tensor([one.token_ids for one in found]), expected)
    alone = stock(family)([user("Who are you?", 0)], [[]], **options)
    assert torch.equal(
        torch.tensor([GroundedLMM(load_family(family)).chat(None, "Who are you?", **options).token_ids]), alone
    )


@pytest.mark.parametrize("size", [(1, 3000), (3000, 1), (1000, 10)])
def test_grounding_refuses_by_name_or_gives_a_mask_of_the_picture(
    family: str, size: tuple[int, int], load_family: Load
) -> None:
    lmm = GroundedLMM(load_family(family), heads_for(load_family(family)))
    try:
        found = lmm.ground(noise(size), ["the dog"])[0].mask.shape
    except (BadImage, BackboneUnsupported) as exc:
        found = str(exc)
    assert found == (size[1], size[0]) or f"{size[0]} x {size[1]}" in found


def test_a_template_of_any_kind(load_family: Load) -> None:
    backbone = load_family("llava")
    lmm, own = GroundedLMM(backbone), backbone.processor.chat_template
    try:
        backbone.processor.chat_template = "{{ raise_exception('only two turns') }}"
        with pytest.raises(FlmmError, match="only two turns"):
            lmm.chat(noise((40, 30)), "What?")
        backbone.processor.chat_template = {"default": own, "tool_use": "nothing"}
        assert lmm.chat(noise((40, 30)), "What?", **GREEDY).token_ids
    finally:
        backbone.processor.chat_template = own
