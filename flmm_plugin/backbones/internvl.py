"""InternVL (``-hf`` checkpoints): tiles in reading order, then a thumbnail of the whole picture.

The processor takes the arrangement of tiles whose aspect ratio is nearest to the picture's, squashes the picture into
it and cuts; a thumbnail follows where there is more than one tile. The model merges 2 x 2 patches to a token (pixel
shuffle). Tiles together are the fine view, the thumbnail the coarse one, and heads read ``2 * m * c`` maps; the one
view of a picture that is not cut serves as both.
"""

from __future__ import annotations

import math
from typing import ClassVar

from flmm_plugin.backbones.views import Layout, LayoutBackbone
from flmm_plugin.errors import BackboneUnsupported
from flmm_plugin.geometry import InputFrame


class InternVLBackbone(LayoutBackbone):
    """``InternVLForConditionalGeneration``."""

    family: ClassVar[str] = "internvl"
    maps_per_image: ClassVar[int] = 2
    several_images: ClassVar[bool] = True

    def layout(self, image_height: int, image_width: int, pictures: int = 1) -> Layout:
        """The run of a picture of this size: tiles and thumbnail.

        Raises:
            BackboneUnsupported: The processor cuts other tiles than its configuration says.
        """
        from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas

        processor = self.processor.image_processor
        cells = math.isqrt(int(self.processor.image_seq_length))
        tile_height, tile_width = int(processor.size["height"]), int(processor.size["width"])
        picture = InputFrame.of_image(image_height, image_width)
        whole = picture.resized(tile_height, tile_width).divided(cells, cells)
        counted = self.processor._get_num_multimodal_tokens(image_sizes=[(image_height, image_width)])
        views = int(counted.num_image_patches[0])
        if views == 1:
            return Layout.raster(whole).twice()
        columns, rows = get_optimal_tiled_canvas(
            (image_height, image_width), (tile_height, tile_width), processor.min_patches, processor.max_patches
        )
        if rows * columns + 1 != views:
            raise BackboneUnsupported(
                f"the image processor of {self.name} makes {views} views of a ({image_height}, {image_width}) picture, "
                f"{rows} x {columns} tiles and a thumbnail were expected; masks would be misplaced"
            )
        frame = picture.resized(rows * tile_height, columns * tile_width)
        return Layout.tiles(rows, columns, frame.divided(rows * cells, columns * cells), whole)
