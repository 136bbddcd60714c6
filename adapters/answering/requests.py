"""Requests, as every harness hands them to the answers: a chat to continue, or phrases to find in a picture.

Chats are built as lmms-eval's ``llava_hf`` builds them: in chat form from the task's messages, in simple form from
one user turn whose text has the image placeholders in front, unless it has some already.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from PIL import Image

from flmm_plugin.errors import BackboneUnsupported, BadAnnotation
from flmm_plugin.images import open_image, stock_image

#: Generation argument with which a task asks for masks. What the text says plays no role.
GROUND_FLAG = "flmm_ground"

#: Generation argument with which a task asks for an answer *and* masks: ``keywords`` grounds what the answer names,
#: ``answer`` grounds the answer as a whole.
GROUNDED_CHAT_FLAG = "flmm_grounded_chat"

#: Generation argument with which a task asks about a text that its documents give: ``ground`` or ``keywords``.
GIVEN_TEXT_FLAG = "flmm_given_text"

#: Fields of a document of this package's tasks that a model may see; masks and answers are not among them.
SHOWN = (
    "image_path", "orientation", "height", "width", "expressions", "expression", "question", "instruction", "pieces",
    "grounded",
)  # fmt: skip

_PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")


@dataclass(frozen=True, eq=False)
class Request:
    """One request of a harness.

    Attributes:
        index: Its place in the list that was handed over.
        context: The prompt as the harness wrote it.
        source: How the harness gets its chat; of lmms-eval `doc_to_messages` (chat form) or `doc_to_visual` (simple
            form), None where the document has it.
        simple: Whether that is the simple form.
        options: Generation arguments of the task, its marks among them.
        task, split, doc_id: The place of its document.
        padding: Whether it only makes the ranks' numbers of requests equal; nobody reads its answer.
    """

    index: int
    context: str
    source: Callable[..., Any] | None
    simple: bool
    options: dict[str, Any]
    task: str
    split: str
    doc_id: int
    padding: bool

    @property
    def wants_keywords(self) -> bool:
        """Tell whether the task needs a keyword selector."""
        return "keywords" in (self.options.get(GROUNDED_CHAT_FLAG), self.options.get(GIVEN_TEXT_FLAG))

    @property
    def gives_text(self) -> bool:
        """Tell whether the task asks about a text that its document gives."""
        return bool(self.options.get(GIVEN_TEXT_FLAG))

    @property
    def wants_masks(self) -> bool:
        """Tell whether the task asked for masks."""
        return bool(self.options.get(GROUND_FLAG))

    @property
    def wants_grounded_chat(self) -> bool:
        """Tell whether the task asked for an answer with masks."""
        return bool(self.options.get(GROUNDED_CHAT_FLAG))


def with_placeholders(text: str, pictures: int, image_token: str) -> str:
    r"""Return `text` with one image placeholder per picture in front, unless it has placeholders of its own.

    >>> with_placeholders("What is it?", 2, "<image>")
    '<image> <image>\nWhat is it?'
    """
    if pictures == 0 or image_token in text:
        return text
    return " ".join([image_token] * pictures) + "\n" + text


def split_at_placeholders(text: str, image_token: str) -> list[dict[str, str]]:
    r"""Return `text` as parts of a message, for chat templates that do not take a string.

    >>> split_at_placeholders("<image>\nWhat is it?", "<image>")
    [{'type': 'image'}, {'type': 'text', 'text': 'What is it?'}]
    """
    parts: list[dict[str, str]] = []
    for index, piece in enumerate(text.split(image_token)):
        if index:
            parts.append({"type": "image"})
        piece = piece.strip() if index == 0 else piece.lstrip()
        if piece:
            parts.append({"type": "text", "text": piece})
    return parts


@dataclass(frozen=True, eq=False)
class Question:
    """Phrases of a grounding document, to be found in one picture."""

    image: Image.Image
    phrases: list[str]


def picture_named(doc: Any) -> Hashable:
    """Name the picture of a grounding document: its file, how it is opened, and the size that it must have.

    A picture in memory is named by the object, which its document keeps alive.
    """
    picture = doc.get("image_path")
    named = picture if isinstance(picture, str) else id(picture)
    return (named, *(doc.get(key) for key in ("orientation", "height", "width")))


def question_of(request: Request, doc: Any, opened: dict[Hashable, Image.Image] | None = None) -> Question:
    """Read picture and phrases of a grounding document.

    Args:
        request: Request that asks for masks.
        doc: Its document, a dict with `image_path` and `expressions`.
        opened: Pictures of documents before it by `picture_named`, to which its own is added; None: open it anew.

    Raises:
        BadAnnotation: The document is not of the form that `flmm_plugin.tasks` makes, or its picture is not of the size
            that its annotation states.
        BadImage: The picture cannot be opened.
    """
    try:
        phrases = list(doc["expressions"])
    except KeyError as exc:
        raise BadAnnotation(
            f"{request.task} asks for masks ({GROUND_FLAG}) but its documents have no {exc}; "
            "give `image_path` and `expressions`"
        ) from exc
    opened = {} if opened is None else opened
    name = picture_named(doc)
    if name not in opened:
        opened[name] = picture_of(request, doc, GROUND_FLAG)
    return Question(opened[name], phrases)


def picture_of(request: Request, doc: Any, flag: str) -> Image.Image:
    """Open the picture of a document of this plugin's own tasks, as ``doc["orientation"]`` says (upright by default).

    Raises:
        BadAnnotation: The document names none, or it is not of the size that its annotation states.
        BadImage: It cannot be opened.
    """
    if "image_path" not in doc:
        raise BadAnnotation(
            f"{request.task} asks for masks ({flag}) but its documents have no 'image_path'; give the picture's file"
        )
    path = doc["image_path"]
    image = open_image(path, doc.get("orientation") or "upright")
    stated = (doc.get("height"), doc.get("width"))
    if None not in stated and stated != (image.height, image.width):
        raise BadAnnotation(
            f"{path} is {image.height} x {image.width}, its annotation says {stated[0]} x {stated[1]} "
            "(height x width); the picture and the annotation are of different data"
        )
    return image


def opened(visual: Any) -> Image.Image:
    """Open a picture of a chat as the stock adapters do if it is a path.

    Raises:
        BackboneUnsupported: The path is no picture's by its name.
        BadImage: It cannot be opened.
    """
    if isinstance(visual, str) and not visual.lower().endswith(_PICTURE_SUFFIXES):
        raise BackboneUnsupported(f"{visual!r} is no picture by its name; this model sees pictures only")
    return visual if isinstance(visual, Image.Image) else stock_image(visual)
