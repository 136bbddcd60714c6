"""Families that show a picture to the model as one view: one run of image tokens per picture, in raster order."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from PIL import Image
from torch import Tensor

from flmm_plugin.backbones.base import Backbone, ImageTokens
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
        grids = [[self.grid(picture.height, picture.width) for picture in pictures] for pictures in images]
        seen = self.input_size
        if made != seen:
            raise BackboneUnsupported(
                f"the image processor of {self.name} makes {made} pixels, its configuration says {seen}; masks would "
                "be misplaced, so restore the processor files that came with the model"
            )
        placeholders = (inputs["input_ids"] == self.image_token_id).cpu()
        runs = [
            split_slots(row.nonzero().flatten(), [grid.height * grid.width for grid in some], self.name)
            for row, some in zip(placeholders, grids, strict=True)
        ]
        return [
            [ImageTokens(slots, grid) for slots, grid in zip(parts, some, strict=True)]
            for parts, some in zip(runs, grids, strict=True)
        ]

    @abstractmethod
    def grid(self, image_height: int, image_width: int) -> ImageGrid:
        """The token grid on a picture of this size, through this very processor."""

    @property
    @abstractmethod
    def input_size(self) -> tuple[int, int]:
        """Rows and columns of pixels that the vision tower gets."""


def split_slots(slots: Tensor, counts: Sequence[int], name: str) -> list[Tensor]:
    """Deal the placeholder slots of one sequence out to its pictures, in order.

    Args:
        slots: All of them, ``[sum(counts)]``.
        counts: Image tokens of each picture.
        name: The model, for the message.

    Raises:
        BackboneUnsupported: There are more or fewer slots than image tokens.
    """
    if len(slots) != sum(counts):
        raise BackboneUnsupported(
            f"{name} has {len(slots)} image tokens in a chat where {sum(counts)} were expected "
            f"({len(counts)} pictures); its processor's number of image tokens does not fit the model"
        )
    return list(torch.split(slots, list(counts)))
