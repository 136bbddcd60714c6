"""The generic way: any model that transformers loads to look at pictures and write text, if its grid can be recovered.

Nothing is taken on trust. Where pictures are resized, cropped or padded to one view, the way there is measured by
sending ramps through the processor (`processor_probe`); the number of image tokens must be that of the vision tower's
patches, or of square blocks of them; and that tokens stand in reading order is tested once per input size, by lighting
up places in the input and looking which token's embedding changes most. Query-based projectors (Q-Former, Perceiver)
fail that last test whatever their number of tokens. Families that say their patches' grid themselves
(``image_grid_thw``) are read from it.

What cannot be recovered is an error that says what and why; tiles are among it, their order is known only family by
family.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from flmm_plugin.backbones.base import Backbone, ImageTokens, position_ids
from flmm_plugin.backbones.processor_probe import measured_frame, not_recovered
from flmm_plugin.backbones.qwen_vl import grids_of_patches, rope_positions
from flmm_plugin.backbones.views import Layout, place
from flmm_plugin.errors import BackboneUnsupported
from flmm_plugin.geometry import ImageGrid
from flmm_plugin.token_mixers import token_mixers

# Of the places that are lit up, so many must light up their own token (or its neighbour).
_PROBES = 5
_AGREE = 4


class AutoBackbone(Backbone):
    """A model without a family of its own."""

    family: ClassVar[str] = "auto"

    def __init__(self, model: Any, processor: Any, **options: Any) -> None:
        super().__init__(model, processor, **options)
        self._measured: dict[tuple[int, int], ImageGrid] = {}
        self._tested: set[tuple[int, int]] = set()

    @cached_property
    def decoder(self) -> nn.Module:
        """The language model's body, whose layers' attention is read.

        Raises:
            BackboneUnsupported: The model does not say which part that is, or no layer of it has rows.
        """
        if not hasattr(self.model, "get_decoder"):
            raise BackboneUnsupported(not_recovered(self.name, "it does not say which part is its language model"))
        decoder: nn.Module = self.model.get_decoder()
        if not hasattr(decoder, "layers") or not any(one.heads for one in token_mixers(decoder)):
            why = f"no layer of its {type(decoder).__name__} has attention to read"
            raise BackboneUnsupported(not_recovered(self.name, why))
        return decoder

    @property
    def image_token(self) -> str:
        """The token that stands for a picture in the text of a chat; ``<image>`` where the processor names none."""
        return str(getattr(self.processor, "image_token", None) or "<image>")

    def try_processor(self) -> None:
        """Only where the model says which part is its language model, and the processor names an image token."""
        if hasattr(self.model, "get_decoder") and getattr(self.processor, "image_token", None) is not None:
            super().try_processor()

    def _check_places(self, texts: list[str], images: list[list[Image.Image]]) -> None:
        """Leave to the processor what it alone knows: some put pictures where no token of the text says so."""
        token = getattr(self.processor, "image_token", None)
        if token is not None and any(str(token) in text for text in texts):
            super()._check_places(texts, images)

    @property
    def image_token_id(self) -> int:
        """The placeholder of one image token in ``input_ids``."""
        for owner, name in (
            (self.model.config, "image_token_id"),
            (self.model.config, "image_token_index"),
            (self.processor, "image_token_id"),
        ):
            found = getattr(owner, name, None)
            if isinstance(found, int):
                return found
        if getattr(self.processor, "image_token", None) is None:
            raise BackboneUnsupported(not_recovered(self.name, "its processor names no image token"))
        return int(self.tokenizer.convert_tokens_to_ids(self.image_token))

    def positions(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """As the model's own function gives them where it has one (several axes), else counted."""
        if hasattr(self.model.model, "get_rope_index"):
            return rope_positions(self.model.model, inputs)
        return position_ids(inputs["attention_mask"])

    def image_tokens(self, inputs: Mapping[str, Tensor], images: list[list[Image.Image]]) -> list[list[ImageTokens]]:
        """One view per picture.

        Raises:
            BackboneUnsupported: Something of it could not be recovered; says what.
        """
        placeholders = inputs["input_ids"] == self.image_token_id
        if "image_grid_thw" in inputs:
            return place(placeholders, grids_of_patches(self.processor, inputs, images), self.name)
        total, pictures = int(placeholders.sum()), sum(len(some) for some in images)
        if total == 0:
            why = f"its sequences hold no placeholder {self.image_token!r} (id {self.image_token_id})"
            raise BackboneUnsupported(not_recovered(self.name, why))
        pixels = inputs.get("pixel_values")
        if pixels is None or pixels.ndim != 4 or len(pixels) != pictures:
            shape = "no pixel_values" if pixels is None else f"pixel_values {tuple(pixels.shape)}"
            why = f"its processor makes {shape} of {pictures} pictures, not one view [3, height, width] of each"
            raise BackboneUnsupported(not_recovered(self.name, why))
        if total % pictures:
            why = f"{total} image tokens for {pictures} pictures of one input size"
            raise BackboneUnsupported(not_recovered(self.name, why))
        size = (int(pixels.shape[-2]), int(pixels.shape[-1]))
        rows, columns, patch = self.cells(total // pictures, size)
        layouts = [[Layout.raster(self._grid(one, size, (rows, columns, patch))) for one in some] for some in images]
        found = place(placeholders, layouts, self.name)
        if size not in self._tested:
            self._test_order(inputs, found, (rows, columns, patch))
            self._tested.add(size)
        return found

    def cells(self, tokens: int, size: tuple[int, int]) -> tuple[int, int, int]:
        """Rows and columns of the grid, and input pixels along the side of a cell.

        Args:
            tokens: Image tokens of one picture.
            size: Input pixels, height and width.

        Raises:
            BackboneUnsupported: The tokens are no grid of patches, or of square blocks of patches.
        """
        vision = getattr(self.model.config, "vision_config", None)
        patch = getattr(vision, "patch_size", None)
        patch = patch[0] if isinstance(patch, (list, tuple)) else patch
        if not isinstance(patch, int):
            why = "its config.vision_config names no patch_size"
            raise BackboneUnsupported(not_recovered(self.name, why))
        height, width = size[0] // patch, size[1] // patch
        for block in range(1, min(height, width) + 1):
            if (height // block) * (width // block) == tokens:
                return height // block, width // block, patch * block
        why = f"{tokens} image tokens are no grid over {height} x {width} patches of {patch} pixels"
        raise BackboneUnsupported(not_recovered(self.name, why))

    def _grid(self, picture: Image.Image, size: tuple[int, int], cells: tuple[int, int, int]) -> ImageGrid:
        key = (picture.height, picture.width)
        if key not in self._measured:
            frame = measured_frame(self.processor.image_processor, *key, self.name)
            if (frame.height, frame.width) != size:
                why = f"its image processor alone makes {(frame.height, frame.width)} pixels, with a chat {size}"
                raise BackboneUnsupported(not_recovered(self.name, why))
            self._measured[key] = frame.grid(cells[2])
        return self._measured[key]

    @torch.no_grad()
    def _test_order(
        self, inputs: Mapping[str, Tensor], found: list[list[ImageTokens]], cells: tuple[int, int, int]
    ) -> None:
        """Light up one cell at a time; its own token must change most, or one next to it."""
        rows, columns, patch = cells
        item = next(index for index, tokens in enumerate(found) if tokens)
        slots = found[item][0].slots
        first = sum(len(tokens) for tokens in found[:item])
        picture = torch.zeros_like(inputs["pixel_values"][first : first + 1])
        several = len(found[item])
        spread = torch.linspace(0, rows * columns - 1, _PROBES + 2).long()[1:-1].tolist()
        probes = [divmod(cell, columns) for cell in spread]
        plain = self._embedded(inputs, item, picture.expand(several, -1, -1, -1))[slots]
        agree, worst = 0, ""
        for row, column in probes:
            lit = picture.clone()
            lit[..., row * patch : (row + 1) * patch, column * patch : (column + 1) * patch] = 2.0
            others = picture.expand(several - 1, -1, -1, -1)
            change = (self._embedded(inputs, item, torch.cat([lit, others]))[slots] - plain).float().norm(dim=-1)
            at = divmod(int(change.argmax()), columns)
            if max(abs(at[0] - row), abs(at[1] - column)) <= 1:
                agree += 1
            else:
                worst = f"lighting up row {row}, column {column} of its input changed token {at} most"
        if agree < _AGREE:
            why = f"its image tokens are not the cells of a grid in reading order ({worst}); a query-based projector?"
            raise BackboneUnsupported(not_recovered(self.name, why))

    def _embedded(self, inputs: Mapping[str, Tensor], item: int, pixels: Tensor) -> Tensor:
        """Give what the language model gets for one chat, ``[l, d]``."""
        per_token = {
            name: value[item : item + 1] for name, value in inputs.items() if value.shape == inputs["input_ids"].shape
        }
        return self.embedded({**per_token, "pixel_values": pixels})[0].cpu()
