"""Requests for an answer with masks: asked as any chat, looked at afterwards.

A task marks them with ``generation_kwargs``:

- ``flmm_grounded_chat: keywords``: the model answers, and what its answer names is grounded, one mask per keyword run
  (paper, section 3.3).
- ``flmm_grounded_chat: answer``: the answer as a whole is grounded, one mask (reasoning segmentation, section 4.3).
  ``flmm_answer_start`` may force its first words.

The other generation arguments mean what they mean for chat.
"""

from __future__ import annotations

from typing import Any

from PIL import Image

from flmm_plugin.adapters.answering import chat
from flmm_plugin.adapters.answering.requests import GROUNDED_CHAT_FLAG, Request
from flmm_plugin.errors import BadAnnotation, BadImage, UnknownArgument
from flmm_plugin.records import GroundedAnswer, masks_json

ANSWER_START = "flmm_answer_start"
KINDS = ("keywords", "answer")


def reply(lmm: Any, request: Request, messages: list[dict[str, Any]], pictures: list[Image.Image]) -> str:
    """Return the masks JSON of one request, with the answer as its text.

    Args:
        lmm: A loaded `GroundedLMM` with heads.
        request: A request that ``flmm_grounded_chat`` marks.
        messages: The chat, as the model's template likes it.
        pictures: The chat's pictures, exactly one.

    Raises:
        UnknownArgument: The marker says something else than `KINDS`.
        BadAnnotation: The given beginning of the answer is no text.
        BadImage: The chat has not exactly one picture.
    """
    kind = request.options[GROUNDED_CHAT_FLAG]
    if kind not in KINDS:
        raise UnknownArgument(f"{request.task}: {GROUNDED_CHAT_FLAG} is one of {', '.join(KINDS)}, not {kind!r}")
    if len(pictures) != 1:
        raise BadImage(
            f"document {request.doc_id} of {request.task} shows {len(pictures)} pictures; masks belong to one picture"
        )
    options = chat.generate_options(request.options, lmm.backbone.tokenizer.eos_token_id)
    answer: GroundedAnswer
    if kind == "keywords":
        answer = lmm.grounded_chat(pictures[0], messages, **options)
    else:
        begin = request.options.get(ANSWER_START, "")
        if not isinstance(begin, str):
            raise BadAnnotation(f"{request.task}: {ANSWER_START} is the text an answer begins with, not {begin!r}")
        answer = lmm.ground_answer(pictures[0], messages, begin=begin, **options)
    return masks_json(answer.groundings, answer.text, size=(pictures[0].height, pictures[0].width))
