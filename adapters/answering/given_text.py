"""Requests about a text that the document gives: masks of its pieces, or the keywords in it.

A task marks them with ``generation_kwargs``:

- ``flmm_given_text: ground``: the document's ``pieces``, joined, stand as the answer to its ``question``, and the
  pieces listed in ``grounded`` get a mask each (panoptic narratives).
- ``flmm_given_text: keywords``: the keyword selector reads the same text; the reply lists its ``phrases`` with their
  spans, and no masks.

Both replies are masks JSON with ``text``; what the prompt says plays no role.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from flmm_plugin.adapters.answering.requests import GIVEN_TEXT_FLAG, Request, picture_of
from flmm_plugin.errors import BadAnnotation, UnknownArgument
from flmm_plugin.passages import GivenText, Keyword
from flmm_plugin.records import masks_json

KINDS = ("ground", "keywords")


def kind_of(request: Request) -> str:
    """Return what is asked about the text, one of `KINDS`.

    Raises:
        UnknownArgument: The marker says something else than `KINDS`.
    """
    kind = request.options[GIVEN_TEXT_FLAG]
    if kind not in KINDS:
        raise UnknownArgument(f"{request.task}: {GIVEN_TEXT_FLAG} is one of {', '.join(KINDS)}, not {kind!r}")
    return str(kind)


def text_of(request: Request, doc: Mapping[str, Any]) -> GivenText:
    """Read picture, question and text of a document.

    Raises:
        BadAnnotation: The document is not of the form that `flmm_plugin.tasks` makes, or its picture is not of the size
            that its annotation states.
        BadImage: The picture cannot be opened.
    """
    kind_of(request)
    try:
        question, pieces, grounded = doc["question"], doc["pieces"], doc["grounded"]
    except KeyError as exc:
        raise BadAnnotation(
            f"{request.task} gives texts ({GIVEN_TEXT_FLAG}) but its documents have no {exc}; give `image_path`, "
            "`question`, `pieces` and `grounded`"
        ) from exc
    if not isinstance(question, str) or not isinstance(pieces, list | tuple) or not isinstance(grounded, list | tuple):
        raise BadAnnotation(
            f"{request.task}: `question` is a string, `pieces` a list of strings and `grounded` a list of their "
            f"indices, not {type(question).__name__}, {type(pieces).__name__} and {type(grounded).__name__}"
        )
    return GivenText(picture_of(request, doc, GIVEN_TEXT_FLAG), question, tuple(pieces), tuple(grounded))


def replies(lmm: Any, request: Request, asked: Sequence[GivenText]) -> list[str]:
    """Return the masks JSON of each text, all in one forward pass.

    Args:
        lmm: A loaded `GroundedLMM` with heads.
        request: One of the batch; all ask the same.
        asked: One text for each request of the batch.
    """
    if kind_of(request) == "keywords":
        return [_keywords_json(one, found) for one, found in zip(asked, lmm.select_keywords(asked), strict=True)]
    return [
        masks_json(found, one.text, size=(one.image.height, one.image.width))  # type: ignore[union-attr]
        for one, found in zip(asked, lmm.ground_pieces(asked), strict=True)
    ]


def _keywords_json(one: GivenText, found: Sequence[Keyword]) -> str:
    phrases = [{"phrase": word.phrase, "span": list(word.span), "mask": None} for word in found]
    reply = {"text": one.text, "phrases": phrases, "masks": [], "boxes": [], "scores": []}
    return json.dumps(reply, ensure_ascii=False)
