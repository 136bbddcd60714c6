"""The tokenizer of the embedded model."""

from __future__ import annotations

from flmm_plugin.tiny import lmm


def test_any_text_round_trips_and_world_words_are_single_tokens() -> None:
    tokenizer = lmm.build_tokenizer()
    for text in ("A zebra, 3 cafés & <odd> text!", "small purple heart at the top left."):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]).strip() == text
    assert len(tokenizer("large orange triangle", add_special_tokens=False)["input_ids"]) == 3
