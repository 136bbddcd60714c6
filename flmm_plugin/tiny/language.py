"""What can be said about a scene: captions, referring expressions and questions with exact answers.

Nothing here knows where a pixel is: the words come from the scene's description alone (colour, shape, size, place),
so a model trained on this language has seen text and pictures, never a mask.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flmm_plugin.tiny.scenes import COLORS, PLACES, SHAPES, Scene, Thing

DESCRIBE_PROMPT = "Please give me a description of the image."
REFER_PROMPT = "Please name the objects in the image."
SHORT_SUFFIX = "\nAnswer the question using a single word or phrase."
CHOICE_SUFFIX = "\nAnswer with the option's letter from the given choices directly."
# The first look of a visual chain of thought; flmm_plugin.visual_cot asks and begins the answer in these words.
THINK_SUFFIX = "First think which object in this image is most relevant to the question."
THOUGHT_START = "The object most relevant to the question is"
LETTERS = "ABCD"
# What a referring expression may mention, shortest first.
_FORMS: tuple[tuple[str, ...], ...] = (
    ("shape",),
    ("color",),
    ("color", "shape"),
    ("size", "shape"),
    ("size", "color"),
    ("size", "color", "shape"),
    ("place",),
    ("shape", "place"),
    ("color", "place"),
    ("color", "shape", "place"),
    ("size", "color", "shape", "place"),
)
NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five")
QUESTION_KINDS: tuple[str, ...] = ("color", "size", "shape", "where", "count", "yes_no", "choice")


@dataclass(frozen=True)
class Turn:
    """One question and its answer.

    ``mentions`` are the phrases of the question and the answer that name exactly one object of the scene: (part,
    start, end, index into ``scene.things``) with character offsets in ``question`` or ``answer``; ``kind`` is one of
    :data:`QUESTION_KINDS`, ``"caption"``, ``"refer"`` or ``"thought"``.
    """

    kind: str
    question: str
    answer: str
    mentions: tuple[tuple[str, int, int, int], ...] = ()


def matches(
    thing: Thing,
    *,
    color: str | None = None,
    shape: str | None = None,
    size: str | None = None,
    place: int | None = None,
) -> bool:
    """Whether the object has every attribute that is given."""
    return (
        (color is None or thing.color == color)
        and (shape is None or thing.shape == shape)
        and (size is None or thing.size == size)
        and (place is None or thing.place == place)
    )


def _describe(thing: Thing, *, size: bool, color: bool, shape: bool, place: bool) -> str:
    words = [thing.size] if size else []
    words += [thing.color] if color else []
    words += [thing.shape] if shape else ["object"]
    return " ".join(words) + (f" at the {thing.place_name}" if place else "")


def referring_expressions(scene: Scene, thing: Thing, *, without: tuple[str, ...] = ()) -> list[str]:
    """Every way this language has to single the object out, shortest first.

    Args:
        scene: The scene that holds the object.
        thing: The object.
        without: Attributes (of ``"color"``, ``"shape"``, ``"size"``, ``"place"``) that must not be mentioned.
    """
    found: list[str] = []
    for attributes in _FORMS:
        if any(attribute in without for attribute in attributes):
            continue
        size, color, shape, place = (name in attributes for name in ("size", "color", "shape", "place"))
        same = [
            other
            for other in scene.things
            if matches(
                other,
                size=thing.size if size else None,
                color=thing.color if color else None,
                shape=thing.shape if shape else None,
                place=thing.place if place else None,
            )
        ]
        if len(same) == 1:
            found.append(_describe(thing, size=size, color=color, shape=shape, place=place))
    return found


def _pick(rng: np.random.Generator, options: list[str]) -> str:
    return options[int(rng.integers(len(options)))]


def caption(scene: Scene) -> Turn:
    """All objects in reading order: "A large red circle at the top left, a small blue star at the center."."""
    text, mentions = "", []
    for i, thing in enumerate(scene.in_reading_order()):
        text += ", a " if i else "A "
        phrase = _describe(thing, size=True, color=True, shape=True, place=True)
        mentions.append(("answer", len(text), len(text) + len(phrase), scene.things.index(thing)))
        text += phrase
    return Turn("caption", DESCRIBE_PROMPT, text + ".", tuple(mentions))


def refer_list(scene: Scene, rng: np.random.Generator) -> Turn:
    """Referring expressions in any order, each closed by a full stop: how phrases are fed for grounding."""
    text, mentions = "", []
    for index in rng.permutation(len(scene.things)):
        phrase = _pick(rng, referring_expressions(scene, scene.things[int(index)]))
        text += " " if text else ""
        mentions.append(("answer", len(text), len(text) + len(phrase), int(index)))
        text += phrase + "."
    return Turn("refer", REFER_PROMPT, text, tuple(mentions))


def _short(question: str, rng: np.random.Generator, share: float) -> str:
    return question + SHORT_SUFFIX if rng.random() < share else question


def _about(
    kind: str, template: str, phrase: str, answer: str, index: int, rng: np.random.Generator, short_share: float = 0.3
) -> Turn:
    start = template.index("{}")
    question = template.replace("{}", phrase)
    return Turn(kind, _short(question, rng, short_share), answer, (("question", start, start + len(phrase), index),))


def attribute_question(scene: Scene, kind: str, rng: np.random.Generator) -> Turn:
    """Ask one attribute (``kind`` in color, size, shape, where) of an object singled out by its other attributes."""
    attribute = "place" if kind == "where" else kind
    index = int(rng.integers(len(scene.things)))
    thing = scene.things[index]
    options = referring_expressions(scene, thing, without=(attribute,))
    if not options:  # twins that only their place tells apart: their colour can be asked, their place cannot
        return attribute_question(scene, "color", rng)
    phrase = _pick(rng, options)
    if kind == "where":
        return _about(kind, "Where is the {}?", phrase, thing.place_name, index, rng)
    return _about(kind, f"What {kind} is the {{}}?", phrase, str(getattr(thing, kind)), index, rng)


def lookup_question(
    scene: Scene,
    rng: np.random.Generator,
    *,
    kinds: tuple[str, ...] = ("color", "shape", "size", "where", "where"),
    unsaid: tuple[str, ...] = (),
) -> Turn:
    """An attribute question whose phrase says what the object is and never where: it has to be looked for.

    Args:
        scene: The scene.
        rng: Source of randomness.
        kinds: What is asked, each as often as it stands there.
        unsaid: Attributes that the phrase must not mention either; ``("color",)``: look for it by its shape.
    """
    for index in rng.permutation(len(scene.things)):
        thing = scene.things[int(index)]
        for kind in rng.permutation(list(kinds)):
            attribute = "place" if kind == "where" else str(kind)
            options = referring_expressions(scene, thing, without=(attribute, "place", *unsaid))
            if options:
                answer = thing.place_name if kind == "where" else str(getattr(thing, kind))
                template = "Where is the {}?" if kind == "where" else f"What {kind} is the {{}}?"
                return _about(str(kind), template, _pick(rng, options), answer, int(index), rng, short_share=0.0)
    return attribute_question(scene, "color", rng)


def thought(scene: Scene, rng: np.random.Generator) -> Turn:
    """Name the object that a question is about, all of it said: what a visual chain of thought looks for first."""
    asked = lookup_question(scene, rng)
    ((_, start, end, index),) = asked.mentions
    phrase = _describe(scene.things[index], size=True, color=True, shape=True, place=True)
    said = f"{THOUGHT_START} the "
    stem = asked.question.replace(SHORT_SUFFIX, "")
    mentions = (("question", start, end, index), ("answer", len(said), len(said) + len(phrase), index))
    return Turn("thought", stem + THINK_SUFFIX, f"{said}{phrase}.", mentions)


def count_question(scene: Scene, rng: np.random.Generator, *, by_shape: bool = False) -> Turn:
    """How many objects of a colour, of a shape, or at all; ``by_shape``: of a shape, always."""
    which = 1.0 if by_shape else rng.random()
    if which < 0.25:
        return Turn("count", _short("How many objects are there?", rng, 0.3), str(len(scene.things)))
    if rng.random() < 0.8:
        thing = scene.things[int(rng.integers(len(scene.things)))]
        color, shape = thing.color, thing.shape
    else:
        color, shape = str(rng.choice(list(COLORS))), str(rng.choice(SHAPES))
    if which < 0.6:
        number = sum(matches(t, color=color) for t in scene.things)
        return Turn("count", _short(f"How many {color} objects are there?", rng, 0.3), str(number))
    number = sum(matches(t, shape=shape) for t in scene.things)
    return Turn("count", _short(f"How many {plural(shape)} are there?", rng, 0.3), str(number))


def plural(shape: str) -> str:
    """The shape's plural."""
    return shape + ("es" if shape.endswith(("s", "x")) else "s")


