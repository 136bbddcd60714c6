"""Join mask decoder, mask refiner, text projection, layer weights and keyword selector in one module.

Shapes: n phrases, t tokens of a phrase, m layers, c heads per layer (times maps per image), h x w image-token grid,
H x W original picture, d hidden size of the backbone, p prompt width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from PIL import Image
from segment_anything.modeling import Sam
from torch import Tensor, nn

from flmm_plugin.errors import HeadsMismatch
from flmm_plugin.heads.keyword_selector import KeywordSelector
from flmm_plugin.heads.manifest import HeadsManifest
from flmm_plugin.heads.mask_decoder import MaskDecoder
from flmm_plugin.heads.mask_refiner import ImageEmbedding, MaskRefiner
from flmm_plugin.heads.sam import build_sam, prompt_dim
from flmm_plugin.resampling import PlacedMaps


class Grid(Protocol):
    """The part of `flmm_plugin.geometry.ImageGrid` that the heads need."""

    @property
    def image_height(self) -> int:
        """H."""

    @property
    def image_width(self) -> int:
        """W."""

    def placed(self, maps: Tensor, fill: float, /) -> PlacedMaps:
        """Place maps ``[n, h', w']`` over the grid's extent on the picture; ``fill`` outside the extent."""

    def picture_cells(self, map_height: int, map_width: int, /) -> tuple[int, int, int, int] | None:
        """Top, left, height and width of the picture in whole cells of such a map; None if it reaches beyond."""


@dataclass(frozen=True, eq=False)
class HeadOutput:
    """Logits of low resolution, placed on the picture; those of its pixels are computed when they are asked for.

    Attributes:
        coarse: Of the mask decoder, n maps.
        refined: Of the mask refiner, n maps; None: not refined.
    """

    coarse: PlacedMaps
    refined: PlacedMaps | None = None

    @property
    def final(self) -> PlacedMaps:
        """The refined maps, or the coarse ones where nothing was refined."""
        return self.coarse if self.refined is None else self.refined

    @cached_property
    def decoder_logits(self) -> Tensor:
        """Logits of the mask decoder, ``[n, H, W]``, image frame."""
        return self.coarse.image()

    @cached_property
    def logits(self) -> Tensor:
        """The final logits, ``[n, H, W]``, image frame; `decoder_logits` itself where nothing was refined."""
        return self.decoder_logits if self.refined is None else self.refined.image()


class GroundingHeads(nn.Module):
    """Attention maps and hidden states of phrases to masks.

    Args:
        manifest: Numbers and settings that they were built for.
        mask_decoder: Attention maps to coarse logits: a `MaskDecoder`, or a rule without weights.
        mask_refiner: Coarse logits, text and picture to final logits; None: the coarse logits are final.
        text_proj: ``d -> p``; None without a refiner.
        text_layer_weights: ``[m]``, softmaxed into the mixture of layers that makes the text embedding.
        keyword_selector: Which tokens to ground in a chat; None if not trained.
    """

    def __init__(
        self,
        manifest: HeadsManifest,
        mask_decoder: nn.Module,
        mask_refiner: MaskRefiner | None,
        text_proj: nn.Linear | None,
        text_layer_weights: Tensor,
        keyword_selector: KeywordSelector | None,
    ) -> None:
        super().__init__()
        self.manifest = manifest
        self.mask_decoder = mask_decoder
        self.mask_refiner = mask_refiner
        self.text_proj = text_proj
        self.text_layer_weights = nn.Parameter(text_layer_weights)
        self.keyword_selector = keyword_selector

    @classmethod
    def build(cls, manifest: HeadsManifest, sam: Sam | None = None) -> GroundingHeads:
        """Freshly initialised heads of the shape that a manifest describes; ``sam`` is used where it is given."""
        decoder = MaskDecoder(manifest.attention_maps, **manifest.decoder)
        refiner, text_proj = None, None
        if manifest.sam is not None:
            prompts = manifest.sam_prompts
            refiner = MaskRefiner(
                build_sam(manifest.sam) if sam is None else sam,
                use_box=prompts.get("box", True),
                use_mask=prompts.get("mask", True),
                use_text=prompts.get("text", True),
            )
            text_proj = nn.Linear(manifest.hidden_size, prompt_dim(manifest.sam))
        selector = KeywordSelector(manifest.hidden_size) if manifest.keyword_selector else None
        return cls(manifest, decoder, refiner, text_proj, torch.ones(manifest.layers), selector)

    @property
    def device(self) -> torch.device:
        """Device of the heads."""
        return self.text_layer_weights.device

    def text_prompts(self, hidden: Sequence[Tensor]) -> list[Tensor]:
        """Hidden states of each phrase's tokens, n x ``[t_i, m, d]``, -> prompts for the refiner, n x ``[t_i, p]``."""
        if self.text_proj is None:
            raise HeadsMismatch("these heads have no refiner, so no text prompts; call them with refine=False")
        weights = self.text_layer_weights.softmax(dim=0)
        prompts: list[Tensor] = []
        for states in hidden:
            if states.ndim != 3 or states.shape[1] != weights.shape[0]:
                raise HeadsMismatch(
                    f"heads mix {weights.shape[0]} layers of hidden states [t, m, d], got {tuple(states.shape)}; "
                    "use heads that were trained for this backbone"
                )
            mixed = torch.einsum("tmd,m->td", states.to(self.device, weights.dtype), weights)
            prompts.append(self.text_proj(mixed))
        return prompts

    def coarse(self, attention: Tensor, grid: Grid) -> PlacedMaps:
        """Mask decoder's logits, n maps placed on the picture, as the refiner gets them.

        Pixels that the backbone never saw (a centre crop) get what the refiner's padding gets: ``min(-1, lowest)``.

        Args:
            attention: Merged unnormalised maps ``[n, m*c, h, w]``, grid frame.
            grid: How the token grid lies on the picture.
        """
        logits: Tensor = self.mask_decoder(attention.to(self.device))
        size = (grid.image_height, grid.image_width)
        if self.manifest.placement == "whole":
            return PlacedMaps.over(logits, size)
        if self.manifest.placement == "cells":
            window = grid.picture_cells(*logits.shape[-2:])
            if window is not None:
                top, left, height, width = window
                return PlacedMaps.over(logits[:, top : top + height, left : left + width], size)
        lowest = float(logits.detach().min()) if len(logits) else 0.0
        return grid.placed(logits, min(-1.0, lowest))

    def forward(
        self,
        attention: Tensor,
        hidden: Sequence[Tensor],
        image: Image.Image | ImageEmbedding,
        grid: Grid,
        refine: bool = True,
    ) -> HeadOutput:
        """Ground the phrases of one picture.

        Args:
            attention: Maps merged over each phrase's tokens, ``[n, m*c, h, w]``, grid frame, not normalised.
            hidden: n x ``[t_i, m, d]``, outputs of every layer at the phrase's tokens.
            image: The picture, or its embedding where the caller keeps those.
            grid: How the token grid lies on the picture.
            refine: Use the refiner if there is one; False: coarse logits only, and SAM is not run at all.

        Raises:
            HeadsMismatch: Number of maps or layers of another backbone.
        """
        coarse = self.coarse(attention, grid)
        if self.mask_refiner is None or not refine:
            return HeadOutput(coarse)
        embedding = image if isinstance(image, ImageEmbedding) else self.mask_refiner.encode_image(image)
        return HeadOutput(coarse, self.mask_refiner(embedding, coarse, self.text_prompts(hidden)))
