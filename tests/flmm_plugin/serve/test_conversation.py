"""A conversation: what is streamed, grounded, ranked and mixed."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from PIL import Image

from flmm_plugin.errors import EmptyPhrase, FlmmError, UnknownArgument
from flmm_plugin.geometry import ImageGrid
from flmm_plugin.grounded_lmm import GroundedLMM
from flmm_plugin.serve.conversation import Cells, Conversation, mixed, words_of
from flmm_plugin.tiny.scenes import Scene, render, sample_scene

ASK = "Please give me a description of the image."


@pytest.fixture(scope="module")
def lmm() -> GroundedLMM:
    return GroundedLMM.from_pretrained("flmm_tiny")


@pytest.fixture(scope="module")
def scene() -> Scene:
    return sample_scene(np.random.default_rng(7), min_things=3)


@pytest.fixture
def conversation(lmm: GroundedLMM, scene: Scene) -> Conversation:
    return Conversation(lmm, Image.fromarray(render(scene, 224)))


def test_the_answer_is_streamed_and_is_that_of_plain_chat(conversation: Conversation) -> None:
    seen = list(conversation.ask(ASK))
    (turn,) = conversation.turns
    assert len(seen) > 5
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(seen))
    assert seen[-1] == turn.text.strip()
    plain = conversation.lmm.chat(conversation.picture, ASK)
    assert (turn.text, turn.stock, turn.same) == (plain.text, plain.text, True)
    assert turn.found


def test_a_second_turn_is_answered_behind_the_first(conversation: Conversation) -> None:
    first = list(conversation.ask(ASK))[-1]
    list(conversation.ask("What color is the star?"))
    chat = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": ASK}]},
        {"role": "assistant", "content": [{"type": "text", "text": conversation.turns[0].text}]},
        {"role": "user", "content": [{"type": "text", "text": "What color is the star?"}]},
    ]
    assert conversation.turns[0].text.strip() == first
    assert conversation.turns[1].text == conversation.lmm.chat(conversation.picture, chat).text


def test_a_word_has_the_mask_of_what_it_is_part_of_or_its_own(conversation: Conversation) -> None:
    list(conversation.ask(ASK))
    (turn,) = conversation.turns
    named = turn.found[0]
    assert named.span is not None
    spans = words_of(turn.text)
    inside = next(number for number, span in enumerate(spans) if span[0] >= named.span[0])
    assert conversation.find_word(0, "answer", inside) is named
    own = conversation.find_word(0, "question", 1)
    assert own.phrase == "give"
    assert turn.asked == [own]
    assert conversation.find_word(0, "question", 1) is own
    with pytest.raises(UnknownArgument, match="word"):
        conversation.find_word(0, "answer", 999)
    with pytest.raises(UnknownArgument, match="turn"):
        conversation.find_word(1, "answer", 0)


def test_typed_phrases_are_kept_once(conversation: Conversation, scene: Scene) -> None:
    thing = scene.things[0]
    first = conversation.find(f"{thing.color} {thing.shape}")
    conversation.find(f"{thing.color} {thing.shape}")
    assert [one.phrase for one in conversation.shown(-1)] == [first.phrase]
    with pytest.raises(FlmmError):
        conversation.find("  ")


def test_words_of_a_thing_look_at_its_place(conversation: Conversation) -> None:
    list(conversation.ask(ASK))
    hits = 0
    found = conversation.turns[0].found
    for one in found:
        x0, y0, x1, y1 = (side / 224 for side in one.box)
        ranked = conversation.words_at((x0, y0, x1, y1))
        assert [word.lift for word in ranked] == sorted((word.lift for word in ranked), reverse=True)
        hits += ranked[0].word in one.phrase
    assert hits >= len(found) - 1


def test_nothing_said_and_odd_regions_are_refused(conversation: Conversation) -> None:
    with pytest.raises(EmptyPhrase, match="said"):
        conversation.words_at((0, 0, 1, 1))
    with pytest.raises(EmptyPhrase):
        list(conversation.ask("  "))
    list(conversation.ask("Is there a star?"))
    with pytest.raises(UnknownArgument, match="region"):
        conversation.words_at((0.5, 0, 0.2, 1))


def test_a_model_that_fails_ends_the_stream(conversation: Conversation, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object, **kwargs: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(conversation.lmm, "grounded_chat", fails)
    with pytest.raises(RuntimeError, match="broken"):
        list(conversation.ask(ASK))
    assert conversation.turns == []


def test_lift_is_the_share_of_attention_over_the_share_of_area() -> None:
    grid = ImageGrid.from_squash(40, 40, 4, 4, 1)
    maps = np.zeros((1, 2, 4, 4), np.float32)
    maps[0, :, 0, 0] = 1.0
    maps[0, 1, 3, 3] = 1.0
    # A quarter of the picture holds all of one map and half of the other.
    assert Cells.of(grid, (0, 0, 0.5, 0.5)).lift(maps) == pytest.approx((1 + 0.5) / 2 / 0.25)
    assert Cells.of(grid, (0, 0, 1, 1)).lift(maps) == pytest.approx(1)


def test_a_mixture_weighs_every_map_alike() -> None:
    maps = np.zeros((2, 1, 2, 2))
    maps[0, 0, 0, 0], maps[1, 0, 1, 1] = 100.0, 1.0
    assert mixed(maps, [(0, 0), (1, 0)]).tolist() == [[0.5, 0], [0, 0.5]]
    assert mixed(maps, [(1, 0)]).tolist() == [[0, 0], [0, 1]]
    assert mixed(maps, []).tolist() == [[0.5, 0], [0, 0.5]]