def yes_no_question(
    scene: Scene,
    rng: np.random.Generator,
    *,
    truth: bool | None = None,
    category: str | None = None,
    short_share: float = 0.65,
) -> Turn:
    """A question that is answered yes or no, of one of MME's coarse perception categories.

    Args:
        scene: The scene.
        rng: Source of randomness.
        truth: Which answer is wanted (None: either, evenly).
        category: ``existence``, ``count``, ``position`` or ``color`` (None: any).
        short_share: How often the "single word" instruction is added; without it the answer carries its evidence.
    """
    truth = bool(rng.random() < 0.5) if truth is None else truth
    category = category or _pick(rng, ["existence", "existence", "count", "position", "color"])
    index = int(rng.integers(len(scene.things)))
    thing = scene.things[index]
    evidence, mention = "", None
    if category == "existence":
        color, shape = thing.color, thing.shape
        if not truth:
            absent = [
                (c, s) for c in COLORS for s in SHAPES if not any(matches(t, color=c, shape=s) for t in scene.things)
            ]
            near = [(c, s) for c, s in absent if any(t.color == c or t.shape == s for t in scene.things)]
            pool = near if rng.random() < 0.7 else absent
            color, shape = pool[int(rng.integers(len(pool)))]
        elif sum(matches(t, color=color, shape=shape) for t in scene.things) == 1:
            mention = f"{color} {shape}"
            evidence = f", it is at the {thing.place_name}"
        question = f"Is there a {color} {shape} in this image?"
    elif category == "count":
        by_color = rng.random() < 0.5
        number = sum(matches(t, color=thing.color) if by_color else matches(t, shape=thing.shape) for t in scene.things)
        asked = number if truth else int(rng.choice([n for n in range(1, 5) if n != number]))
        noun = (
            (f"{thing.color} object" + ("s" if asked != 1 else ""))
            if by_color
            else (plural(thing.shape) if asked != 1 else thing.shape)
        )
        question = f"{'Are' if asked != 1 else 'Is'} there {NUMBER_WORDS[asked]} {noun} in this image?"
        evidence = f", there {'are' if number != 1 else 'is'} {NUMBER_WORDS[number]}"
    elif category == "position":
        options = referring_expressions(scene, thing, without=("place",))
        if not options:
            return yes_no_question(scene, rng, truth=truth, category="color", short_share=short_share)
        mention = _pick(rng, options)
        place = thing.place_name if truth else _pick(rng, [p for p in PLACES if p != thing.place_name])
        question = f"Is the {mention} at the {place}?"
        evidence = f", it is at the {thing.place_name}"
    else:
        options = referring_expressions(scene, thing, without=("color",))
        mention = _pick(rng, options)
        color = thing.color if truth else _pick(rng, [c for c in COLORS if c != thing.color])
        question = f"Is the {mention} {color}?"
        evidence = f", it is {thing.color}"
    answer = "Yes" if truth else "No"
    short = rng.random() < short_share
    mentions: tuple[tuple[str, int, int, int], ...] = ()
    if mention is not None:
        start = question.index(mention)
        mentions = (("question", start, start + len(mention), index),)
    return Turn(
        "yes_no", question + (SHORT_SUFFIX if short else ""), answer if short else f"{answer}{evidence}.", mentions
    )


