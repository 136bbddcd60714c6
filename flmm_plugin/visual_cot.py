"""Find what a question is about, zoom in on it, answer: visual chain of thought (paper, section 4.3 and table 4).

Two looks at a picture, both with the frozen model as it is:

- *Find.* Variant ``v1`` lets the model name the object that matters most and grounds the words it wrote; ``v2`` grounds
  the words of the question. Grounding is the mask decoder alone unless told otherwise, as in the released evaluation.
- *Answer.* The box around the mask is cut out. A model that takes several pictures is shown the whole picture and the
  cut; any other the cut alone, and the result says which.

Prompts and limits are those of the method's released evaluation, quirks included: no space between the question and
"First", 16 tokens of thought up to the first full stop, the last of them dropped. Where that evaluation breaks (nothing
was named) or finds nothing (an empty mask), the cut is the whole picture.

Frames: boxes are whole pixels ``(x0, y0, x1, y1)`` of the original picture, right and lower edge exclusive.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from flmm_plugin.backbones.base import Messages
from flmm_plugin.backbones.inputs import one_turn
from flmm_plugin.context_length import check_characters
from flmm_plugin.errors import EmptyPhrase, UnknownArgument
from flmm_plugin.grounding import PhraseGrounder
from flmm_plugin.passages import Passage, decoded_offsets
from flmm_plugin.records import BoolMask, Grounding, mask_box, masks_json
from flmm_plugin.text_checks import check_text, has_words

Variant = Literal["v1", "v2"]
Views = Literal["auto", "both", "crop"]
PixelBox = tuple[int, int, int, int]

THINK = "First think which object in this image is most relevant to the question."
THOUGHT = " The object most relevant to the question is"
THOUGHT_TOKENS = 16
ANSWER_TOKENS = 32
LEAST_HALF = 8


@dataclass(frozen=True)
class VisualCotOptions:
    """Options of the two looks.

    Attributes:
        variant: ``v1``: ground what the model names; ``v2``: ground the question's own words.
        views: Pictures that the answer may look at: ``both``, the ``crop`` alone, or ``auto``: both where the model
            takes several.
        refine: Use the mask refiner (SAM); the released evaluation does not.
        box_scale: Factor on the box around the mask before it is cut out.

    Raises:
        UnknownArgument: A value that does not exist.
    """

    variant: Variant = "v1"
    views: Views = "auto"
    refine: bool = False
    box_scale: float = 1.0

    def __post_init__(self) -> None:
        for name, value, known in (
            ("visual_cot", self.variant, get_args(Variant)),
            ("visual_cot_views", self.views, get_args(Views)),
        ):
            if value not in known:
                raise UnknownArgument(f"{name} is one of {', '.join(known)}, not {value!r}")
        if not 0 < self.box_scale < 100:
            raise UnknownArgument(f"visual_cot_scale is a factor such as 1.0 or 1.5, not {self.box_scale!r}")


@dataclass(frozen=True, eq=False)
class VisualCotAnswer:
    """An answer, and the thought behind it.

    Attributes:
        text: The answer, decoded without special tokens.
        token_ids: Ids that the model generated for it.
        variant: The way in which the region was found.
        thought: The words that were grounded; "" if the model named nothing.
        grounding: Where they are; None if there was nothing to ground.
        crop: The region that was cut out; the whole picture if the mask is empty or missing.
        views: Pictures that the answer was given from, ``both`` pictures or the ``crop`` alone.
    """

    text: str
    token_ids: tuple[int, ...]
    variant: Variant
    thought: str
    grounding: Grounding | None
    crop: PixelBox
    views: Literal["both", "crop"]

    def to_json(self, size: tuple[int, int]) -> str:
        """Write lmms-eval's masks JSON with one mask or none, and the thought as ``"visual_cot"``.

        Args:
            size: ``(H, W)`` of the picture.
        """
        found = [] if self.grounding is None else [self.grounding]
        reply = json.loads(masks_json(found, self.text, size))
        reply["visual_cot"] = {
            "variant": self.variant,
            "thought": self.thought,
            "crop": list(self.crop),
            "views": self.views,
        }
        return json.dumps(reply, ensure_ascii=False)


@dataclass(frozen=True, eq=False)
class CotQuestion:
    """One question about one picture.

    Attributes:
        image: The picture, RGB, any size.
        question: The user's words about it.
        instruction: Written behind the question when it is to be answered; the first look does not
            see it.
        system: Turns before the user's, in transformers' form.
    """

    image: Image.Image
    question: str
    instruction: str = ""
    system: tuple[dict[str, Any], ...] = ()


def crop_box(mask: BoolMask, *, scale: float = 1.0) -> PixelBox:
    """Return the region to cut out around a mask ``bool[H, W]``, never empty, never outside the picture.

    Each half side is at least `LEAST_HALF` pixels, then scaled, then clipped; fractions are cut off. The box runs
    from the first to the last pixel of the mask without adding 1, as in the released evaluation.

    >>> mask = np.zeros((100, 100), dtype=bool)
    >>> mask[40:61, 10:51] = True
    >>> crop_box(mask), crop_box(mask, scale=2.0), crop_box(np.zeros((100, 80), dtype=bool))
    ((10, 40, 50, 60), (0, 30, 70, 70), (0, 0, 80, 100))
    """
    height, width = mask.shape
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if rows.size == 0:
        return 0, 0, width, height
    sides = []
    for found, limit in ((columns, width), (rows, height)):
        middle = (found[0] + found[-1]) / 2
        half = max((found[-1] - found[0]) / 2, LEAST_HALF) * scale
        start = min(int(max(middle - half, 0)), limit - 1)
        sides.append((start, max(int(min(middle + half, limit)), start + 1)))
    (x0, x1), (y0, y1) = sides
    return x0, y0, x1, y1


def answer_with_cot(
    lmm: PhraseGrounder, asked: Sequence[CotQuestion], options: VisualCotOptions, **generate: Any
) -> list[VisualCotAnswer]:
    """Answer each question with a second look.

    Args:
        lmm: A grounded model; its weights and its way of generating stay as they are.
        asked: One batch: the first looks go through the model together, and so do the answers.
        options: Variant, views and region of the looks.
        **generate: Options of the answers; the thought is always greedy.

    Raises:
        BadText: A question is no text, or with its picture longer than the model's context.
        EmptyPhrase: A question without words.
        HeadsMismatch: The model was loaded without heads.
    """
    for index, one in enumerate(asked):
        check_text(one.question, f"question {index}")
        if not has_words(one.question):
            raise EmptyPhrase(f"question {index} is empty; a visual chain of thought needs one")
        check_characters(lmm.backbone, one.question)
    if not asked:
        return []
    lmm.need_heads()
    find = _ground_thought if options.variant == "v1" else _ground_question
    found = find(lmm, asked, options.refine)
    views = options.views
    if views == "auto":
        views = "both" if lmm.backbone.several_images else "crop"
    crops: list[PixelBox] = []
    chats, pictures = [], []
    for one, grounding in zip(asked, found, strict=True):
        crop = (0, 0, one.image.width, one.image.height)
        if grounding is not None:
            crop = crop_box(grounding.mask, scale=options.box_scale)
        region = one.image.crop(crop)
        crops.append(crop)
        chats.append(_answer_chat(one, views))
        pictures.append([one.image, region] if views == "both" else [region])
    answers = lmm.chat_batch(chats, pictures, **{"max_new_tokens": ANSWER_TOKENS, **generate})
    return [
        VisualCotAnswer(
            answer.text,
            answer.token_ids,
            options.variant,
            "" if grounding is None else grounding.phrase,
            grounding,
            crop,
            views,
        )
        for answer, grounding, crop in zip(answers, found, crops, strict=True)
    ]


def _answer_chat(one: CotQuestion, views: Literal["both", "crop"]) -> Messages:
    words = one.question + one.instruction
    if views == "crop":
        return [*one.system, *one_turn(words)]
    content = [
        {"type": "image"},
        {"type": "text", "text": "the whole image, "},
        {"type": "image"},
        {"type": "text", "text": f"the image region that might help you answer the question: {words}"},
    ]
    return [*one.system, {"role": "user", "content": content}]


def _ground_thought(lmm: PhraseGrounder, asked: Sequence[CotQuestion], refine: bool) -> list[Grounding | None]:
    """Let the model name what is most relevant, greedily, and ground that; None where it names nothing."""
    chats = [[*one.system, *one_turn(one.question + THINK)] for one in asked]
    pictures = [one.image for one in asked]
    encoded, generated, _ = lmm.begin_answers(
        chats, pictures, THOUGHT, do_sample=False, num_beams=1, max_new_tokens=THOUGHT_TOKENS
    )
    thoughts = [_thought(lmm.backbone.tokenizer, generated.answer_ids(item)) for item in range(len(asked))]
    found = lmm.ground_generated(encoded, generated, thoughts, pictures, refine=refine)
    # A thought is no part of the answer's text, so that it has no span in it.
    return [_placed(replace(some[0], span=None)) if some else None for some in found]


def _thought(tokenizer: Any, ids: list[int]) -> Passage:
    """Return the words before the first full stop or end token as a phrase; without one, the last token is dropped."""
    special = set(tokenizer.all_special_ids)
    text, offsets = decoded_offsets(tokenizer, ids)
    stop = next(
        (index for index, (start, end) in enumerate(offsets) if ids[index] in special or "." in text[start:end]),
        len(ids) - 1,
    )
    return Passage.of_tokens(ids, text, offsets, [range(max(stop, 0))])


def _ground_question(lmm: PhraseGrounder, asked: Sequence[CotQuestion], refine: bool) -> list[Grounding | None]:
    """Ground the words of the question, each question in a pass of its own."""
    found: list[Grounding | None] = []
    for one in asked:
        words = one.question.strip()
        (grounding,) = lmm.ground_text(
            one.image,
            [*one.system, *one_turn(words)],
            words,
            [(0, len(words))],
            where="question",
            refine=refine,
        )
        found.append(_placed(grounding))
    return found


def _placed(grounding: Grounding) -> Grounding:
    """Replace the box by that around every pixel of the mask: the one that the method cuts around (`crop_box`)."""
    return replace(grounding, box=mask_box(grounding.mask))
