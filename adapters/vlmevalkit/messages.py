"""Turn VLMEvalKit's messages into requests of `flmm_plugin.adapters.answering`. Knows the kit's form, not the kit.

A message is a list of ``{"type": "text" | "image", "value": text or path}``. Data sets of this package write what else
is wanted into the text's part under `MARK`; the kit hands unknown keys through unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from flmm_plugin.adapters.answering import identity
from flmm_plugin.adapters.answering.requests import SHOWN, Request, opened
from flmm_plugin.errors import BackboneUnsupported
from flmm_plugin.records import error_json

#: Key of a message's part: ``{"generation_kwargs": {...}, "doc": {...}, "index": row}``.
MARK = "flmm"

#: What marks a failed sample: the kit counts it in its summary and asks it again when it is started again.
FAILED = "Failed to obtain answer via API."

#: What the kit's scoring is shown of a failed sample: three characters for private use. No rule reads a choice, a word
#: or a part of an answer in them, which some read in `FAILED` ("A" of "API") or in an empty text.
NOTHING = "\ue000" * 3

Part = Mapping[str, Any]


def message_of(doc: Mapping[str, Any], prompt: str, generation_kwargs: Mapping[str, Any], index: Any) -> list[Part]:
    """Write the message about a document of this package's tasks: one picture, the prompt, and what is wanted."""
    asked = {
        "generation_kwargs": dict(generation_kwargs),
        "doc": {name: doc[name] for name in SHOWN if name in doc},
        "index": index,
    }
    return [
        {"type": "image", "value": str(doc["image_path"])},
        {"type": "text", "value": prompt, MARK: asked},
    ]


def request_of(message: Sequence[Part], dataset: str | None) -> Request:
    """Make the request of a message; `document_of` and `chat_of` read it back."""
    mark: Mapping[str, Any] = next((part[MARK] for part in message if MARK in part), {})
    text = "\n".join(str(part["value"]) for part in message if part["type"] == "text")
    options = dict(mark.get("generation_kwargs", {}))
    index = mark.get("index", -1)
    doc_id = int(index) if str(index).lstrip("-").isdigit() else -1
    document = {**mark.get("doc", {}), "message": list(message)}
    return Request(0, text, lambda: document, False, options, dataset or "", "", doc_id, False)


def document_of(request: Request) -> Mapping[str, Any]:
    """Return the document of a request of `request_of`."""
    assert request.source is not None, "made by request_of"
    document: Mapping[str, Any] = request.source()
    return document


def chat_of(
    _request: Request, doc: Mapping[str, Any], _image_token: str
) -> tuple[list[dict[str, Any]], list[Image.Image]]:
    """Return messages in transformers' form and their pictures, in the kit's order.

    Raises:
        BackboneUnsupported: There is a video.
        BadImage: A picture cannot be opened.
    """
    turns: list[dict[str, Any]] = []
    pictures: list[Image.Image] = []
    for part in doc["message"]:
        role = part.get("role", "user")
        if not turns or turns[-1]["role"] != role:
            turns.append({"role": role, "content": []})
        if part["type"] == "image":
            pictures.append(opened(part["value"]))
            turns[-1]["content"].append({"type": "image"})
        elif part["type"] == "text":
            turns[-1]["content"].append({"type": "text", "text": part["value"]})
        else:
            raise BackboneUnsupported(f"this model sees pictures; the message has a {part['type']}")
    return turns, pictures


def unasked(error: Exception) -> list[Part]:
    """Stand in for a message that could not be made; `problem_of` reads the error back."""
    return [{"type": "text", "value": "", MARK: {"error": error}}]


def problem_of(message: Sequence[Part]) -> Exception | None:
    """Read why a message could not be made; None for one that could."""
    found: Exception | None = next((part[MARK]["error"] for part in message if "error" in part.get(MARK, {})), None)
    return found


def digest_of(message: Sequence[Part], dataset: str | None) -> str:
    """Name all that is asked: words, marks, and the content of the pictures' files, wherever they lie."""
    said, pictures = [], []
    for part in message:
        if part["type"] == "image":
            pictures.append(_content(part["value"]))
            part = {**part, "value": ""}
        if MARK in part:
            mark = dict(part[MARK])
            mark["doc"] = {name: value for name, value in mark.get("doc", {}).items() if name != "image_path"}
            part = {**part, MARK: mark}
        said.append(part)
    return identity.digest_of([dataset, said, pictures])


def failure(error: str) -> str:
    """Write the reply that stands for a failed sample."""
    return f"{FAILED} {error}"


def is_failure(reply: str) -> bool:
    """Tell whether a reply stands for a failed sample, as the kit marks it or as its scoring is shown it."""
    return FAILED in reply or reply == NOTHING


def as_scored(reply: str) -> str:
    """Return a reply as this package's metrics read it: a failed sample is an error record, as in lmms-eval."""
    return error_json(RuntimeError(reply)) if is_failure(reply) else reply


def _content(path: Any) -> str | None:
    try:
        return identity.picture_digest(path)
    except OSError:
        return None
