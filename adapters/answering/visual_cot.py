"""Requests that are answered after a second look, and the model arguments that say how.

A task asks for it with ``generation_kwargs: {flmm_visual_cot: v1}`` (or ``v2``) and is answered with masks JSON; the
model argument ``visual_cot=v1`` gives it to every stock question about one picture, whose reply stays plain text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

from PIL import Image

from flmm_plugin.adapters.answering.requests import Request
from flmm_plugin.errors import BadAnnotation, UnknownArgument
from flmm_plugin.images import open_image, stock_image
from flmm_plugin.options import as_switch
from flmm_plugin.visual_cot import CotQuestion, Variant, VisualCotOptions

#: Generation argument that asks for a second look: a variant (the reply is masks JSON), ``text`` (also ``text v1``,
#: ``text v2``), or ``none``.
VISUAL_COT_FLAG = "flmm_visual_cot"

_VARIANTS = ("v1", "v2")
_MARKS = (*_VARIANTS, "text", "text v1", "text v2", "none")


class VisualCotMode:
    """The requests of a model that get a second look, and its options.

    Args:
        variant: The model argument ``visual_cot``: ``v1`` or ``v2`` for every stock question about one picture; None
            only where a task asks for it.
        views: The model argument ``visual_cot_views``: ``auto``, ``both`` or ``crop``.
        refine: The model argument ``visual_cot_refine``, a switch.
        scale: The model argument ``visual_cot_scale``, a factor above 0.

    Raises:
        UnknownArgument: A value that does not exist.
    """

    def __init__(self, variant: str | None = None, views: Any = "auto", refine: Any = False, scale: Any = 1.0) -> None:
        try:
            factor = float(scale)
        except (TypeError, ValueError) as exc:
            raise UnknownArgument(f"visual_cot_scale is a factor such as 1.0 or 1.5, not {scale!r}") from exc
        self.always = variant is not None
        refined = as_switch("visual_cot_refine", refine)
        self.options = VisualCotOptions(cast("Variant", variant or "v1"), views, refined, factor)

    @classmethod
    def taken_from(cls, settings: dict[str, Any]) -> VisualCotMode:
        """Make the mode that the model arguments ask for, which are removed from `settings`."""
        names = {"variant": "visual_cot", "views": "visual_cot_views", "refine": "visual_cot_refine"}
        names["scale"] = "visual_cot_scale"
        given = {key: settings.pop(name, None) for key, name in names.items()}
        return cls(**{key: value for key, value in given.items() if value is not None})

    def wants(self, request: Request) -> bool:
        """Tell whether a request gets a second look, if its chat allows one.

        Raises:
            UnknownArgument: A mark that does not exist.
        """
        mark_of(request)
        return self.looks_twice(request.options)

    def looks_twice(self, options: Mapping[str, Any]) -> bool:
        """Tell the same of a task by its generation arguments."""
        mark = options.get(VISUAL_COT_FLAG)
        return self.always if mark is None else str(mark).lower() not in ("none", "false")

    def options_of(self, request: Request) -> VisualCotOptions:
        """Return the options of a request: a task that names a variant keeps it."""
        variant = (mark_of(request) or "").removeprefix("text").strip()
        return replace(self.options, variant=cast("Variant", variant)) if variant else self.options

    def facts(self, several_images: bool) -> dict[str, Any] | None:
        """Return what a result must say about second looks; None where only tasks ask for second looks.

        Args:
            several_images: Whether the model takes several pictures, which is what ``auto`` hangs on.
        """
        one = self.options
        if not self.always:
            return None
        views = one.views if one.views != "auto" else "both" if several_images else "crop"
        return {"variant": one.variant, "views": views, "refine": one.refine, "box_scale": one.box_scale}


def mark_of(request: Request) -> str | None:
    """Return what the task says about a second look, None if nothing.

    Raises:
        UnknownArgument: A mark that does not exist.
    """
    mark = request.options.get(VISUAL_COT_FLAG)
    if mark is None:
        return None
    # YAML reads a bare `none` as text and a bare `no` or `false` as False.
    mark = "none" if mark is False else str(mark).lower()
    if mark not in _MARKS:
        raise UnknownArgument(f"{request.task}: {VISUAL_COT_FLAG} is one of {', '.join(_MARKS)}, not {mark!r}")
    return mark


def answers_json(request: Request) -> bool:
    """Tell whether the reply is masks JSON; else it is the text of the answer."""
    return mark_of(request) in _VARIANTS


def question_of_doc(request: Request, doc: Mapping[str, Any]) -> CotQuestion:
    """Read the question of a document of this plugin's own tasks.

    Raises:
        BadAnnotation: The document has no ``image_path`` or ``question``.
        BadImage: The picture cannot be opened.
    """
    try:
        path, question = doc["image_path"], str(doc["question"])
    except KeyError as exc:
        raise BadAnnotation(
            f"{request.task} asks for a second look ({VISUAL_COT_FLAG}) but its documents have no {exc}; give "
            "`image_path` and `question`, or mark it `text`"
        ) from exc
    return CotQuestion(
        open_image(path, doc.get("orientation") or "upright"), question, str(doc.get("instruction") or "")
    )


def question_of_chat(
    messages: list[dict[str, Any]], pictures: list[Image.Image], image_token: str
) -> CotQuestion | None:
    """Read the question of a stock chat; None if there is no single picture and single user turn to look at twice.

    The task's own instruction ("Answer ... using a single word") is part of its text and stays in both looks, as in
    the method's hallucination runs.
    """
    before, asked = messages[:-1], messages[-1] if messages else {}
    if len(pictures) != 1 or asked.get("role") != "user" or any(turn["role"] != "system" for turn in before):
        return None
    content = asked["content"]
    if not isinstance(content, str):
        content = "\n".join(part["text"] for part in content if part["type"] == "text")
    text = content.replace(image_token, "").strip()
    return CotQuestion(stock_image(pictures[0]), text, system=tuple(before)) if text else None
