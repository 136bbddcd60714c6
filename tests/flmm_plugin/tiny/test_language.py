"""What is said about a scene is true, unambiguous, and its phrases stand where the offsets say."""

from __future__ import annotations

import numpy as np
import pytest

from flmm_plugin.tiny import language
from flmm_plugin.tiny.scenes import PLACES, Scene, Thing, sample_scene


def _things(phrase: str, scene: Scene) -> list[int]:
    """An independent reading of a phrase: which objects does it fit?"""
    head, _, place = phrase.partition(" at the ")
    words = head.split()
    fits = []
    for index, thing in enumerate(scene.things):
        named = {thing.size, thing.color, thing.shape, "object"}
        if all(word in named for word in words) and (not place or PLACES[thing.place] == place):
            fits.append(index)
    return fits


@pytest.mark.parametrize("seed", range(40))
def test_every_mention_names_exactly_its_object(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng, min_things=2)
    turns = [language.caption(scene), language.refer_list(scene, rng)]
    turns += [language.question(scene, kind, rng) for kind in language.QUESTION_KINDS]
    assert sum(len(turn.mentions) for turn in turns) >= 2 * len(scene.things)
    for turn in turns:
        for part, start, end, index in turn.mentions:
            phrase = (turn.question if part == "question" else turn.answer)[start:end]
            assert _things(phrase, scene) == [index], (phrase, scene)


@pytest.mark.parametrize("kind", ["color", "size", "shape", "where"])
def test_attribute_answers_are_true_and_not_given_away(kind: str) -> None:
    for seed in range(60):
        rng = np.random.default_rng(seed)
        scene = sample_scene(rng)
        turn = language.attribute_question(scene, kind, rng)
        ((_, start, end, index),) = turn.mentions
        thing = scene.things[index]
        truth = {"color": thing.color, "size": thing.size, "shape": thing.shape, "where": thing.place_name}[turn.kind]
        assert turn.answer == truth
        words = turn.question[start:end].split(" at the ")
        assert truth not in words[0].split()
        assert turn.kind != "where" or len(words) == 1


@pytest.mark.parametrize("category", ["existence", "count", "position", "color"])
@pytest.mark.parametrize("truth", [True, False])
def test_yes_and_no_are_true(category: str, truth: bool) -> None:
    for seed in range(60):
        rng = np.random.default_rng(seed)
        scene = sample_scene(rng)
        turn = language.yes_no_question(scene, rng, truth=truth, category=category, short_share=1.0)
        assert turn.answer == ("Yes" if truth else "No")
        question = turn.question.removesuffix(language.SHORT_SUFFIX)
        if question.endswith("in this image?") and "object" not in question and question.startswith("Is there a "):
            color, shape = question.removeprefix("Is there a ").removesuffix(" in this image?").split()
            assert any((t.color, t.shape) == (color, shape) for t in scene.things) is truth
        if question.startswith("Is the ") and turn.mentions:
            thing = scene.things[turn.mentions[0][3]]
            told = question.removesuffix("?").rsplit(" at the ", 1)[-1] if category == "position" else ""
            if told in PLACES:
                assert (told == thing.place_name) is truth


def test_counts_are_right() -> None:
    things = tuple(
        Thing(color, "star", "small", place, 0.1, 0.1, 0.1, 1.0) for place, color in enumerate(["red", "red", "blue"])
    )
    scene = Scene(things, "plain", (0.5, 0.5, 0.5), (0.0, 0.0, 0.0), 0)
    seen = {}
    for seed in range(200):
        turn = language.count_question(scene, np.random.default_rng(seed))
        seen[turn.question.removesuffix(language.SHORT_SUFFIX)] = turn.answer
    assert seen["How many objects are there?"] == "3"
    assert seen["How many red objects are there?"] == "2"
    assert seen["How many stars are there?"] == "3"


def test_the_letter_stands_before_the_answer() -> None:
    for seed in range(60):
        rng = np.random.default_rng(seed)
        scene = sample_scene(rng)
        turn = language.choice_question(scene, rng)
        lines = dict(line.split(". ", 1) for line in turn.question.split("\n")[1:-1])
        assert list(lines) == list("ABCD")
        assert len(set(lines.values())) == 4
        thing = scene.things[turn.mentions[0][3]]
        assert lines[turn.answer] in (thing.color, thing.shape, thing.place_name)


def test_captions_go_in_reading_order() -> None:
    scene = sample_scene(np.random.default_rng(11), min_things=4)
    places = [scene.things[index].place for *_, index in language.caption(scene).mentions]
    assert places == sorted(places)


def test_identical_twins_are_never_asked_where_they_are() -> None:
    twin = [Thing("red", "star", "small", place, 0.1, 0.1, 0.1, 1.0) for place in (0, 8)]
    scene = Scene(tuple(twin), "plain", (0.5, 0.5, 0.5), (0.0, 0.0, 0.0), 0)
    kinds = {language.attribute_question(scene, "where", np.random.default_rng(s)).kind for s in range(20)}
    assert kinds == {"color"}


def test_an_unknown_kind_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="unknown question kind 'mood'"):
        language.question(sample_scene(np.random.default_rng(0)), "mood", np.random.default_rng(0))


def test_what_must_stay_unsaid_stays_unsaid() -> None:
    for seed in range(60):
        rng = np.random.default_rng(seed)
        scene = sample_scene(rng, min_things=2)
        turn = language.lookup_question(scene, rng, kinds=("where",), unsaid=("color",))
        if turn.kind != "where":  # no object of this scene can be singled out so
            continue
        ((_, start, end, _),) = turn.mentions
        assert not set(turn.question[start:end].split()) & {thing.color for thing in scene.things}
