"""Options of chat: what the user gives counts as in the model's own `generate`, or is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import GenerationConfig, MaxLengthCriteria, StoppingCriteriaList, TextStreamer

from flmm_plugin.errors import EmptyPhrase, UnknownArgument
from flmm_plugin.grounded_lmm import GroundedLMM

from .test_grounding import heads_for

Load = Callable[..., Any]
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8))


@pytest.fixture
def lmm(load_family: Load) -> Any:
    return GroundedLMM(load_family("llava"))


def length(lmm: Any) -> int:
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    return int(lmm.backbone.encode([chat], [[PICTURE]]).length)


OPTIONS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "config": lambda lmm: {"generation_config": GenerationConfig(max_new_tokens=3, do_sample=False)},
    "config's length": lambda lmm: {"generation_config": GenerationConfig(max_length=length(lmm) + 5)},
    "config's end": lambda lmm: {"generation_config": GenerationConfig(max_new_tokens=9, eos_token_id=[70, 71, 72])},
    "both": lambda lmm: {"generation_config": GenerationConfig(max_new_tokens=3), "max_new_tokens": 4},
    "max_length": lambda lmm: {"max_length": length(lmm) + 4},
    "min_new_tokens": lambda lmm: {"min_new_tokens": 10, "max_new_tokens": 12},
    "num_beams": lambda lmm: {"num_beams": 3, "max_new_tokens": 5},
    "stopping": lambda lmm: {"stopping_criteria": StoppingCriteriaList([MaxLengthCriteria(length(lmm) + 2)])},
    "streamer": lambda lmm: {"streamer": TextStreamer(lmm.backbone.tokenizer), "max_new_tokens": 3},
    "pad_token_id": lambda lmm: {"pad_token_id": 5, "max_new_tokens": 5},
    "assistant_model": lambda lmm: {"assistant_model": lmm.backbone.model, "max_new_tokens": 5},
    "sampled": lambda lmm: {"do_sample": True, "top_k": 5, "max_new_tokens": 5},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_what_is_given_counts_as_in_generate(name: str, lmm: Any) -> None:
    options = OPTIONS[name](lmm)
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    inputs = lmm.backbone.encode([chat], [[PICTURE]]).inputs
    torch.manual_seed(0)
    expected = lmm.backbone.model.generate(**inputs, **options)[0, inputs["input_ids"].shape[1] :]
    torch.manual_seed(0)
    assert list(lmm.chat(PICTURE, "What?", **options).token_ids) == expected.tolist()


def test_the_form_of_the_output_and_the_length_without_any(lmm: Any) -> None:
    plain = lmm.chat(PICTURE, "What?", eos_token_id=-1)
    assert len(plain.token_ids) == 64
    assert lmm.chat(PICTURE, "What?", eos_token_id=-1, return_dict_in_generate=True) == plain
    config = GenerationConfig(do_sample=False, eos_token_id=-1, return_dict_in_generate=True)
    assert lmm.chat(PICTURE, "What?", generation_config=config) == plain


def test_a_last_token_that_pads_elsewhere_is_kept(lmm: Any) -> None:
    free = lmm.chat(PICTURE, "What?", eos_token_id=-1, max_new_tokens=3).token_ids
    assert lmm.chat(PICTURE, "What?", eos_token_id=-1, max_new_tokens=3, pad_token_id=free[-1]).token_ids == free


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_token": 3}, "did you mean 'max_new_tokens'"),
        ({"pixel_values": None}, "no argument 'pixel_values'"),
        ({"num_return_sequences": 2, "num_beams": 2}, "num_return_sequences"),
        ({"generation_config": GenerationConfig(num_return_sequences=2, num_beams=2)}, "num_return_sequences"),
        ({"output_scores": True}, "output_scores"),
        ({"generation_config": GenerationConfig(output_attentions=True)}, "output_attentions"),
        ({"generation_config": {"max_new_tokens": 3}}, "generation_config is a dict"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"do_sample": True, "temperature": -1.0}, "temperature"),
    ],
)
def test_what_one_answer_has_no_place_for_is_refused(options: dict[str, Any], message: str, lmm: Any) -> None:
    with pytest.raises(UnknownArgument, match=message):
        lmm.chat(PICTURE, "What?", **options)


@pytest.mark.parametrize("question", ["", " \n", [], "\ud800"])
@pytest.mark.parametrize("picture", [PICTURE, None])
def test_questions_without_words(question: Any, picture: Any, lmm: Any) -> None:
    with pytest.raises(EmptyPhrase, match=r"empty|surrogate"):
        lmm.chat(picture, question)


def test_an_answer_that_is_grounded_keeps_to_the_same_options(lmm: Any) -> None:
    grounded = GroundedLMM(lmm.backbone, heads_for(lmm.backbone))
    config = GenerationConfig(max_new_tokens=3, do_sample=False)
    found = grounded.ground_answer(PICTURE, "What?", generation_config=config)
    assert found.token_ids == lmm.chat(PICTURE, "What?", generation_config=config).token_ids
