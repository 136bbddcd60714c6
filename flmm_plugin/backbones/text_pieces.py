"""A processor for models whose tokenizer knows no image token: text is cut at ``<image>`` and tokenised piece by piece.

MGM and HPT were trained so: every piece is encoded on its own (only the first one gets the beginning-of-sequence
token), and the picture's features are put between them. A token added to the vocabulary would tokenise the words
behind it differently, and would need rows in an embedding that must stay as it is.

Shapes: b chats, l sequence length, p pictures of all chats together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

#: Writes a turn's content: a string as it is, a list of parts with a line of its own for each picture.
WORDS = (
    "{% macro words(content) %}{% if content is string %}{{ content }}{% else %}{% for part in content %}"
    "{% if part['type'] == 'image' %}{{ '<image>\n' }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{% endmacro %}"
)


class TextPiecesProcessor:
    """Chats and pictures to model inputs, called as transformers' processors are.

    Args:
        tokenizer: The language model's own, unchanged.
        look: A picture as the vision towers take it: input name -> tensor without a batch axis.
        tokens_per_image: Placeholders that stand for one picture.
        image_token_id: What stands for an image token in ``input_ids``: an id beyond the vocabulary, which no text
            has and no model says.
        chat_template: Jinja, as transformers' templates are.
        image_processor: transformers' own that ``look`` uses, where it does.
    """

    image_token = "<image>"

    def __init__(
        self,
        tokenizer: Any,
        look: Callable[[Image.Image], dict[str, Tensor]],
        tokens_per_image: int,
        image_token_id: int,
        chat_template: str,
        image_processor: Any = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.look = look
        self.tokens_per_image = tokens_per_image
        self.image_token_id = image_token_id
        self.chat_template = chat_template
        self.image_processor = image_processor

    def apply_chat_template(self, conversation: Any, *, add_generation_prompt: bool = False, **options: Any) -> str:
        """One chat as text, ``<image>`` where a picture goes."""
        options = {**options, "tokenize": False}
        text: str = self.tokenizer.apply_chat_template(
            conversation, chat_template=self.chat_template, add_generation_prompt=add_generation_prompt, **options
        )
        return text

    def __call__(
        self,
        images: Sequence[Image.Image] | None = None,
        text: str | Sequence[str] = "",
        *,
        padding: bool = True,
        return_tensors: str = "pt",
        add_special_tokens: bool = True,
    ) -> Any:
        """Model inputs as a ``BatchFeature``: ``input_ids`` and ``attention_mask [b, l]``, looks ``[p, ...]``.

        Args:
            images: The pictures of all chats, in order of appearance.
            text: The chats, ``<image>`` where a picture goes.
            padding: Must be true where chats differ in length.
            return_tensors: Nothing but ``pt`` is known.
            add_special_tokens: Begin each chat with the tokenizer's beginning-of-sequence token.
        """
        from transformers import BatchFeature

        if return_tensors != "pt":
            raise ValueError(f"this processor makes torch tensors, not {return_tensors!r}; leave return_tensors out")
        texts = [text] if isinstance(text, str) else list(text)
        rows = [self._ids(one, add_special_tokens) for one in texts]
        length = max(map(len, rows))
        if not padding and any(len(row) != length for row in rows):
            raise ValueError("chats of unequal length need padding=True")
        left = self.tokenizer.padding_side == "left"
        pad = self.tokenizer.pad_token_id

        def padded(values: list[int], fill: int) -> Tensor:
            missing = length - len(values)
            return F.pad(torch.tensor(values), (missing, 0) if left else (0, missing), value=fill)

        inputs = {
            "input_ids": torch.stack([padded(row, pad) for row in rows]),
            "attention_mask": torch.stack([padded([1] * len(row), 0) for row in rows]),
        }
        looks = [self.look(picture) for picture in images or ()]
        for name in looks[0] if looks else ():
            inputs[name] = torch.stack([one[name] for one in looks])
        return BatchFeature(inputs)

    def _ids(self, text: str, add_special_tokens: bool) -> list[int]:
        ids: list[int] = []
        for index, piece in enumerate(text.split(self.image_token)):
            if index:
                ids += [self.image_token_id] * self.tokens_per_image
            ids += self.tokenizer(piece, add_special_tokens=add_special_tokens and index == 0)["input_ids"]
        return ids
