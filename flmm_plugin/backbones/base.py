"""The contract of a model family: how it is loaded, how a chat becomes its inputs, where the image tokens lie.

A family implements one method, `Backbone.image_tokens`; everything else is the same for all families that transformers
loads with a processor. Nothing here touches how the model computes: `generate` is the model's own.

Shapes: b batch, l sequence length, h x w image-token grid, n phrases, m layers, c heads per layer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, ClassVar, Self, cast

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from flmm_plugin.backbones.chat_text import refuse_half_characters, written_around
from flmm_plugin.backbones.generation import answer_length, answer_options, with_length
from flmm_plugin.backbones.inputs import EncodedChat, Generated, ImageTokens, Looked, Message, Messages
from flmm_plugin.backbones.loading import load_pretrained
from flmm_plugin.backbones.preprocessing import Paper, pad_picture, with_pillow
from flmm_plugin.backbones.processor_check import contradictions
from flmm_plugin.errors import BackboneUnsupported, BadImage, UnknownArgument
from flmm_plugin.heads.manifest import BackboneFacts
from flmm_plugin.words import check_text

__all__ = ["Backbone", "EncodedChat", "Generated", "ImageTokens", "Message", "Messages"]


# What processors, templates and `generate` raise for what they do not take.
_REFUSALS = (
    ArithmeticError, AttributeError, LookupError, NotImplementedError, OSError, RuntimeError, TypeError, ValueError,
)  # fmt: skip


class Backbone(ABC):
    """A frozen model with its processor.

    Args:
        model: A transformers model that generates; put into evaluation mode, its parameters marked as frozen.
        processor: The processor that belongs to it, chat template included.
        name: How the user called it.
        revision: Which version of it.
        system_prompt: A system turn put before every chat that has none.

    Attributes:
        maps_per_image: Attention maps per head and picture; 2 for families with a coarse and a fine view.
        paper: What the method's preprocessing of the family is: ``same`` (the stock processor's), ``pillow`` or
            ``padded`` (see `flmm_plugin.backbones.preprocessing`), ``""`` where the paper has no such family.
        preprocessing: What pictures go through before grounding, ``stock`` or ``paper``; chat is always stock.
        several_images: Whether models of the family were trained on chats with several pictures; a visual chain of
            thought then answers from the whole picture and the cut-out, else from the cut-out alone.
    """

    family: ClassVar[str]
    maps_per_image: ClassVar[int] = 1
    paper: ClassVar[Paper] = ""
    several_images: ClassVar[bool] = False

    def __init__(
        self, model: Any, processor: Any, *, name: str, revision: str | None = None, system_prompt: str | None = None
    ) -> None:
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
        self.name, self.revision, self.system_prompt = name, revision, system_prompt
        self.preprocessing = "stock"
        if not getattr(processor, "chat_template", None):
            raise BackboneUnsupported(
                f"{name} has no chat template; put a chat_template.jinja beside its processor configuration"
            )

    @classmethod
    def load(
        cls,
        folder: str,
        *,
        name: str,
        revision: str | None = None,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device | None = None,
        device_map: str | Mapping[str, Any] | None = None,
        attn_implementation: str | None = None,
        system_prompt: str | None = None,
        load_in_4bit: bool = False,
        load_in_8bit: bool = False,
    ) -> Self:
        """Load model and processor with transformers; arguments as in `flmm_plugin.backbones.load_backbone`.

        Raises:
            BackboneUnsupported: transformers cannot load it.
            BadCheckpoint: Its weights are damaged or incomplete.
        """
        model, processor = load_pretrained(
            folder,
            name=name,
            revision=revision,
            dtype=dtype,
            device=device,
            device_map=device_map,
            attn_implementation=attn_implementation,
            load_in_4bit=load_in_4bit,
            load_in_8bit=load_in_8bit,
        )
        backbone = cls(model, processor, name=name, revision=revision, system_prompt=system_prompt)
        backbone.try_processor()
        return backbone

    def try_processor(self) -> None:
        """Send one small picture up to the language model: what fails there would fail for every chat.

        Raises:
            BackboneUnsupported: The processor takes no picture, or the model does not take what it makes.
        """
        picture = Image.new("RGB", (64, 48), (90, 120, 150))
        try:
            inputs = self.processor(
                images=self.pictures([[picture]]), text=[self.image_token], padding=True, return_tensors="pt"
            ).to(self.device, self.dtype)
            self.embedded(dict(inputs))
        except torch.OutOfMemoryError:
            return
        except (*_REFUSALS, ImportError) as exc:
            clauses = "; ".join([*contradictions(self.processor, self.model.config), str(exc)])
            raise BackboneUnsupported(
                f"processor and model of {self.name} do not fit ({clauses}); restore the processor files that "
                "came with the model"
            ) from exc

    @torch.no_grad()
    def embedded(self, inputs: Mapping[str, Any]) -> Tensor:
        """Give what the language model gets, ``[b, l, d]``, and stop it before it begins to compute.

        Raises:
            BackboneUnsupported: It is given no embeddings.
        """
        kept: list[Tensor] = []

        def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            kept.append(kwargs["inputs_embeds"] if "inputs_embeds" in kwargs else args[0])
            raise _Enough

        hook = self.decoder.register_forward_pre_hook(keep, with_kwargs=True)
        try:
            self.forward_body(inputs)
        except _Enough:
            return kept[0]
        finally:
            hook.remove()
        raise BackboneUnsupported(f"the language model of {self.name} is given no embeddings, so they cannot be read")

    @abstractmethod
    def image_tokens(self, inputs: Mapping[str, Tensor], images: list[list[Image.Image]]) -> list[list[ImageTokens]]:
        """Where the image tokens of each picture are, and how they lie on it.

        Args:
            inputs: What the processor made of the chats, padded.
            images: The pictures of each chat, at least one in some chat.
        """

    def attention_maps(self, rows: Tensor, tokens: ImageTokens) -> Tensor:
        """Attention to the image tokens, ``[n, m, c, k]`` as `ImageTokens.slots` lists them, as maps.

        Coarse views are resized (bilinear) to the finest one's grid and come first on the channels, as the method does
        for LLaVA-NeXT: all maps of the coarse view, layer by layer, then all of the fine one.

        Returns:
            ``[n, views * m * c, h, w]``.
        """
        maps = []
        for part, view in zip(
            rows.split([v.height * v.width for v in tokens.views], dim=-1), tokens.views, strict=True
        ):
            shaped = part.reshape(len(rows), -1, view.height, view.width)
            if (view.height, view.width) != (tokens.grid.height, tokens.grid.width):
                shaped = F.interpolate(shaped, (tokens.grid.height, tokens.grid.width), mode="bilinear")
            maps.append(shaped)
        return torch.cat(maps, dim=1)

    def positions(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Positions that the model itself would give to these sequences, ``[b, l]``, padding not counted.

        Families whose positions have more axes override this and give ``[axes, b, l]``.
        """
        return position_ids(inputs["attention_mask"])

    @property
    def image_token(self) -> str:
        """The token that stands for a picture in the text of a chat."""
        return str(self.processor.image_token)

    @property
    def image_token_id(self) -> int:
        """The placeholder of one image token in ``input_ids``."""
        return int(self.model.config.image_token_id)

    @cached_property
    def decoder(self) -> nn.Module:
        """The language model's body, whose layers' attention is read."""
        return cast("nn.Module", self.model.get_decoder())

    @property
    def num_layers(self) -> int:
        """Decoder layers, m."""
        return int(cast("Any", self.decoder).config.num_hidden_layers)

    @property
    def num_heads(self) -> int:
        """Query heads per layer, c."""
        return int(cast("Any", self.decoder).config.num_attention_heads)

    @property
    def hidden_size(self) -> int:
        """Width of a hidden state, d."""
        return int(cast("Any", self.decoder).config.hidden_size)

    @property
    def facts(self) -> BackboneFacts:
        """The numbers that heads must fit."""
        return BackboneFacts(
            self.name, self.num_layers, self.num_heads, self.hidden_size, self.maps_per_image, self.revision
        )

    @property
    def device(self) -> torch.device:
        """Where inputs go. Of a split or offloaded model: where its first module runs."""
        return _execution_device(self.model)

    @property
    def output_device(self) -> torch.device:
        """Where the last layer runs, and so where captured rows arrive."""
        return _execution_device(cast("nn.Module", self.decoder.norm))

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
        except _REFUSALS as exc:
            if any(images):
                raise BadImage(
                    f"the processor of {self.name} takes no such picture ({_sizes(images)}): {exc}; crop or resize it"
                ) from exc
            raise UnknownArgument(f"the processor of {self.name} does not take this chat: {exc}") from exc
        return dict(features.to(self.device, self.dtype))

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

    @torch.no_grad()
    def generate(self, encoded: EncodedChat, **gen: Any) -> Generated:
        """The model's own ``generate``; nothing of this package is in its way.

        Args:
            encoded: The chats.
            **gen: Options of generation, ``generation_config`` among them, as `generate` takes them. Without a length
                in either, an answer has at most 64 new tokens.

        Raises:
            UnknownArgument: No option of generation, one that asks for more than one answer per chat or for something
                beside it, or the model refuses it.
            BackboneUnsupported: The model refuses what its processor made of the chats.
        """
        asked = ", ".join(key for key, value in gen.items() if value is not None)
        gen = with_length(gen)
        config = answer_options(self.model, gen)
        if config.pad_token_id is None:
            gen["pad_token_id"] = self.pad_id
        if config.stop_strings is not None:
            gen.setdefault("tokenizer", self.tokenizer)
        try:
            out = self.model.generate(**encoded.inputs, **{**gen, "return_dict_in_generate": True})
        except torch.OutOfMemoryError:
            raise
        except _REFUSALS as exc:
            if asked:
                raise UnknownArgument(f"{self.name} does not answer with {asked}: {exc}") from exc
            raise BackboneUnsupported(f"{self.name} does not answer what its processor made: {exc}") from exc
        answers = out.sequences[:, encoded.length :]
        # A chat alone is not padded: its last tokens are its own, whatever they are.
        pad = None if len(answers) == 1 else gen.get("pad_token_id", config.pad_token_id)
        lengths = tuple(answer_length(answer, config.eos_token_id, pad) for answer in answers.tolist())
        beams = (config.num_beams or 1) > 1
        return Generated(out.sequences, None if beams else out.get("past_key_values"), encoded.length, lengths)

    @torch.no_grad()
    def forward_body(self, inputs: Mapping[str, Any], **options: Any) -> Any:
        """One forward pass without vocabulary logits (those of the last position alone are computed)."""
        return self.model(**{"use_cache": False, **inputs, **options}, logits_to_keep=1)


class _Enough(Exception):
    """Raised to stop a forward pass whose rest nobody needs."""


def position_ids(attention_mask: Tensor) -> Tensor:
    """Positions ``[b, l]`` that do not count padding, as ``generate`` gives them."""
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)


def _execution_device(module: nn.Module) -> torch.device:
    """Where a module computes: accelerate brings weights from elsewhere, so a parameter's device may not say."""
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