def choice_question(
    scene: Scene,
    rng: np.random.Generator,
    *,
    options: int = 4,
    told: bool = False,
    kinds: tuple[str, ...] = ("color", "shape", "where"),
) -> Turn:
    """An attribute question with lettered options; the answer is the letter.

    Args:
        scene: The scene.
        rng: Source of randomness.
        options: How many.
        told: The question itself gives the answer away ("What color is the red circle?"): text alone solves it. A
            first step towards matching an answer with its letter; never used for measuring.
        kinds: What is asked, each as often as it stands there.
    """
    kind = _pick(rng, list(kinds))
    if told:
        thing = scene.things[int(rng.integers(len(scene.things)))]
        answer = thing.place_name if kind == "where" else str(getattr(thing, kind))
        phrase = _pick(rng, [e for e in referring_expressions(scene, thing) if answer in e])
        stem = f"Where is the {phrase}?" if kind == "where" else f"What {kind} is the {phrase}?"
        base = Turn(kind, stem, answer)
    else:
        base = attribute_question(scene, kind, rng)
    pools: dict[str, list[str]] = {"color": list(COLORS), "shape": list(SHAPES), "where": list(PLACES)}
    pool = [value for value in pools[base.kind] if value != base.answer]
    chosen = [base.answer] + [pool[int(i)] for i in rng.permutation(len(pool))[: options - 1]]
    order = rng.permutation(len(chosen))
    lines = "".join(f"\n{LETTERS[i]}. {chosen[int(j)]}" for i, j in enumerate(order))
    letter = LETTERS[int(np.flatnonzero(order == 0)[0])]
    stem = base.question.replace(SHORT_SUFFIX, "")
    return Turn("choice", stem + lines + CHOICE_SUFFIX, letter, base.mentions)


def question(scene: Scene, kind: str, rng: np.random.Generator) -> Turn:
    """A question of one of :data:`QUESTION_KINDS`; one that the scene does not allow turns into a colour question."""
    if kind in ("color", "size", "shape", "where"):
        return attribute_question(scene, kind, rng)
    if kind == "count":
        return count_question(scene, rng)
    if kind == "yes_no":
        return yes_no_question(scene, rng)
    if kind == "choice":
        return choice_question(scene, rng)
    raise ValueError(f"unknown question kind {kind!r}; known: {', '.join(QUESTION_KINDS)}")
