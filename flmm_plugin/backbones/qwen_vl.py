"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL: any resolution, 2 x 2 patches merged to a token, positions on three axes.

A picture is resized to a multiple of the merged patch, sides apart (up to half a merged patch of distortion each), and
shown once: one map per head. The number of its tokens, and so the size of its grid, follows from its size; what the
processor really did is read from ``image_grid_thw``. Image tokens have a row and a column beside their time
(multimodal rotary embedding), so positions cannot be counted from the attention mask: the model's own function gives
them for every sequence that is read back. Windowed attention in the vision tower and visual features added to early
decoder layers (Qwen3-VL) do not move tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

from PIL import Image
from torch import Tensor

from flmm_plugin.backbones.base import Backbone, ImageTokens
from flmm_plugin.backbones.views import Layout, place
from flmm_plugin.geometry import ImageGrid


class Qwen2VLBackbone(Backbone):
    """``Qwen2VLForConditionalGeneration``, and what its successors share."""

    family: ClassVar[str] = "qwen2_vl"
    several_images: ClassVar[bool] = True

    def image_tokens(self, inputs: Mapping[str, Tensor], images: list[list[Image.Image]]) -> list[list[ImageTokens]]:
        """One view per picture, of a size of its own."""
        layouts = grids_of_patches(self.processor, inputs, images)
        return place(inputs["input_ids"] == self.image_token_id, layouts, self.name)

    def positions(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Time, row and column of every token, ``[3, b, l]``, by the model's own function."""
        return rope_positions(self.model.model, inputs)

    def forward_body(self, inputs: Mapping[str, Any], **options: Any) -> Any:
        """One forward pass without vocabulary logits.

        The model remembers the offset between tokens and positions of its latest prompt for the steps of ``generate``
        that follow; a pass of ours between two steps must leave it as it was.
        """
        remembered = self.model.model.rope_deltas
        try:
            return super().forward_body(inputs, **options)
        finally:
            self.model.model.rope_deltas = remembered


class Qwen25VLBackbone(Qwen2VLBackbone):
    """``Qwen2_5_VLForConditionalGeneration``."""

    family: ClassVar[str] = "qwen2_5_vl"


class Qwen3VLBackbone(Qwen2VLBackbone):
    """``Qwen3VLForConditionalGeneration``."""

    family: ClassVar[str] = "qwen3_vl"


def grids_of_patches(
    processor: Any, inputs: Mapping[str, Tensor], images: list[list[Image.Image]]
) -> list[list[Layout]]:
    """One view per picture, squashed to the size that ``image_grid_thw`` says, square blocks of patches merged."""
    patch, merge = int(processor.image_processor.patch_size), int(processor.image_processor.merge_size)
    sizes = iter(inputs["image_grid_thw"].tolist())
    layouts: list[list[Layout]] = []
    for pictures in images:
        layouts.append([])
        for picture in pictures:
            _, rows, columns = next(sizes)
            grid = ImageGrid.from_squash(picture.height, picture.width, rows * patch, columns * patch, patch * merge)
            layouts[-1].append(Layout.raster(grid))
    return layouts


def rope_positions(body: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """Positions on several axes, ``[axes, b, l]``, by the model body's own ``get_rope_index``."""
    asked = ("input_ids", "attention_mask", "mm_token_type_ids", "image_grid_thw")
    found, _ = body.get_rope_index(**{name: inputs[name] for name in asked if name in inputs})
    return cast("Tensor", found)
