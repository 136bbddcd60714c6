"""Write captions, referring expressions and questions with exact answers about a synthetic scene.

Nothing here knows where a pixel is: the words come from the scene's description alone (colour, shape, size, place),
so a model trained on this language has seen text and pictures, never a mask.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np

from flmm_plugin.tiny.scenes import COLORS, PLACES, SHAPES, Scene, Thing

DESCRIBE_PROMPT = "Please give me a description of the image."
REFER_PROMPT = "Please name the objects in the image."
SHORT_SUFFIX = "\nAnswer the question using a single word or phrase."
CHOICE_SUFFIX = "\nAnswer with the option's letter from the given choices directly."
LETTERS = "ABCD"
# What a referring expression may mention, shortest first.
_FORMS: tuple[tuple[str, ...], ...] = (
    ("shape",), ("color",), ("color", "shape"), ("size", "shape"), ("size", "color"), ("size", "color", "shape"),
    ("place",), ("shape", "place"), ("color", "place"), ("color", "shape", "place"),
    ("size", "color", "shape", "place"),
)  # fmt: skip
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


def matches(thing: Thing, **attributes: object) -> bool:
    """Return whether an object has every attribute that is given: ``color``, ``shape``, ``size`` or ``place``."""
    return all(getattr(thing, name) == value for name, value in attributes.items())


def describe(thing: Thing, attributes: Collection[str] = ("size", "color", "shape", "place")) -> str:
    """Return the words for some attributes of an object: "large red star at the top left"."""
    words = [getattr(thing, name) for name in ("size", "color") if name in attributes]
    words.append(thing.shape if "shape" in attributes else "object")
    if "place" in attributes:
        words += ["at the", thing.place_name]
    return " ".join(words)


def referring_expressions(scene: Scene, thing: Thing, *, without: tuple[str, ...] = ()) -> list[str]:
    """Return every phrase of this language that means one object of a scene and no other, shortest first.

    Args:
        scene: Scene with the object and all others that a phrase could be mistaken for.
        thing: The object to single out, one of ``scene.things``.
        without: Attributes (of ``"color"``, ``"shape"``, ``"size"``, ``"place"``) that must not be mentioned.
    """
    found: list[str] = []
    for attributes in _FORMS:
        said = {name: getattr(thing, name) for name in attributes}
        if not said.keys() & set(without) and sum(matches(other, **said) for other in scene.things) == 1:
            found.append(describe(thing, attributes))
    return found


def pick(rng: np.random.Generator, options: list[str]) -> str:
    """Draw one of several texts."""
    return options[int(rng.integers(len(options)))]


def caption(scene: Scene) -> Turn:
    """Name all objects in reading order: "A large red circle at the top left, a small blue star at the center."."""
    text, mentions = "", []
    for i, thing in enumerate(scene.in_reading_order()):
        text += ", a " if i else "A "
        phrase = describe(thing)
        mentions.append(("answer", len(text), len(text) + len(phrase), scene.things.index(thing)))
        text += phrase
    return Turn("caption", DESCRIBE_PROMPT, text + ".", tuple(mentions))


def refer_list(scene: Scene, rng: np.random.Generator) -> Turn:
    """Name all objects by referring expressions in any order, each with a full stop, as phrases to ground are given."""
    text, mentions = "", []
    for index in rng.permutation(len(scene.things)):
        phrase = pick(rng, referring_expressions(scene, scene.things[int(index)]))
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


def attribute_of(thing: Thing, kind: str) -> str:
    """Return the answer to a question of a kind (``color``, ``size``, ``shape``, ``where``) about an object."""
    return thing.place_name if kind == "where" else str(getattr(thing, kind))


def attribute_template(kind: str) -> str:
    """Return the question about an attribute, with ``{}`` for the object."""
    return "Where is the {}?" if kind == "where" else f"What {kind} is the {{}}?"


def attribute_question(scene: Scene, kind: str, rng: np.random.Generator) -> Turn:
    """Ask one attribute (``kind`` in color, size, shape, where) of an object singled out by its other attributes."""
    index = int(rng.integers(len(scene.things)))
    thing = scene.things[index]
    options = referring_expressions(scene, thing, without=("place" if kind == "where" else kind,))
    if not options:  # two alike objects: their color can be asked, their place cannot
        return attribute_question(scene, "color", rng)
    return _about(kind, attribute_template(kind), pick(rng, options), attribute_of(thing, kind), index, rng)


def lookup_question(
    scene: Scene,
    rng: np.random.Generator,
    *,
    kinds: tuple[str, ...] = ("color", "shape", "size", "where", "where"),
    unsaid: tuple[str, ...] = (),
) -> Turn:
    """Ask an attribute of an object whose phrase says what it is and never where it is.

    Args:
        scene: Scene whose objects the question may be about.
        rng: Generator of the draws; the same state gives the same question.
        kinds: Kinds of question to draw from, each as often as it stands there.
        unsaid: Attributes that the phrase must not mention either; ``("color",)``: look for it by its shape.
    """
    for index in rng.permutation(len(scene.things)):
        thing = scene.things[int(index)]
        for drawn in rng.permutation(list(kinds)):
            kind = str(drawn)
            attribute = "place" if kind == "where" else kind
            options = referring_expressions(scene, thing, without=(attribute, "place", *unsaid))
            if options:
                phrase = pick(rng, options)
                answer = attribute_of(thing, kind)
                return _about(kind, attribute_template(kind), phrase, answer, int(index), rng, short_share=0.0)
    return attribute_question(scene, "color", rng)


def count_question(scene: Scene, rng: np.random.Generator, *, by_shape: bool = False) -> Turn:
    """Ask for the number of objects of a color, of a shape, or of all; ``by_shape``: always of a shape."""
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


def plural(noun: str) -> str:
    """Return the plural of a noun."""
    return noun + ("es" if noun.endswith(("s", "x")) else "s")


@dataclass(frozen=True)
class _Claim:
    """A question that is answered yes or no.

    Attributes:
        question: Text of the question, without any instruction on how to answer.
        evidence: Text that the long answer adds to yes or no.
        mention: Phrase of the question that means the object it is about; None: it means no single object.
    """

    question: str
    evidence: str = ""
    mention: str | None = None


def yes_no_question(
    scene: Scene,
    rng: np.random.Generator,
    *,
    truth: bool | None = None,
    category: str | None = None,
    short_share: float = 0.65,
) -> Turn:
    """Return a question that is answered yes or no, of one of MME's coarse perception categories.

    Args:
        scene: Scene whose objects the question may be about.
        rng: Generator of the draws; the same state gives the same question.
        truth: Which answer is wanted (None: either, evenly).
        category: ``existence``, ``count``, ``position`` or ``color`` (None: any).
        short_share: How often the "single word" instruction is added; without it the answer carries its evidence.
    """
    truth = bool(rng.random() < 0.5) if truth is None else truth
    category = category or pick(rng, ["existence", "existence", "count", "position", "color"])
    index = int(rng.integers(len(scene.things)))
    claim = _CLAIMS[category](scene, scene.things[index], truth, rng)
    if claim is None:
        return yes_no_question(scene, rng, truth=truth, category="color", short_share=short_share)
    mentions: tuple[tuple[str, int, int, int], ...] = ()
    if claim.mention is not None:
        start = claim.question.index(claim.mention)
        mentions = (("question", start, start + len(claim.mention), index),)
    answer = "Yes" if truth else "No"
    if rng.random() < short_share:
        return Turn("yes_no", claim.question + SHORT_SUFFIX, answer, mentions)
    return Turn("yes_no", claim.question, f"{answer}{claim.evidence}.", mentions)


def _existence(scene: Scene, thing: Thing, truth: bool, rng: np.random.Generator) -> _Claim:
    if truth:
        kind = f"{thing.color} {thing.shape}"
        question = f"Is there a {kind} in this image?"
        if sum(matches(other, color=thing.color, shape=thing.shape) for other in scene.things) > 1:
            return _Claim(question)
        return _Claim(question, f", it is at the {thing.place_name}", kind)
    there = {(other.color, other.shape) for other in scene.things}
    colors, shapes = {color for color, _ in there}, {shape for _, shape in there}
    absent = [(color, shape) for color in COLORS for shape in SHAPES if (color, shape) not in there]
    near = [(color, shape) for color, shape in absent if color in colors or shape in shapes]
    pool = near if rng.random() < 0.7 else absent
    color, shape = pool[int(rng.integers(len(pool)))]
    return _Claim(f"Is there a {color} {shape} in this image?")


def _number(scene: Scene, thing: Thing, truth: bool, rng: np.random.Generator) -> _Claim:
    attribute = "color" if rng.random() < 0.5 else "shape"
    number = sum(getattr(other, attribute) == getattr(thing, attribute) for other in scene.things)
    asked = number if truth else int(rng.choice([other for other in range(1, 5) if other != number]))
    noun = f"{thing.color} object" if attribute == "color" else thing.shape
    noun = noun if asked == 1 else plural(noun)
    question = f"{_are(asked)} there {NUMBER_WORDS[asked]} {noun} in this image?"
    return _Claim(question, f", there {_are(number).lower()} {NUMBER_WORDS[number]}")


def _are(number: int) -> str:
    return "Is" if number == 1 else "Are"


def _position(scene: Scene, thing: Thing, truth: bool, rng: np.random.Generator) -> _Claim | None:
    options = referring_expressions(scene, thing, without=("place",))
    if not options:
        return None
    mention = pick(rng, options)
    place = thing.place_name if truth else pick(rng, [other for other in PLACES if other != thing.place_name])
    return _Claim(f"Is the {mention} at the {place}?", f", it is at the {thing.place_name}", mention)


def _color(scene: Scene, thing: Thing, truth: bool, rng: np.random.Generator) -> _Claim:
    mention = pick(rng, referring_expressions(scene, thing, without=("color",)))
    color = thing.color if truth else pick(rng, [other for other in COLORS if other != thing.color])
    return _Claim(f"Is the {mention} {color}?", f", it is {thing.color}", mention)


_CLAIMS: dict[str, Callable[[Scene, Thing, bool, np.random.Generator], _Claim | None]] = {
    "existence": _existence,
    "count": _number,
    "position": _position,
    "color": _color,
}


def choice_question(
    scene: Scene, rng: np.random.Generator, *, options: int = 4, kinds: tuple[str, ...] = ("color", "shape", "where")
) -> Turn:
    """Return an attribute question of one of some kinds with 2 to 4 lettered options; the answer is the letter."""
    return with_options(attribute_question(scene, pick(rng, list(kinds)), rng), rng, options)


def with_options(asked: Turn, rng: np.random.Generator, options: int) -> Turn:
    """Return an attribute question as multiple choice, its answer among ``options`` (2 to 4) in any order."""
    pools: dict[str, list[str]] = {"color": list(COLORS), "shape": list(SHAPES), "where": list(PLACES)}
    pool = [value for value in pools[asked.kind] if value != asked.answer]
    chosen = [asked.answer] + [pool[int(i)] for i in rng.permutation(len(pool))[: options - 1]]
    order = rng.permutation(len(chosen))
    lines = "".join(f"\n{LETTERS[i]}. {chosen[int(j)]}" for i, j in enumerate(order))
    letter = LETTERS[int(np.flatnonzero(order == 0)[0])]
    stem = asked.question.replace(SHORT_SUFFIX, "")
    return Turn("choice", stem + lines + CHOICE_SUFFIX, letter, asked.mentions)


def question(scene: Scene, kind: str, rng: np.random.Generator) -> Turn:
    """Ask a question of one of `QUESTION_KINDS`; where the scene does not allow its kind, ask for a color."""
    if kind in ("color", "size", "shape", "where"):
        return attribute_question(scene, kind, rng)
    if kind == "count":
        return count_question(scene, rng)
    if kind == "yes_no":
        return yes_no_question(scene, rng)
    if kind == "choice":
        return choice_question(scene, rng)
    raise ValueError(f"unknown question kind {kind!r}; known: {', '.join(QUESTION_KINDS)}")
