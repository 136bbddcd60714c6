"""Words to tokens and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flmm_plugin.capture import merged_rows
from flmm_plugin.errors import BadText, EmptyPhrase, UnknownArgument
from flmm_plugin.passages import Passage, decoded_offsets, plain_tokens, span_tokens, text_offsets
from flmm_plugin.text_checks import checked_phrases, checked_spans, has_words, trimmed


@pytest.fixture(scope="module")
def tokenizer(load_llava: Any) -> Any:
    return load_llava("mha").tokenizer


def test_phrases_are_tokenised_alone_and_separated(tokenizer: Any) -> None:
    phrases = ["a brown horse", " the red sofa ", "a"]
    passage = Passage.of_phrases(tokenizer, phrases, ".")
    ids, groups = passage.ids, passage.groups
    stop = tokenizer.encode(".", add_special_tokens=False)[-1]
    for phrase, group in zip(phrases, groups, strict=True):
        assert [ids[index] for index in group] == tokenizer.encode(phrase.strip(), add_special_tokens=False)
        assert ids[group[-1] + 1] == stop
    assert len(ids) == sum(len(group) + 1 for group in groups)
    assert len(Passage.of_phrases(tokenizer, phrases, "").ids) == len(ids) - 3


@pytest.mark.parametrize("phrases", [[], [""], ["a cat", " \n"], ["\u200b"], ["\ufeff\x00"], "a cat"])
def test_nothing_to_ground_is_refused(tokenizer: Any, phrases: list[str]) -> None:
    with pytest.raises(EmptyPhrase):
        Passage.of_phrases(tokenizer, phrases, ".")


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


@pytest.mark.parametrize("sign", ["<image>", "</s>", "<s>", "<pad>"])
def test_signs_of_the_model_are_plain_text_in_given_text(tokenizer: Any, sign: str) -> None:
    assert len(tokenizer.encode(sign, add_special_tokens=False)) == 1
    text = f"a {sign} red circle"
    ids, offsets = text_offsets(tokenizer, text)
    assert set(ids).isdisjoint(tokenizer.all_special_ids)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([ids[index] for index in span_tokens(text, offsets, (2, 2 + len(sign)))]).strip() == sign
    assert plain_tokens(tokenizer, text) == Passage.of_phrases(tokenizer, [text], "").ids == ids
    pieces = Passage.of_pieces(tokenizer, ["a", sign], [0])
    assert pieces.ids == plain_tokens(tokenizer, "a") + plain_tokens(tokenizer, sign)
    # The chat's own way of tokenising is as it was.
    assert len(tokenizer.encode(sign, add_special_tokens=False)) == 1


@given(text=st.text(st.characters(codec="utf-8"), max_size=30))
@settings(max_examples=40, deadline=None)
def test_other_text_has_the_tokens_that_it_always_had(tokenizer: Any, text: str) -> None:
    assert plain_tokens(tokenizer, text) == tokenizer.encode(text, add_special_tokens=False)


def test_a_sign_that_the_tokenizer_cannot_take_apart_is_refused() -> None:
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_tokens([AddedToken("<image>", special=False)])
    words = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
    words.image_token_id = 2
    assert plain_tokens(words, "a b") == [0, 1]  # a word that it does not know is no sign
    with pytest.raises(BadText, match="'<image>'"):
        plain_tokens(words, "a <image>")


@pytest.mark.parametrize("phrases", [[None], [5], [b"a"], ["a", ["b"]], None, 5, b"a", {"a": 1}, ["a \ud800"]])
def test_what_is_no_list_of_texts_is_refused(phrases: Any) -> None:
    with pytest.raises(BadText):
        checked_phrases(phrases)


def test_any_iterable_of_phrases_is_one() -> None:
    assert checked_phrases(word for word in ("a", "b")) == ["a", "b"]
    assert checked_phrases(np.array(["a"])) == ["a"]
    assert has_words("a\u200b")
    assert has_words("\U0001f415")


@pytest.mark.parametrize(
    "spans",
    [[("a", "b")], [(1,)], [(1, 2, 3)], [(0.5, 2)], [(True, 2)], [None], [5], (0, 5), "ab", None, {0: 5}, [(5, 2)],
     [(0, 99)], [(-1, 3)], [(2, 2)]],
)  # fmt: skip
def test_what_is_no_list_of_spans_of_the_text_is_refused(spans: Any) -> None:
    with pytest.raises(BadText, match="span"):
        checked_spans(spans, "a red circle")


def test_any_iterable_of_pairs_of_whole_numbers_is_spans() -> None:
    found = checked_spans(iter([np.array([2, 5]), [0, 1]]), "a red circle")
    assert found == [(2, 5), (0, 1)]
    assert all(type(one) is int for span in found for one in span)
