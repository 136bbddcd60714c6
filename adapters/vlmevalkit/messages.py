"""VLMEvalKit's messages as requests that `flmm_plugin.adapters.answering` answers. Knows the kit's form, not the kit.

A message is a list of ``{"type": "text" | "image", "value": text or path}``. Data sets of this package write what else
is wanted into the text's part under `MARK`; the kit hands unknown keys through unchanged.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from flmm_plugin.adapters.answering.requests import Request, opened
from flmm_plugin.errors import BackboneUnsupported
from flmm_plugin.records import error_json

#: Key of a message's part: ``{"generation_kwargs": {...}, "doc": {...}, "index": row}``.
MARK = "flmm"

#: What marks a failed sample: the kit counts it in its summary and asks it again when it is started again.
FAILED = "Failed to obtain answer via API."

#: Fields of a document that a model may see; masks and answers are not among them.
SHOWN = (
    "image_path", "orientation", "height", "width", "expressions", "expression", "question", "instruction", "pieces",
    "grounded",
)  # fmt: skip

Part = Mapping[str, Any]


def message_of(doc: Mapping[str, Any], prompt: str, generation_kwargs: Mapping[str, Any], index: Any) -> list[Part]:
    """The message about a document of this package's tasks: one picture, the prompt, and what is wanted."""
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
    """The request that a message makes; `document_of` and `chat_of` read it back."""
    mark: Mapping[str, Any] = next((part[MARK] for part in message if MARK in part), {})
    text = "\n".join(str(part["value"]) for part in message if part["type"] == "text")
    options = dict(mark.get("generation_kwargs", {}))
    index = mark.get("index", -1)
    doc_id = int(index) if str(index).lstrip("-").isdigit() else -1
    document = {**mark.get("doc", {}), "message": list(message)}
    return Request(0, text, lambda: document, False, options, dataset or "", "", doc_id, False)


def document_of(request: Request) -> Mapping[str, Any]:
    """The document of a request of `request_of`."""
    assert request.source is not None, "made by request_of"
    document: Mapping[str, Any] = request.source()
    return document


def chat_of(
    _request: Request, doc: Mapping[str, Any], _image_token: str
) -> tuple[list[dict[str, Any]], list[Image.Image]]:
    """Messages in transformers' form and their pictures, in the order in which the kit has them.

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


def digest_of(message: Sequence[Part], dataset: str | None) -> str:
    """A name for all that is asked: words, marks, and the pictures' files as they are now."""
    seen: list[Any] = [dataset]
    for part in message:
        seen.append(dict(part))
        if part["type"] == "image":
            seen.append(_state(part["value"]))
    return hashlib.sha256(json.dumps(seen, sort_keys=True, default=str).encode()).hexdigest()


def failure(error: str) -> str:
    """The reply that stands for a failed sample."""
    return f"{FAILED} {error}"


def is_failure(reply: str) -> bool:
    """Whether a reply stands for a failed sample."""
    return FAILED in reply


def as_scored(reply: str) -> str:
    """A reply as this package's metrics read it: a failed sample is an error record, as in lmms-eval."""
    return error_json(RuntimeError(reply)) if is_failure(reply) else reply


def _state(path: Any) -> Any:
    try:
        status = Path(str(path)).stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]
