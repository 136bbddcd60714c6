"""The tokenizer and the first weights of the embedded model."""

from __future__ import annotations

import torch

from flmm_plugin.tiny import untrained
from tools.tiny import lmm


def test_any_text_round_trips_and_world_words_are_single_tokens() -> None:
    tokenizer = lmm.build_tokenizer()
    for text in ("A zebra, 3 cafés & <odd> text!", "small purple heart at the top left."):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]).strip() == text
    assert len(tokenizer("large orange triangle", add_special_tokens=False)["input_ids"]) == 3


def test_the_shipped_configuration_gives_the_weights_that_a_training_begins_with() -> None:
    from transformers import AutoConfig, AutoTokenizer

    from flmm_plugin.tiny import tiny_path

    tokenizer = AutoTokenizer.from_pretrained(tiny_path())
    built = lmm.build_model(len(tokenizer), tokenizer.convert_tokens_to_ids(lmm.IMAGE_TOKEN), seed=5)
    again = untrained.fresh_model(AutoConfig.from_pretrained(tiny_path()), seed=5)
    first, second = built.state_dict(), again.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
