"""Questions of the embedded LMM's training."""

from __future__ import annotations

import numpy as np

from flmm_plugin.tiny import language
from flmm_plugin.tiny.scenes import sample_scene
from tools.tiny import turns


def test_thoughts_are_worded_as_the_visual_chain_of_thought_asks_and_begins() -> None:
    from flmm_plugin.visual_cot import THINK, THOUGHT

    turn = turns.thought(sample_scene(np.random.default_rng(3), min_things=2), np.random.default_rng(4))
    assert turn.question.endswith("?" + THINK)
    assert (" " + turn.answer).startswith(THOUGHT)


def test_a_question_that_tells_its_answer_has_the_letter_before_it() -> None:
    for seed in range(60):
        rng = np.random.default_rng(seed)
        turn = turns.choice(sample_scene(rng), rng, (4,), told=1.0)
        stem, *lines, _ = turn.question.split("\n")
        options = dict(line.split(". ", 1) for line in lines)
        assert list(options) == list("ABCD")
        assert len(set(options.values())) == 4
        assert options[turn.answer] in stem


def test_mentions_of_a_thought_are_its_object() -> None:
    for seed in range(40):
        rng = np.random.default_rng(seed)
        scene = sample_scene(rng, min_things=2)
        turn = turns.thought(scene, rng)
        for part, start, end, index in turn.mentions:
            phrase = (turn.question if part == "question" else turn.answer)[start:end]
            named = [one for one in range(len(scene.things))
                     if phrase in language.referring_expressions(scene, scene.things[one])]  # fmt: skip
            assert named == [index]
