"""Chats as text, as model inputs, and what came back: records that all families share.

Shapes: b batch, l sequence length, t answer tokens, h x w image-token grid, k tokens of all views.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from flmm_plugin.errors import EmptyPhrase, UnknownArgument
from flmm_plugin.geometry import ImageGrid

Message = dict[str, Any]
Messages = list[Message]


@dataclass(frozen=True, eq=False)
class ImageTokens:
    """Image tokens of one picture in one sequence.

    A family may show a picture more than once: whole and small, then in tiles. Tiles are put together to one fine
    grid, which is `grid`; views of less detail are `coarse`.

    Attributes:
        slots: Their sequence slots, int64 on the CPU, left padding counted: of each coarse view, then of `grid`, each
            in raster order. A token that serves two views is in it twice.
        grid: How the tokens of the finest view lie on the picture; attention maps have its size.
        coarse: How those of the other views do.
    """

    slots: Tensor
    grid: ImageGrid
    coarse: tuple[ImageGrid, ...] = ()

    @property
    def views(self) -> tuple[ImageGrid, ...]:
        """All views in the order of `slots`."""
        return (*self.coarse, self.grid)


@dataclass(frozen=True, eq=False)
class Looked:
    """Hold what grounding needs to know of the pictures of chats, and chat does not.

    Attributes:
        image_tokens: Per chat, per picture in order of appearance.
        grounding: Inputs that take the place of those of the same name when attention is read: pictures that went
            through the preprocessing that heads were trained with, where that is not the chat's.
    """

    image_tokens: list[list[ImageTokens]]
    grounding: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class EncodedChat:
    """Chats as model inputs, padded on the left.

    Attributes:
        inputs: What the model takes: ``input_ids [b, l]``, ``attention_mask [b, l]``, ``pixel_values``...
        look: Finds what grounding needs. Called when that is first asked for: chat must answer about pictures and
            with processors that grounding refuses.
    """

    inputs: dict[str, Tensor]
    look: Callable[[], Looked]

    @cached_property
    def _looked(self) -> Looked:
        return self.look()

    @property
    def image_tokens(self) -> list[list[ImageTokens]]:
        """Per chat, per picture in order of appearance.

        Raises:
            BackboneUnsupported: Where they lie on a picture is not known.
        """
        return self._looked.image_tokens

    @property
    def grounding(self) -> dict[str, Tensor]:
        """Inputs that take the place of those of the same name when attention is read (`Looked.grounding`)."""
        return self._looked.grounding

    @property
    def grounding_inputs(self) -> dict[str, Tensor]:
        """Inputs for reading attention; those of the chat unless preprocessing differs."""
        return {**self.inputs, **self.grounding}

    @property
    def length(self) -> int:
        """Slots per sequence, left padding included."""
        return int(self.inputs["input_ids"].shape[1])

    def item_ids(self, item: int) -> list[int]:
        """Token ids of one chat without its padding."""
        ids, seen = self.inputs["input_ids"][item], self.inputs["attention_mask"][item].bool()
        return cast("list[int]", ids[seen].tolist())

    def extended(self, answers: Sequence[Sequence[int]], pad_id: int) -> EncodedChat:
        """The same chats with token ids written behind each (teacher forcing), padded on the left anew.

        The answer of chat b then occupies the last ``len(answers[b])`` slots. Everything tied to pictures is shared.
        """
        old = self.inputs["attention_mask"].sum(dim=1).tolist()
        length = max(kept + len(answer) for kept, answer in zip(old, answers, strict=True))
        parts: dict[str, list[Tensor]] = {key: [] for key in self._sequences()}
        shifts = []
        for item, (kept, answer) in enumerate(zip(old, answers, strict=True)):
            left = length - kept - len(answer)
            for key in parts:
                row = self.inputs[key][item, self.length - kept :]
                new = {"input_ids": torch.tensor(list(answer), dtype=row.dtype, device=row.device)}.get(key)
                if new is None:
                    new = row.new_full((len(answer),), 1 if key == "attention_mask" else 0)
                fill = pad_id if key == "input_ids" else 0
                parts[key].append(F.pad(torch.cat([row, new]), (left, 0), value=fill))
            shifts.append(left - (self.length - kept))
        stacked = {key: torch.stack(rows) for key, rows in parts.items()}
        return EncodedChat({**self.inputs, **stacked}, lambda: self._shifted(shifts))

    def _shifted(self, shifts: Sequence[int]) -> Looked:
        """The same pictures, so many slots further on in each chat."""
        moved = [
            [replace(one, slots=one.slots + shift) for one in tokens]
            for tokens, shift in zip(self.image_tokens, shifts, strict=True)
        ]
        return Looked(moved, self.grounding)

    def _sequences(self) -> list[str]:
        """Names of the inputs that have one value per token."""
        shape = self.inputs["input_ids"].shape
        return [key for key, value in self.inputs.items() if value.shape == shape]


@dataclass(frozen=True, eq=False)
class Generated:
    """Sequences that ``generate`` returned.

    Attributes:
        sequences: Prompt and answer ids, ``[b, prompt_length + t]``, answers padded on the right.
        past_key_values: The model's cache, or None when it has none or its rows do not belong to the sequences (beams).
        prompt_length: Slots of the prompt, left padding included.
        lengths: Tokens of each answer, the end token included, padding not.
    """

    sequences: Tensor
    past_key_values: Any | None
    prompt_length: int
    lengths: tuple[int, ...]

    def answer_ids(self, item: int) -> list[int]:
        """Ids that the model generated for one chat."""
        row = self.sequences[item, self.prompt_length : self.prompt_length + self.lengths[item]]
        return cast("list[int]", row.tolist())


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
