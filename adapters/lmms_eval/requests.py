"""lmms-eval's requests, unpacked.

lmms-eval hands a *chat* model ``(context, doc_to_messages, generation_kwargs, doc_id, task, split)`` and a *simple*
model ``(context, generation_kwargs, doc_to_visual, doc_id, task, split)``. A task of a class of its own, as this
plugin's, always makes the second form. Both are read here, whatever the model is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lmms_eval.protocol import ChatMessages
from PIL import Image

from flmm_plugin.adapters.answering.requests import Request, opened, with_placeholders
from flmm_plugin.errors import BackboneUnsupported


def unpack(instances: list[Any]) -> Iterator[Request]:
    """lmms-eval's instances, of either form, in order."""
    for index, instance in enumerate(instances):
        context, second, third, doc_id, task, split = instance.args
        simple = isinstance(second, Mapping)
        options, source = (second, third) if simple else (third, second)
        padding = bool((instance.metadata or {}).get("__padding_only__"))
        yield Request(index, context, source, simple, options, task, split, doc_id, padding)


def chat_of(request: Request, doc: Any, image_token: str) -> tuple[list[dict[str, Any]], list[Image.Image]]:
    """Messages in transformers' form and their pictures in order of appearance.

    Raises:
        BackboneUnsupported: The document shows a video or plays a sound.
        BadImage: A picture given by its path cannot be opened.
    """
    if request.simple:
        visuals = list(request.source(doc) or []) if request.source is not None else []
        return [{"role": "user", "content": with_placeholders(request.context, len(visuals), image_token)}], [
            opened(visual) for visual in visuals
        ]
    assert request.source is not None, "a chat request has the task's doc_to_messages"
    chat = ChatMessages(messages=request.source(doc))
    pictures, videos, sounds = chat.extract_media()
    if videos or sounds:
        raise BackboneUnsupported(
            f"document {request.doc_id} of {request.task} has video or sound; this model sees pictures"
        )
    messages = [
        {
            "role": message.role,
            "content": [
                {"type": "image"} if part.type == "image" else {"type": "text", "text": part.text}
                for part in message.content
            ],
        }
        for message in chat.messages
    ]
    return messages, [opened(visual) for visual in pictures]
