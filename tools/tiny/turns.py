"""Questions and answers that the embedded LMM learns from and that no measure of the package asks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from flmm_plugin.tiny import language
from flmm_plugin.tiny.scenes import Scene

# The first look of a visual chain of thought; flmm_plugin.visual_cot asks and begins the answer in these words.
THINK_SUFFIX = "First think which object in this image is most relevant to the question."
THOUGHT_START = "The object most relevant to the question is"


def sample_turns(scene: Scene, kinds: Sequence[str], rng: np.random.Generator, count: int) -> list[language.Turn]:
    """A caption, a list of referring expressions, a thought and ``count`` questions of some kinds, in any order."""
    turns = [language.caption(scene), language.refer_list(scene, rng), thought(scene, rng)]
    order = rng.permutation(len(kinds))
    for i in range(count):
        kind = kinds[int(order[i % len(kinds)])]
        if kind == "choice":  # fewer options are easier to tell apart at first
            turns.append(choice(scene, rng, (2, 3, 4, 4), told=0.35))
        else:
            turns.append(language.question(scene, kind, rng))
    return turns


def thought(scene: Scene, rng: np.random.Generator) -> language.Turn:
    """Return a question and, as its answer, the whole description of the object that it is about.

    A visual chain of thought looks for that object first; `flmm_plugin.visual_cot` asks in these words.
    """
    asked = language.lookup_question(scene, rng)
    ((_, start, end, index),) = asked.mentions
    phrase = language.describe(scene.things[index])
    said = f"{THOUGHT_START} the "
    stem = asked.question.replace(language.SHORT_SUFFIX, "")
    mentions = (("question", start, end, index), ("answer", len(said), len(said) + len(phrase), index))
    return language.Turn("thought", stem + THINK_SUFFIX, f"{said}{phrase}.", mentions)


def choice(scene: Scene, rng: np.random.Generator, options: tuple[int, ...], told: float) -> language.Turn:
    """Return a multiple-choice question.

    Args:
        scene: The scene.
        rng: Source of randomness.
        options: Numbers of options to draw from.
        told: Share of questions that name the answer themselves ("What color is the red circle?"), so that text alone
            solves them: a first step towards matching an answer with its letter.
    """
    # A shape is the hardest to match with its letter, so it is asked most, and given away more often.
    kind = str(rng.choice(("color", "shape", "shape", "shape", "where", "where")))
    number = int(rng.choice(options))
    share = 2 * told if kind == "shape" else told
    if rng.random() >= share:
        return language.choice_question(scene, rng, options=number, kinds=(kind,))
    thing = scene.things[int(rng.integers(len(scene.things)))]
    answer = language.attribute_of(thing, kind)
    phrase = language.pick(rng, [one for one in language.referring_expressions(scene, thing) if answer in one])
    asked = language.Turn(kind, language.attribute_template(kind).format(phrase), answer)
    return language.with_options(asked, rng, number)


def drill_turns(scene: Scene, rng: np.random.Generator) -> list[language.Turn]:
    """A dozen short questions: things to be looked for by what they are, numbers, yes or no.

    Most look for a thing by its shape. Left to itself the model learns to look for colours only: a colour is in every
    token of a thing, a shape in none of them alone.
    """
    makers: list[Callable[[], language.Turn]] = [
        *[lambda: language.lookup_question(scene, rng, kinds=("where",), unsaid=("color",))] * 2,
        *[lambda: language.lookup_question(scene, rng, kinds=("color", "size"), unsaid=("color",))] * 2,
        lambda: language.lookup_question(scene, rng, kinds=("where",)),
        lambda: language.lookup_question(scene, rng),
        *[lambda: language.count_question(scene, rng)] * 2,
        *[lambda: language.count_question(scene, rng, by_shape=True)] * 3,
        *[lambda: language.yes_no_question(scene, rng, short_share=1.0)] * 3,
        lambda: language.yes_no_question(scene, rng, short_share=0.0),
    ]
    turns: dict[str, language.Turn] = {}  # by question: asking the same twice of one picture teaches nothing
    for make in makers:
        for _ in range(3):
            turn = make()
            if turn.question not in turns:
                turns[turn.question] = turn
                break
    return list(turns.values())
