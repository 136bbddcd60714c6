"""Families that show a picture to the model as one view: one run of image tokens per picture, in raster order."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

from PIL import Image
from torch import Tensor

from flmm_plugin.backbones.base import Backbone, ImageTokens
from flmm_plugin.backbones.views import Layout, place
from flmm_plugin.errors import BackboneUnsupported
from flmm_plugin.geometry import ImageGrid


class OneViewBackbone(Backbone):
    """What such families share: a family says how its processor lays the grid on a picture, and nothing else."""

    def image_tokens(self, inputs: Mapping[str, Tensor], images: list[list[Image.Image]]) -> list[list[ImageTokens]]:
        """Split each sequence's placeholders among its pictures.

        Raises:
            BackboneUnsupported: The processor did something else than its configuration says.
        """
        made = tuple(int(side) for side in inputs["pixel_values"].shape[-2:])
        seen = self.input_size
        if made != seen:
            raise BackboneUnsupported(
                f"the image processor of {self.name} makes {made} pixels, its configuration says {seen}; masks would "
                "be misplaced, so restore the processor files that came with the model"
            )
        layouts = [[Layout.raster(self.grid(one.height, one.width)) for one in some] for some in images]
        return place(inputs["input_ids"] == self.image_token_id, layouts, self.name)

    @abstractmethod
    def grid(self, image_height: int, image_width: int) -> ImageGrid:
        """The token grid on a picture of this size, through this very processor."""

    @property
    @abstractmethod
    def input_size(self) -> tuple[int, int]:
        """Rows and columns of pixels that the vision tower gets."""
