"""The text of a chat before it is tokenised: written around a picture as heads were trained, and checked."""

from __future__ import annotations

from collections.abc import Sequence

from flmm_plugin.backbones.inputs import Messages
from flmm_plugin.errors import EmptyPhrase, UnknownArgument


def written_around(chat: Messages, template: str, image_token: str) -> str:
    """Write a chat of one turn in a template that heads were trained with; no system turn, no chat template.

    Args:
        chat: A chat of one user turn, in transformers' form.
        template: Text in which ``{image}`` and ``{prompt}`` stand for the picture's token and the user's words.
        image_token: What stands for a picture.

    Raises:
        UnknownArgument: More turns, or a template without its two places.
    """
    if len(chat) != 1 or isinstance(chat[0].get("content"), str):
        raise UnknownArgument("a template is for one turn with pictures and text; pass template='' for whole chats")
    parts = chat[0]["content"]
    image = image_token * sum(part["type"] == "image" for part in parts)
    prompt = "".join(part["text"] for part in parts if part["type"] == "text")
    if template.count("{image}") != 1 or template.count("{prompt}") != 1:
        raise UnknownArgument(f"the template {template!r} must have {{image}} and {{prompt}} once each")
    before, _, after = template.partition("{prompt}")
    # Not str.format: a prompt may hold braces, and so may a template.
    return before.replace("{image}", image) + prompt + after.replace("{image}", image)


def refuse_half_characters(texts: Sequence[str]) -> None:
    """Raise `EmptyPhrase` for text that has no bytes: half of a surrogate pair, as badly cut JSON has it."""
    for text in texts:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as exc:
            raise EmptyPhrase(
                f"{text[exc.start]!r} is half of a character (a lone surrogate), which no tokenizer reads; remove it"
            ) from exc


def one_turn(words: str, images: int = 1) -> Messages:
    """Write a chat of one user turn in transformers' form, pictures before words."""
    return [{"role": "user", "content": [*[{"type": "image"}] * images, {"type": "text", "text": words}]}]
