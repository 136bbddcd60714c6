"""LLaVA-NeXT (1.6): the whole picture squashed into one view, and its tiles (``anyres``).

Of the resolutions that the model was trained with, the processor takes the one that fits best, resizes the picture
into it (aspect ratio kept), pads it, and cuts tiles. The model puts the tiles' features together, removes whole rows
or columns of cells that are padding, and writes a newline token behind each row. In the sequence: the base view's
tokens, then the rows.

The base view is coarse, the tiles are fine; both are kept. As the method does, the coarse maps are resized to the fine
grid and stacked before the fine ones (`Backbone.attention_maps`): heads read ``2 * m * c`` maps. Since whole rows or
columns of cells are removed, up to half a cell of picture goes with the padding, or up to half a cell of padding is
left, at both ends of one axis (about a pixel on pictures of COCO's sizes). The grid says so exactly; the method takes
its maps for the whole picture, and heads released for it are read that way (``placement="whole"`` in their manifest).
"""

from __future__ import annotations

from typing import ClassVar

import torch

from flmm_plugin.backbones.preprocessing import Paper, size_entries
from flmm_plugin.backbones.views import Layout, LayoutBackbone
from flmm_plugin.errors import BackboneUnsupported
from flmm_plugin.geometry import ImageGrid, InputFrame


class LlavaNextBackbone(LayoutBackbone):
    """``LlavaNextForConditionalGeneration`` on Vicuna or Mistral (grouped-query attention)."""

    family: ClassVar[str] = "llava_next"
    maps_per_image: ClassVar[int] = 2
    paper: ClassVar[Paper] = "pillow"

    def layout(self, image_height: int, image_width: int, pictures: int = 1) -> Layout:
        """The run of a picture of this size: base view and rows, newline tokens left out."""
        return Layout.base_and_rows(
            self.base_grid(image_height, image_width), self.fine_grid(image_height, image_width)
        )

    def base_grid(self, image_height: int, image_width: int) -> ImageGrid:
        """The picture squashed into one view, whatever its aspect ratio."""
        frame = InputFrame.of_image(image_height, image_width).resized(self._tile, self._tile)
        return frame.divided(self._cells, self._cells)

    def fine_grid(self, image_height: int, image_width: int) -> ImageGrid:
        """All tiles together, padding removed cell by cell.

        Where a tower's patches do not fill its view (SigLIP: 27 x 14 of 384 pixels), its cells are taken to be a
        little larger than its patches, as the model itself takes them when it joins tiles: up to the missing pixels
        (6 of 384) off at the lower right of a tile.
        """
        from transformers.image_processing_utils import get_patch_output_size, select_best_resolution
        from transformers.models.llava_next.modeling_llava_next import unpad_image

        height, width = select_best_resolution((image_height, image_width), self._resolutions)
        # Tensors without memory: only their shapes are asked for.
        picture = torch.empty(1, image_height, image_width, device="meta")
        inner_height, inner_width = get_patch_output_size(picture, (height, width), "channels_first")
        frame = InputFrame.of_image(image_height, image_width).resized(inner_height, inner_width)
        canvas = frame.moved(-((height - inner_height) // 2), -((width - inner_width) // 2), height, width)
        grid = canvas.divided(height // self._tile * self._cells, width // self._tile * self._cells)
        # transformers' own rounding decides which cells are padding: its versions differ by a row for rare sizes.
        left = unpad_image(torch.empty(1, grid.height, grid.width, device="meta"), (image_height, image_width))
        return grid.trimmed((grid.height - left.shape[1]) // 2, (grid.width - left.shape[2]) // 2)

    @property
    def _resolutions(self) -> list[list[int]]:
        """Sizes of all tiles together that the model was trained with, height and width."""
        processor, model = self.processor.image_processor.image_grid_pinpoints, self.model.config.image_grid_pinpoints
        if [list(pair) for pair in processor] != [list(pair) for pair in model]:
            raise BackboneUnsupported(
                f"the image processor of {self.name} cuts tiles for {processor}, its model expects {model}; restore "
                "the processor files that came with the model"
            )
        return [list(pair) for pair in model]

    @property
    def _tile(self) -> int:
        """Side of a view in input pixels."""
        processor = self.processor.image_processor
        sizes = {side for size in (processor.size, processor.crop_size) for side in size_entries(size).values()}
        side = int(self.model.config.vision_config.image_size)
        if sizes != {side}:
            raise BackboneUnsupported(
                f"the image processor of {self.name} makes views of {sorted(sizes)} pixels, its vision tower takes "
                f"{side}; restore the processor files that came with the model"
            )
        return side

    @property
    def _cells(self) -> int:
        """Image tokens along the side of a view."""
        return self._tile // int(self.model.config.vision_config.patch_size)
