"""LLaVA-1.5 and everything of its shape: ``LlavaForConditionalGeneration`` with whatever image processor it came with.

Geometry follows the processor instance step by step: llava-hf's CLIP processor resizes the shortest side and crops the
centre (the model sees 75 % of a 4:3 photograph), ``LlavaImageProcessor(do_pad=True)`` pads first (the original LLaVA).
Which one it is changes chat and masks alike, so it is read from the processor and never assumed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from PIL import Image
from torch import Tensor

from flmm_plugin.backbones.base import Backbone, ImageTokens
from flmm_plugin.backbones.preprocessing import Paper, size_entries
from flmm_plugin.backbones.views import Layout, place
from flmm_plugin.errors import BackboneUnsupported
from flmm_plugin.geometry import ImageGrid, InputFrame


class LlavaBackbone(Backbone):
    """One view per picture, its tokens in one run, raster order."""

    family: ClassVar[str] = "llava"
    paper: ClassVar[Paper] = "padded"

    def image_tokens(self, inputs: Mapping[str, Tensor], images: list[list[Image.Image]]) -> list[list[ImageTokens]]:
        """Split each sequence's placeholders among its pictures.

        Raises:
            BackboneUnsupported: The processor did something else than its configuration says.
        """
        height, width = (int(side) for side in inputs["pixel_values"].shape[-2:])
        # A tower that keeps its class token puts it before the patches; it lies nowhere on the picture.
        dropped = self.processor.vision_feature_select_strategy == "default"
        extra = int(self.processor.num_additional_image_tokens) - dropped
        layouts = [
            [Layout.raster(self.grid(one.height, one.width, (height, width)), skipped=extra) for one in pictures]
            for pictures in images
        ]
        return place(inputs["input_ids"] == self.image_token_id, layouts, self.name)

    def grid(self, image_height: int, image_width: int, input_size: tuple[int, int] | None = None) -> ImageGrid:
        """The token grid on a picture of this size, through this very processor.

        Args:
            image_height: Rows of the original picture.
            image_width: Columns of the original picture.
            input_size: What the processor really made, to be compared.
        """
        frame = follow_processor(self.processor.image_processor, image_height, image_width)
        if input_size is not None and (frame.height, frame.width) != input_size:
            raise BackboneUnsupported(
                f"the image processor of {self.name} makes {input_size} of a ({image_height}, {image_width}) picture, "
                f"its configuration says ({frame.height}, {frame.width}); masks would be misplaced"
            )
        return frame.grid(int(self.processor.patch_size))


def follow_processor(image_processor: Any, image_height: int, image_width: int) -> InputFrame:
    """Follow what a CLIP-style image processor of transformers does to a picture of this size, as a frame.

    Args:
        image_processor: Anything with their flags: ``do_pad`` (to a square, first; LLaVA's own processor),
            ``do_resize`` with ``size``, ``do_center_crop`` with ``crop_size``; either backend.
        image_height: Rows of the original picture.
        image_width: Columns of the original picture.

    Raises:
        BackboneUnsupported: A step that is not known exactly.
    """
    kind = type(image_processor).__name__
    frame = InputFrame.of_image(image_height, image_width)
    if getattr(image_processor, "do_pad", False):
        if not hasattr(image_processor, "pad_to_square"):
            raise BackboneUnsupported(
                f"{kind} pads in a way that is not known here; use LlavaImageProcessor(do_pad=True)"
            )
        frame = frame.padded_to_square()
    if getattr(image_processor, "do_resize", False):
        size = size_entries(image_processor.size)
        if set(size) == {"shortest_edge"}:
            frame = frame.resized_shortest_edge(size["shortest_edge"])
        elif set(size) == {"height", "width"}:
            frame = frame.resized(size["height"], size["width"])
        else:
            raise BackboneUnsupported(f"{kind} resizes by {size}; known are shortest_edge, or height and width")
    if getattr(image_processor, "do_center_crop", False):
        crop = size_entries(image_processor.crop_size)
        frame = frame.center_cropped(crop["height"], crop["width"], pad_up=kind.endswith("Pil"))
    return frame
