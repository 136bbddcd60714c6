"""Words to tokens and back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flmm_plugin.errors import EmptyPhrase, UnknownArgument
from flmm_plugin.phrases import decoded_offsets, merged_rows, span_tokens, text_offsets, trimmed, written_phrases


@pytest.fixture(scope="module")
def tokenizer(load_llava: Any) -> Any:
    return load_llava("mha").tokenizer


def test_phrases_are_tokenised_alone_and_separated(tokenizer: Any) -> None:
    phrases = ["a brown horse", " the red sofa ", "a"]
    ids, groups = written_phrases(tokenizer, phrases, ".")
    stop = tokenizer.encode(".", add_special_tokens=False)[-1]
    for phrase, group in zip(phrases, groups, strict=True):
        assert [ids[index] for index in group] == tokenizer.encode(phrase.strip(), add_special_tokens=False)
        assert ids[group[-1] + 1] == stop
    assert len(ids) == sum(len(group) + 1 for group in groups)
    assert len(written_phrases(tokenizer, phrases, "")[0]) == len(ids) - 3


@pytest.mark.parametrize("phrases", [[], [""], ["a cat", " \n"]])
def test_nothing_to_ground_is_refused(tokenizer: Any, phrases: list[str]) -> None:
    with pytest.raises(EmptyPhrase):
        written_phrases(tokenizer, phrases, ".")


@given(text=st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30))
@settings(max_examples=40, deadline=None)
def test_generated_tokens_cover_the_decoded_text(tokenizer: Any, text: str) -> None:
    ids = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
    decoded, offsets = decoded_offsets(tokenizer, ids)
    assert decoded == tokenizer.decode(ids, skip_special_tokens=True)
    assert "".join(decoded[start:end] for start, end in offsets) == decoded
    assert offsets[-1][0] == offsets[-1][1]  # the end token covers nothing


def test_both_ways_to_offsets_find_the_same_words(tokenizer: Any) -> None:
    text = "a man rides a brown horse, naïve 木 cat"
    ids, given_offsets = text_offsets(tokenizer, text)
    decoded, read_offsets = decoded_offsets(tokenizer, ids)
    assert decoded == text
    for words in ("man", "brown horse", "naïve", "木 cat"):
        span = (text.index(words), text.index(words) + len(words))
        tokens = span_tokens(text, given_offsets, span)
        assert tokenizer.decode([ids[index] for index in tokens]).strip(" ,") == words
        # Bytes of one character count to its last token when read while decoding, to each when given.
        assert set(span_tokens(text, read_offsets, span)) <= set(tokens)


def test_spans_are_trimmed_and_checked() -> None:
    text, offsets = "a cat  sits", [(0, 1), (1, 5), (5, 11)]
    assert trimmed(text, (1, 7)) == (2, 5)
    assert span_tokens(text, offsets, (1, 6)) == [1]
    assert span_tokens(text, offsets, (0, 11)) == [0, 1, 2]
    for span, message in (((5, 7), "no words"), ((3, 3), "no words"), ((0, 12), "not within"), ((-1, 2), "not within")):
        with pytest.raises(EmptyPhrase, match=message):
            span_tokens(text, offsets, span)


def test_rows_are_merged_per_phrase() -> None:
    rows = torch.tensor([1.0, 3.0, 10.0])[:, None, None, None].expand(3, 2, 2, 4)
    assert merged_rows(rows, [2, 1], "mean")[:, 0, 0, 0].tolist() == [2.0, 10.0]
    assert merged_rows(rows, [2, 1], "max")[:, 0, 0, 0].tolist() == [3.0, 10.0]
    with pytest.raises(UnknownArgument, match="'median'"):
        merged_rows(rows, [2, 1], "median")
