"""Describe how the placeholders of a picture lie on it, in one view or several.

A family says per picture what its run of placeholders holds (`Layout`: newlines between rows, tiles one after another,
a thumbnail last); `place` finds the runs in the sequences and makes `ImageTokens` of them.

Shapes: k tokens as `ImageTokens.slots` lists them, h x w image-token grid.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from flmm_plugin.backbones.base import Backbone
from flmm_plugin.backbones.inputs import ImageTokens
from flmm_plugin.errors import BackboneUnsupported
from flmm_plugin.geometry import ImageGrid


@dataclass(frozen=True, eq=False)
class Layout:
    """One picture's run of placeholders.

    Attributes:
        count: Placeholders in the run, those included that show nothing.
        order: Places within the run, ``[k]`` int64: of the coarse views, then of `grid`, each in raster order.
        grid: The finest view on the picture.
        coarse: Views of less detail, in the order of their tokens.
    """

    count: int
    order: Tensor
    grid: ImageGrid
    coarse: tuple[ImageGrid, ...] = ()

    @classmethod
    def raster(cls, grid: ImageGrid, skipped: int = 0) -> Layout:
        """Return one view, row by row, after tokens that show nothing of the picture."""
        count = skipped + grid.height * grid.width
        return cls(count, torch.arange(skipped, count), grid)

    @classmethod
    def base_and_rows(cls, base: ImageGrid, fine: ImageGrid) -> Layout:
        """A coarse view, then the rows of a fine one, each ended by a newline token (LLaVA's ``anyres``)."""
        first = base.height * base.width
        rows = first + torch.arange(fine.height * (fine.width + 1)).reshape(fine.height, fine.width + 1)
        order = torch.cat([torch.arange(first), rows[:, :-1].flatten()])
        return cls(first + rows.numel(), order, fine, (base,))

    @classmethod
    def tiles(cls, rows: int, columns: int, fine: ImageGrid, thumbnail: ImageGrid) -> Layout:
        """Tiles one after another, each in raster order, then the thumbnail (InternVL).

        Args:
            rows: Number of tiles from top to bottom.
            columns: Number of tiles from left to right.
            fine: Grid of all tiles together.
            thumbnail: Grid of the small view of the whole picture.
        """
        height, width = fine.height // rows, fine.width // columns
        count = fine.height * fine.width
        tiles = torch.arange(count).reshape(rows, columns, height, width)
        order = tiles.permute(0, 2, 1, 3).flatten()
        small = count + torch.arange(thumbnail.height * thumbnail.width)
        return cls(count + len(small), torch.cat([small, order]), fine, (thumbnail,))

    def twice(self) -> Layout:
        """A picture that was shown once, to a family that otherwise shows two views: the same tokens for both."""
        return Layout(self.count, torch.cat([self.order, self.order]), self.grid, (self.grid,))


def place(placeholders: Tensor, layouts: Sequence[Sequence[Layout]], name: str) -> list[list[ImageTokens]]:
    """Deal the placeholders of each sequence out to its pictures, in order.

    Args:
        placeholders: Whether a token is one, bool ``[b, l]``.
        layouts: Of each sequence, one per picture in order of appearance.
        name: The model, for the message.

    Raises:
        BackboneUnsupported: There are more or fewer placeholders than the layouts say.
    """
    found = []
    for row, some in zip(placeholders.cpu(), layouts, strict=True):
        slots, counts = row.nonzero().flatten(), [layout.count for layout in some]
        if len(slots) != sum(counts):
            raise BackboneUnsupported(
                f"{name} has {len(slots)} image tokens where {sum(counts)} were expected in a chat ({len(counts)} "
                "pictures); its processor does not do what its configuration says, so masks would be misplaced: "
                "restore the processor files that came with the model"
            )
        runs = slots.split(counts)
        found.append(
            [ImageTokens(run[layout.order], layout.grid, layout.coarse) for run, layout in zip(runs, some, strict=True)]
        )
    return found


class LayoutBackbone(Backbone):
    """Base of families whose run of placeholders follows from a picture's size: a family only says its layout."""

    def image_tokens(self, inputs: Mapping[str, Tensor], images: list[list[Image.Image]]) -> list[list[ImageTokens]]:
        """Split each sequence's placeholders among its pictures."""
        layouts = [[self.layout(one.height, one.width, len(some)) for one in some] for some in images]
        return place(inputs["input_ids"] == self.image_token_id, layouts, self.name)

    @abstractmethod
    def layout(self, image_height: int, image_width: int, pictures: int = 1) -> Layout:
        """The run of a picture of this size in a chat with so many pictures."""


class OneViewBackbone(LayoutBackbone):
    """Base of families with one view per picture: a family only says how its processor lays the grid on a picture."""

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
        return super().image_tokens(inputs, images)

    def layout(self, image_height: int, image_width: int, pictures: int = 1) -> Layout:
        """The run of a picture of this size."""
        return Layout.raster(self.grid(image_height, image_width))

    @abstractmethod
    def grid(self, image_height: int, image_width: int) -> ImageGrid:
        """The token grid on a picture of this size, through this very processor."""

    @property
    @abstractmethod
    def input_size(self) -> tuple[int, int]:
        """Rows and columns of pixels that the vision tower gets."""
