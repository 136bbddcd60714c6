"""LLaVA-OneVision: as LLaVA-NeXT, with finer tiling, and one view each where a chat has several pictures.

Two things differ from LLaVA-NeXT. Tiles that together have more cells than nine views are shrunk to that many
(bilinear, same extent). A picture that is not alone in its chat is padded to a square and shown once; that view then
stands for both, so that heads always read ``2 * m * c`` maps.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

from PIL import Image

from flmm_plugin.backbones.llava_next import LlavaNextBackbone
from flmm_plugin.backbones.preprocessing import Paper
from flmm_plugin.backbones.views import Layout
from flmm_plugin.errors import BackboneUnsupported
from flmm_plugin.geometry import ImageGrid, InputFrame

# Above this excess of cells the model shrinks; a constant of its code.
_TOLERATED = 1.1


class LlavaOnevisionBackbone(LlavaNextBackbone):
    """``LlavaOnevisionForConditionalGeneration``: SigLIP and Qwen2."""

    family: ClassVar[str] = "llava_onevision"
    paper: ClassVar[Paper] = ""
    several_images: ClassVar[bool] = True

    def layout(self, image_height: int, image_width: int, pictures: int = 1) -> Layout:
        """The run of a picture of this size in a chat with so many pictures."""
        if pictures == 1:
            return super().layout(image_height, image_width)
        square = InputFrame.of_image(image_height, image_width).padded_to_square().resized(self._tile, self._tile)
        once = Layout.raster(square.divided(self._cells, self._cells)).twice()
        return Layout(once.count + 1, once.order, once.grid, once.coarse)  # one newline token behind it

    def fine_grid(self, image_height: int, image_width: int) -> ImageGrid:
        """All tiles together, padding removed, shrunk where there are too many cells."""
        grid = super().fine_grid(image_height, image_width)
        aspect = str(self.model.config.vision_aspect_ratio)
        most = aspect.removeprefix("anyres_max_")
        if not most.isdigit():
            raise BackboneUnsupported(
                f"{self.name} joins its tiles by {aspect!r}, known is anyres_max_<number>; masks would be misplaced"
            )
        ratio = math.sqrt(grid.height * grid.width / (int(most) * self._cells**2))
        if ratio <= _TOLERATED:
            return grid
        return grid.divided(int(grid.height // ratio), int(grid.width // ratio))

    def pictures(self, images: list[list[Image.Image]]) -> Any:
        """Chat by chat: the processor must know which pictures are alone in their chat."""
        return [some for some in images if some] or None
