"""The contract of a model family: how it is loaded, where its image tokens lie, how it generates.

A family implements one method, `Backbone.image_tokens`; everything else is the same for all families that transformers
loads with a processor. Nothing here touches how the model computes: `generate` is the model's own.

Shapes: b batch, l sequence length, h x w image-token grid, n phrases, m layers, c heads per layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar, Self, cast

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from flmm_plugin.backbones.encoding import REFUSALS, ChatEncoder, execution_device
from flmm_plugin.backbones.generation import answer_length, answer_options, with_length
from flmm_plugin.backbones.inputs import EncodedChat, Generated, ImageTokens, Message, Messages
from flmm_plugin.backbones.loading import load_pretrained
from flmm_plugin.backbones.processor_check import contradictions
from flmm_plugin.errors import BackboneUnsupported, UnknownArgument
from flmm_plugin.heads.manifest import LINEAR, SOFTMAX, BackboneFacts
from flmm_plugin.options import LoadOptions
from flmm_plugin.token_mixers import final_norm, token_mixers

__all__ = ["Backbone", "EncodedChat", "Generated", "ImageTokens", "Message", "Messages"]


class Backbone(ChatEncoder):
    """A frozen model with its processor.

    Attributes:
        maps_per_image: Attention maps per head and picture; 2 for families with a coarse and a fine view.
        several_images: Whether models of the family were trained on chats with several pictures; a visual chain of
            thought then answers from the whole picture and the cut-out, else from the cut-out alone.
        rows: What attention maps hold, ``attention`` or ``value`` (`flmm_plugin.heads.manifest.ROWS`), as the heads
            that ground say.
        refused_options: Names of `LoadOptions` that mean nothing to the family; giving one is an error.
    """

    maps_per_image: ClassVar[int] = 1
    several_images: ClassVar[bool] = False
    refused_options: ClassVar[tuple[str, ...]] = ("trust_remote_code",)
    rows: str = "attention"

    @classmethod
    def load(cls, folder: str, *, name: str, options: LoadOptions) -> Self:
        """Load model and processor with transformers.

        Args:
            folder: A folder on this machine, or a hub id.
            name: The model as the user called it.
            options: Options of loading, `refused_options` not among them.

        Raises:
            BackboneUnsupported: transformers cannot load it.
            BadCheckpoint: Its weights are damaged or incomplete.
        """
        model, processor = load_pretrained(folder, name=name, options=options)
        backbone = cls(model, processor, name=name, options=options)
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
                images=self.pictures([[picture]]), text=[self.try_text()], padding=True, return_tensors="pt"
            ).to(self.device, self.dtype)
            self.embedded(dict(inputs))
        except torch.OutOfMemoryError:
            return
        except (*REFUSALS, ImportError) as exc:
            clauses = "; ".join([*contradictions(self.processor, self.model.config), str(exc) or type(exc).__name__])
            raise BackboneUnsupported(
                f"processor and model of {self.name} do not fit ({clauses}); restore the processor files that "
                "came with the model"
            ) from exc

    def try_text(self) -> str:
        """The text that goes with the picture of `try_processor`."""
        return self.image_token

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
    def kernel(self) -> str | None:
        """Attention kernel of the model, as transformers calls it."""
        found = getattr(self.model.config, "_attn_implementation", None)
        return None if found is None else str(found)

    @property
    def facts(self) -> BackboneFacts:
        """The numbers that heads must fit."""
        sizes = (self.num_layers, self.num_heads, self.hidden_size, self.maps_per_image)
        mixers = token_mixers(self.decoder)
        if all(one.kind == SOFTMAX for one in mixers):
            return BackboneFacts(self.name, *sizes, self.revision)
        linear = {one.heads for one in mixers if one.kind == LINEAR}
        if len(linear) > 1:
            raise BackboneUnsupported(f"linear layers of {self.name} differ in their heads ({sorted(linear)})")
        kinds = tuple(one.kind for one in mixers)
        return BackboneFacts(self.name, *sizes, self.revision, kinds, max(linear, default=0))

    @property
    def output_device(self) -> torch.device:
        """Device of the last layer, where captured rows arrive."""
        return execution_device(final_norm(self.decoder))

    @torch.no_grad()
    def generate(self, encoded: EncodedChat, **gen: Any) -> Generated:
        """The model's own ``generate``; nothing of this package is in its way.

        Args:
            encoded: The chats, as `encode` returns them.
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
        except REFUSALS as exc:
            if asked:
                raise UnknownArgument(f"{self.name} does not answer with {asked}: {exc}") from exc
            raise BackboneUnsupported(f"{self.name} does not answer what its processor made: {exc}") from exc
        answers = out.sequences[:, encoded.length :]
        beams = (config.num_beams or 1) > 1
        # Only what something else than an end token ended is padded without one. Any other answer's last tokens are its
        # own, whatever they are, and so are those of a chat alone.
        others_end = beams or config.stop_strings is not None or bool(gen.get("stopping_criteria"))
        pad = gen.get("pad_token_id", config.pad_token_id) if others_end and len(answers) > 1 else None
        lengths = tuple(answer_length(answer, config.eos_token_id, pad) for answer in answers.tolist())
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
