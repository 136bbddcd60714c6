"""Language models into whose text embeddings picture features are spliced, on top of transformers' LLaVA classes.

What differs between such families is how features come about (`LlavaLike.picture_features`). The placeholder is an id
beyond the vocabulary: it is never looked up in the embedding, which keeps its size and so its logits.

Shapes: b chats, l sequence length, p pictures, k image tokens per picture, d hidden size.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from flmm_plugin.errors import BackboneUnsupported


class LlavaLike(LlavaForConditionalGeneration):
    """LLaVA's text side with another picture side; `picture_features` is the family's."""

    def picture_features(self, pixel_values: Tensor, high_res_pixel_values: Tensor | None) -> Tensor:
        """Compute what the language model is shown of each picture.

        Args:
            pixel_values: ``[p, ...]`` as the family's processor makes them.
            high_res_pixel_values: A second, larger view, for families that have one.

        Returns:
            ``[p, k, d]``, scaled as the language model's own embeddings are.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say what it makes of a picture")

    def embedded(
        self, input_ids: Tensor, pixel_values: Tensor | None, high_res_pixel_values: Tensor | None = None
    ) -> Tensor:
        """Text embeddings with picture features in place of the placeholders, ``[b, l, d]``."""
        is_image = input_ids == self.config.image_token_id
        embeddings = cast("Tensor", self.get_input_embeddings()(input_ids.masked_fill(is_image, 0)))
        if pixel_values is None:
            return embeddings
        features = self.picture_features(pixel_values, high_res_pixel_values)
        if int(is_image.sum()) != features.shape[:2].numel():
            raise BackboneUnsupported(
                f"{int(is_image.sum())} image placeholders for {features.shape[:2].numel()} picture features; give as "
                "many pictures as places for them"
            )
        where = is_image[..., None].to(embeddings.device)
        return embeddings.masked_scatter(where, features.to(embeddings.device, embeddings.dtype))

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        high_res_pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> Any:
        """As LLaVA's; pictures go in through ``pixel_values`` (and ``high_res_pixel_values``)."""
        if inputs_embeds is None:
            if input_ids is None:
                raise ValueError("give input_ids or inputs_embeds")
            inputs_embeds = self.embedded(input_ids, pixel_values, high_res_pixel_values)
        return super().forward(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            labels=labels,
            logits_to_keep=logits_to_keep,
            **kwargs,
        )

    def prepare_inputs_for_generation(  # type: ignore[override]
        self, input_ids: Tensor, high_res_pixel_values: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """The larger view goes where ``pixel_values`` go: into the first pass, or into each where there is no cache.

        ``generate`` looks at the names of these arguments, ``kwargs`` among them, to know what the model takes.
        """
        stock: Any = super()
        inputs: dict[str, Any] = stock.prepare_inputs_for_generation(input_ids, **kwargs)
        if inputs.get("pixel_values") is not None:
            inputs["high_res_pixel_values"] = high_res_pixel_values
        return inputs

    def _rebuilt(self, body: nn.Module) -> None:
        """Put a body in LLaVA's place, with a vocabulary head of its size."""
        self.model: Any = body
        text: Any = self.config.text_config
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)


def embedding_scale(embedding: nn.Module) -> float | None:
    """Return the factor that an embedding scales its rows by (Gemma's), so that pictures get it too; None without one.

    In versions of transformers where Gemma's body scales whatever it is given, the embedding has no such number.
    """
    scale = getattr(embedding, "scalar_embed_scale", None)
    return None if scale is None else float(scale)


def as_tiles(images: Tensor, per_side: int) -> Tensor:
    """Cut ``[p, c, H, W]`` into ``per_side x per_side`` tiles, ``[p * per_side ** 2, c, H', W']``, row by row."""
    if per_side == 1:
        return images
    rows = images.unflatten(-1, (per_side, -1)).unflatten(-3, (per_side, -1))  # p, c, rows, H', columns, W'
    return torch.movedim(rows, (2, 4), (1, 2)).flatten(0, 2)
