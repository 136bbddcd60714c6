"""Given texts on a tiny random model: pieces tokenised alone, batches, keywords, refusals."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from flmm_plugin.errors import EmptyPhrase, HeadsMismatch
from flmm_plugin.grounded_lmm import GroundedLMM
from flmm_plugin.heads import GroundingHeads, HeadsManifest
from flmm_plugin.passages import GivenText, Passage

QUESTION = "Please give me a description of the image."
PIECES = ("There is", " a man", " near", " the big table", ".")


def make_heads(**changes: Any) -> GroundingHeads:
    torch.manual_seed(0)
    facts: dict[str, Any] = {
        "backbone": "mha", "layers": 3, "heads": 4, "hidden_size": 64, "sam": None,
        "decoder": {"base_channels": 4, "upsample_to": 16}, "keyword_selector": True,
    }  # fmt: skip
    return GroundingHeads.build(HeadsManifest(**{**facts, **changes})).eval()


@pytest.fixture(scope="module")
def lmm(load_llava: Callable[..., Any]) -> GroundedLMM:
    backbone = copy.copy(load_llava("mha"))
    backbone.name = "somewhere/mha"
    return GroundedLMM(backbone, make_heads())


def test_pieces_keep_their_own_tokens(lmm: GroundedLMM) -> None:
    tokenizer = lmm.backbone.tokenizer
    passage = Passage.of_pieces(tokenizer, PIECES, range(len(PIECES)))
    ids, groups = passage.ids, passage.groups
    assert [index for group in groups for index in group] == list(range(len(ids)))
    for piece, group in zip(PIECES, groups, strict=True):
        assert [ids[index] for index in group] == tokenizer.encode(piece, add_special_tokens=False)
    assert Passage.of_pieces(tokenizer, ["", "a"], [1]).groups == [[0]]


def test_spans_are_those_of_the_words_in_the_joined_text() -> None:
    one = GivenText("x.png", QUESTION, PIECES, (1, 3))
    assert one.text == "There is a man near the big table."
    assert [one.text[start:end] for start, end in one.spans] == ["a man", "the big table"]


def test_masks_equal_those_of_spans_where_the_tokens_are_the_same(lmm: GroundedLMM, noise_image: Any) -> None:
    """The tokenizer splits at spaces, so that these pieces have the tokens of the whole text."""
    picture = noise_image(90, 60)
    one = GivenText(picture, QUESTION, PIECES, (1, 3))
    whole = lmm.backbone.tokenizer.encode(one.text, add_special_tokens=False)
    assert Passage.of_pieces(lmm.backbone.tokenizer, PIECES, []).ids == whole
    [found] = lmm.ground_pieces([one])
    expected = lmm.ground_text(picture, QUESTION, one.text, one.spans)
    assert [(one.phrase, one.span) for one in found] == [("a man", (9, 14)), ("the big table", (20, 33))]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.mask.shape == (60, 90)
        np.testing.assert_allclose(ours.logits, theirs.logits, atol=1e-5)
    assert not np.array_equal(found[0].logits, found[1].logits)


def test_a_batch_gives_what_each_text_gives_alone(lmm: GroundedLMM, noise_image: Any) -> None:
    texts = [
        GivenText(noise_image(90, 60, 1), QUESTION, PIECES, (1, 3)),
        GivenText(noise_image(50, 80, 2), QUESTION, ("A horse.",), ()),
        GivenText(noise_image(40, 40, 3), "What is it?", ("the brown horse", " eats"), (0,)),
    ]
    together = lmm.ground_pieces(texts)
    assert [len(found) for found in together] == [2, 0, 1]
    assert together[2][0].mask.shape == (40, 40)
    for one, found in zip(texts, together, strict=True):
        for ours, alone in zip(found, lmm.ground_pieces([one])[0], strict=True):
            np.testing.assert_allclose(ours.logits, alone.logits, atol=1e-4)
    assert lmm.ground_pieces([texts[1]]) == [[]]


@pytest.mark.parametrize(("pieces", "index"), [((" ", "a"), 0), (("", "a"), 0), (("a",), 1), (("a",), -1)])
def test_pieces_without_words_are_refused(
    lmm: GroundedLMM, noise_image: Any, pieces: tuple[str, ...], index: int
) -> None:
    with pytest.raises(EmptyPhrase, match="no words to ground"):
        lmm.ground_pieces([GivenText(noise_image(), QUESTION, pieces, (index,))])


def test_keywords_are_runs_of_tokens_over_the_threshold(lmm: GroundedLMM, noise_image: Any) -> None:
    texts = [
        GivenText(noise_image(90, 60, 1), QUESTION, PIECES),
        GivenText(noise_image(40, 40, 2), "What?", ("a man",)),
    ]
    everything = lmm.select_keywords(texts, threshold=-1.0)
    assert [[(word.phrase, word.span) for word in found] for found in everything] == [
        [("There is a man near the big table.", (0, 34))],
        [("a man", (0, 5))],
    ]
    assert lmm.select_keywords(texts, threshold=1.0) == [[], []]
    assert lmm.select_keywords([]) == []
    for word in lmm.select_keywords(texts, threshold=0.5)[0]:
        assert texts[0].text[slice(*word.span)] == word.phrase


def test_keywords_follow_the_selector_s_scores(lmm: GroundedLMM, noise_image: Any) -> None:
    """Scores of the same tokens, read by `grounded_chat`'s way: hidden states after the final norm."""
    from flmm_plugin.capture import read_sequence
    from flmm_plugin.passages import text_offsets

    one = GivenText(noise_image(90, 60, 1), QUESTION, PIECES)
    ids, offsets = text_offsets(lmm.backbone.tokenizer, one.text)
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
    encoded = lmm.backbone.encode([chat], [[one.image]]).extended([ids], lmm.backbone.pad_id)  # type: ignore[list-item]
    slots = torch.arange(encoded.length - len(ids), encoded.length)
    capture = read_sequence(lmm.backbone, encoded, [slots], [encoded.image_tokens[0][0].slots])
    assert lmm.heads is not None
    assert lmm.heads.keyword_selector is not None
    with torch.no_grad():
        scores = lmm.heads.keyword_selector(capture.hidden(0)[:, -1])
    middle = float(scores.median())
    picked = {at for word in lmm.select_keywords([one], threshold=middle)[0] for at in range(*word.span)}
    for score, (start, end) in zip(scores.tolist(), offsets, strict=True):
        solid = [at for at in range(start, end) if one.text[at] != " "]
        if abs(score - middle) > 1e-6:
            assert all((at in picked) == (score > middle) for at in solid)


def test_heads_that_cannot_are_refused(lmm: GroundedLMM, noise_image: Any) -> None:
    text = GivenText(noise_image(), QUESTION, PIECES, (1,))
    with pytest.raises(HeadsMismatch, match="selector"):
        GroundedLMM(lmm.backbone, make_heads(keyword_selector=False)).select_keywords([text])
    with pytest.raises(HeadsMismatch, match="chat only"):
        GroundedLMM(lmm.backbone).ground_pieces([text])
    with pytest.raises(EmptyPhrase, match="no keywords"):
        lmm.select_keywords([GivenText(noise_image(), QUESTION, ("",))])


def test_the_template_of_the_heads_stands_around_the_question(lmm: GroundedLMM, noise_image: Any) -> None:
    one = GivenText(noise_image(90, 60), QUESTION, PIECES, (1,))
    other = GroundedLMM(lmm.backbone, make_heads(template="USER: {image} {prompt} ASSISTANT:"))
    assert other.heads is not None
    assert lmm.heads is not None
    other.heads.load_state_dict(lmm.heads.state_dict())
    assert not np.allclose(lmm.ground_pieces([one])[0][0].logits, other.ground_pieces([one])[0][0].logits)
