"""Chats and pictures to model inputs, through a model's own chat template and processor.

Shapes: b batch, l sequence length, h x w image-token grid.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, ClassVar, cast

import torch
from PIL import Image
from torch import Tensor, nn

from flmm_plugin.backbones.inputs import (
    EncodedChat,
    ImageTokens,
    Looked,
    Messages,
    refuse_half_characters,
    written_around,
)
from flmm_plugin.backbones.preprocessing import Paper, pad_picture, with_pillow
from flmm_plugin.errors import BackboneUnsupported, BadImage, UnknownArgument
from flmm_plugin.options import LoadOptions
from flmm_plugin.text_checks import check_text

#: What processors, templates and `generate` raise for what they do not take.
REFUSALS = (
    ArithmeticError, AttributeError, ImportError, LookupError, NotImplementedError, OSError, RuntimeError,
    StopIteration, TypeError, ValueError,
)  # fmt: skip


class ChatEncoder(ABC):
    """A frozen model with its processor, as far as chats and pictures go into it.

    Args:
        model: A transformers model that generates; put into evaluation mode, its parameters marked as frozen.
        processor: The processor that belongs to it, chat template included.
        name: The model as the user called it.
        options: Options that it was loaded with; of them, the revision and the system prompt are kept.

    Attributes:
        paper: Preprocessing of the paper for this family: ``same`` (as the stock processor), ``pillow`` or ``padded``
            (see `flmm_plugin.backbones.preprocessing`), ``""`` where the paper has no such family.
        preprocessing: What pictures go through before grounding, ``stock`` or ``paper``; chat is always stock.
    """

    family: ClassVar[str]
    paper: ClassVar[Paper] = ""

    def __init__(self, model: Any, processor: Any, *, name: str, options: LoadOptions | None = None) -> None:
        if getattr(processor, "tokenizer", None) is None:
            raise BackboneUnsupported(
                f"the files of {name} make a {type(processor).__name__}, not a processor of pictures and text; restore "
                "its processor_config.json, preprocessor_config.json and tokenizer files"
            )
        self.model = model.eval().requires_grad_(False)
        self.processor = processor
        self.tokenizer = processor.tokenizer
        # Batches are padded on the left: answers begin in the same slot. Without a pad token, the end token pads.
        self.tokenizer.padding_side = "left"
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        options = options or LoadOptions()
        self.name = name
        self.revision = options.revision
        self.system_prompt = options.system_prompt
        self.preprocessing = "stock"
        if not getattr(processor, "chat_template", None):
            raise BackboneUnsupported(
                f"{name} has no chat template; put a chat_template.jinja beside its processor configuration"
            )

    @abstractmethod
    def image_tokens(self, inputs: Mapping[str, Tensor], images: list[list[Image.Image]]) -> list[list[ImageTokens]]:
        """Locate the image tokens of each picture, and say how they lie on it.

        Args:
            inputs: What the processor made of the chats, padded.
            images: The pictures of each chat, at least one in some chat.
        """

    @property
    def image_token(self) -> str:
        """The token that stands for a picture in the text of a chat."""
        return str(self.processor.image_token)

    @property
    def device(self) -> torch.device:
        """Device that inputs go to; of a split or offloaded model, the one on which its first module runs."""
        return execution_device(self.model)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        return cast("torch.dtype", self.model.dtype)

    @property
    def pad_id(self) -> int:
        """Token that fills up shorter sequences."""
        return int(self.tokenizer.pad_token_id)

    def encode(
        self,
        messages: list[Messages],
        images: list[list[Image.Image]],
        *,
        add_generation_prompt: bool = True,
        template: str = "",
    ) -> EncodedChat:
        """Chats to model inputs through the model's own chat template and processor.

        Args:
            messages: One chat per batch item, in transformers' form. A turn's content is either a list of
                ``{"type": "image"}`` and ``{"type": "text", "text": ...}``, or a string that holds the image tokens
                itself.
            images: The pictures of each chat in order of appearance.
            add_generation_prompt: End with the opening of the answer turn.
            template: Text around ``{image}`` and ``{prompt}`` of a chat of one turn, instead of the chat template.

        Raises:
            BadImage: A chat has another number of pictures than of places for them.
            BadText: A chat has a lone surrogate.
        """
        texts = [
            written_around(chat, template, self.image_token)
            if template
            else self.render(chat, add_generation_prompt=add_generation_prompt)
            for chat in messages
        ]
        refuse_half_characters(texts)
        self._check_places(texts, images)
        inputs = self._processed(texts, images)
        how = self.paper if self.preprocessing == "paper" else "same"
        return EncodedChat(inputs, partial(self._look, how, texts, images, inputs))

    def _check_places(self, texts: list[str], images: list[list[Image.Image]]) -> None:
        """Raise `BadImage` for a chat with another number of pictures than of places for them in its text."""
        for index, (text, pictures) in enumerate(zip(texts, images, strict=True)):
            check_text(text, f"chat {index}")
            places = text.count(self.image_token)
            if places != len(pictures):
                raise BadImage(
                    f"chat {index} has {places} places for images and {len(pictures)} images; give one image for each "
                    f"image entry, and no {self.image_token!r} in the text"
                )

    def _look(self, how: str, texts: list[str], images: list[list[Image.Image]], inputs: dict[str, Tensor]) -> Looked:
        """Find the image tokens of encoded chats, and the pixels that grounding takes.

        Args:
            how: Preprocessing, one of the values of `paper`.
            texts: The chats, image placeholders not yet expanded.
            images: The pictures of each chat.
            inputs: What the processor made of both.

        Raises:
            BackboneUnsupported: It cannot be known.
        """
        if not any(images):
            return Looked([[] for _ in texts])
        try:
            if how == "same":
                return Looked(self.image_tokens(inputs, images))
            shown, padded = images, None
            if how == "padded":
                padded = [[pad_picture(one, self.processor.image_processor) for one in some] for some in images]
                shown = [[square for square, _ in some] for some in padded]
            seen = self.paper_inputs(texts, shown)
            if not torch.equal(seen["input_ids"], inputs["input_ids"]):
                raise BackboneUnsupported(
                    f"{self.name} has other tokens for pictures as the paper shows them; load it with "
                    "preprocessing='stock'"
                )
            tokens = self.image_tokens(seen, shown)
            if padded is not None:
                tokens = [
                    [replace(one, grid=one.grid.through(frame)) for one, (_, frame) in zip(found, some, strict=True)]
                    for found, some in zip(tokens, padded, strict=True)
                ]
        except (ArithmeticError, ValueError) as exc:
            raise BackboneUnsupported(
                f"{self.name} shows no whole image token of some picture ({_sizes(images)}: {exc}), so nothing can be "
                "grounded in it; chat works, and so does grounding in a less narrow part"
            ) from exc
        shape = inputs["input_ids"].shape
        return Looked(tokens, {key: value for key, value in seen.items() if value.shape != shape})

    def paper_inputs(self, texts: list[str], images: list[list[Image.Image]]) -> dict[str, Tensor]:
        """Make the inputs that the method's heads were trained with; padded pictures come as squares."""
        return self._processed(texts, images, self._paper_processor)

    @cached_property
    def _paper_processor(self) -> Any:
        return with_pillow(self.processor) if self.paper == "pillow" else self.processor

    @property
    def grounding_pixels(self) -> str:
        """Name what makes the pixels that grounding sees: a class, after ``Pillow`` where pictures are padded here."""
        paper = self.preprocessing == "paper"
        used = self._paper_processor if paper else self.processor
        made = getattr(used, "image_processor", None) or getattr(used, "look", None)
        return f"{'Pillow (padded), ' if paper and self.paper == 'padded' else ''}{type(made).__name__}"

    def _processed(self, texts: list[str], images: list[list[Image.Image]], processor: Any = None) -> dict[str, Tensor]:
        """Texts and pictures through the processor, on the model's device."""
        bos = self.tokenizer.bos_token
        # As transformers' own tokenising templates do: a template that writes the first token must not get a second
        # one.
        special = {} if bos is None or not texts[0].startswith(bos) else {"add_special_tokens": False}
        try:
            features = (processor or self.processor)(
                images=self.pictures(images), text=texts, padding=True, return_tensors="pt", **special
            )
        except REFUSALS as exc:
            if any(images):
                raise BadImage(
                    f"the processor of {self.name} takes no such picture ({_sizes(images)}): {exc}; crop or resize it"
                ) from exc
            raise UnknownArgument(f"the processor of {self.name} does not take this chat: {exc}") from exc
        made = dict(features.to(self.device, self.dtype))
        # PaliGemma's processor writes labels unasked, and its model then computes a loss.
        made.pop("labels", None)
        if "input_ids" not in made:
            raise BackboneUnsupported(f"the processor of {self.name} makes no tokens of a chat, so it cannot chat here")
        return made

    def preprocess(self, name: str | None) -> None:
        """Choose what pictures go through before grounding; None leaves it as it is.

        Args:
            name: ``stock``: what chat sees. ``paper``: what the method's heads were trained with.

        Raises:
            UnknownArgument: There is no such preprocessing, or the paper has none for this family.
        """
        if name is None:
            return
        if name not in ("stock", "paper"):
            raise UnknownArgument(f"there is no preprocessing {name!r}; use 'stock' (what chat sees) or 'paper'")
        if name == "paper" and not self.paper:
            raise UnknownArgument(
                f"the paper did not ground {self.family}: it has no preprocessing for it; use preprocessing='stock'"
            )
        self.preprocessing = name

    def pictures(self, images: list[list[Image.Image]]) -> Any:
        """The pictures of all chats as the family's processor takes them; None where there are none."""
        return [picture for some in images for picture in some] or None

    def render(self, chat: Messages, *, add_generation_prompt: bool = True) -> str:
        """One chat as the text that the model reads, image placeholders not yet expanded."""
        if self.system_prompt is not None and not (chat and chat[0].get("role") == "system"):
            plain = bool(chat) and isinstance(chat[0].get("content"), str)
            content: Any = self.system_prompt if plain else [{"type": "text", "text": self.system_prompt}]
            chat = [{"role": "system", "content": content}, *chat]
        try:
            text: str = self.processor.apply_chat_template(
                chat, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except Exception as exc:  # templates fail in their own ways: a template error, a TypeError, an IndexError
            raise UnknownArgument(
                f"the chat template of {self.name} does not write this chat: {exc}; give turns with a role and a "
                "content, in an order that the model knows"
            ) from exc
        return text


def execution_device(module: nn.Module) -> torch.device:
    """Return the device on which a module computes: accelerate may keep its weights elsewhere until then."""
    for part in module.modules():
        hook = getattr(part, "_hf_hook", None)
        for one in getattr(hook, "hooks", (hook,)):
            place = getattr(one, "execution_device", None)
            if place is not None:
                return torch.device(place)
    return next(module.parameters()).device


def _sizes(images: list[list[Image.Image]]) -> str:
    """Width and height of all pictures, for a message."""
    return ", ".join(f"{one.width} x {one.height}" for some in images for one in some)
