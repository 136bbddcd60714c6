"""DeepSeek-VL: 1.3B (SigLIP) and 7B (SigLIP beside SAM's encoder), as transformers' two families know them.

Both processors keep the aspect ratio: the longest side is resized to the input size, the other is rounded (and never
smaller than ``min_size``), grey bars fill up the square. The hybrid one does so at the size of its high-resolution
encoder and then shrinks that padded square for SigLIP; its two encoders are merged cell by cell before the language
model, so the image tokens lie on SigLIP's grid in both. The method's research code truncated where transformers
rounds: for some sizes the picture is one input row or column larger here (at most 2 original pixels on photographs).
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from flmm_plugin.backbones.preprocessing import Paper, size_entries
from flmm_plugin.backbones.views import OneViewBackbone
from flmm_plugin.errors import BackboneUnsupported
from flmm_plugin.geometry import ImageGrid, InputFrame


class DeepseekVLBackbone(OneViewBackbone):
    """``DeepseekVLForConditionalGeneration``: 24 x 24 image tokens of 16 pixels."""

    family: ClassVar[str] = "deepseek_vl"
    paper: ClassVar[Paper] = "padded"
    several_images: ClassVar[bool] = True

    def grid(self, image_height: int, image_width: int) -> ImageGrid:
        """The token grid on a picture of this size, through this very processor."""
        frame = InputFrame.of_image(image_height, image_width)
        return self._shrunk(frame, self.processor.image_processor.size).grid(self._patch)

    @property
    def input_size(self) -> tuple[int, int]:
        """Rows and columns of pixels that SigLIP gets."""
        side = _side(self.processor.image_processor.size)
        return side, side

    @property
    def _patch(self) -> int:
        return int(self.model.config.vision_config.patch_size)

    def _shrunk(self, frame: InputFrame, size: Any) -> InputFrame:
        """Longest side to ``size``, the other rounded, then grey bars: one step of these processors."""
        processor = self.processor.image_processor
        if not (processor.do_resize and processor.do_pad):
            raise BackboneUnsupported(
                f"the image processor of {self.name} does not resize and pad (do_resize={processor.do_resize}, "
                f"do_pad={processor.do_pad}), so the grid is not square; restore its preprocessor_config.json"
            )
        side, least = _side(size), int(processor.min_size)
        shrink = side / max(frame.height, frame.width)
        height, width = (max(round(length * shrink), least) for length in (frame.height, frame.width))
        return frame.resized(height, width).padded_to_square()


class DeepseekVLHybridBackbone(DeepseekVLBackbone):
    """``DeepseekVLHybridForConditionalGeneration``: the 7B models."""

    family: ClassVar[str] = "deepseek_vl_hybrid"

    def grid(self, image_height: int, image_width: int) -> ImageGrid:
        """The token grid: padded at the high-resolution size first, then shrunk as a square."""
        processor = self.processor.image_processor
        frame = self._shrunk(InputFrame.of_image(image_height, image_width), processor.high_res_size)
        return self._shrunk(frame, processor.size).grid(self._patch)

    def paper_inputs(self, texts: list[str], images: list[list[Image.Image]]) -> dict[str, Tensor]:
        """The small view is the large one's floats, interpolated (bilinear), as DeepSeek's own vision tower does it.

        transformers' processor resamples whole grey levels by a filter of its choice. Interpolation keeps constants, so
        it may as well be done on normalised values.
        """
        seen = super().paper_inputs(texts, images)
        processor, large = self.processor.image_processor, seen["high_res_pixel_values"]
        small = F.interpolate(large.float(), self.input_size, mode="bilinear", antialias=True)
        mean, std, large_mean, large_std = (
            torch.tensor(getattr(processor, name), device=large.device)[:, None, None]
            for name in ("image_mean", "image_std", "high_res_image_mean", "high_res_image_std")
        )
        return {**seen, "pixel_values": ((small * large_std + large_mean - mean) / std).to(large.dtype)}


def _side(size: Any) -> int:
    """Return the side of a square size."""
    named = size_entries(size)
    if set(named) != {"height", "width"} or named["height"] != named["width"]:
        raise BackboneUnsupported(f"DeepSeek-VL's image processor makes squares, not {named}; restore its size")
    return named["height"]
