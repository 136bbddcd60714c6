"""Follow image tokens back to the original picture, exactly, through every step of a processor.

A processor of one whole view (pad, resize, centre crop, in any order) is one affine map per axis. `ImageGrid` composes
that map step by step, from the picture's own pixels to the cells of the token grid, and carries maps and masks across.

Frames: ``_grid`` (image tokens), ``_input`` (model input pixels), ``_image`` (original pixels). Continuous coordinates:
pixel k covers [k, k + 1), so pixel centres lie at k + 0.5 (``align_corners=False`` everywhere).
Shapes: h x w image-token grid, h' x w' a map of any size over the same extent, H x W original image.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flmm_plugin.resampling import Axis, PlacedMaps


@dataclass(frozen=True)
class ImageGrid:
    """Cells on the original picture: image tokens, or the pixels of a model's input.

    Cell (i, j) covers the original rows ``[i * scale_y + offset_y, (i + 1) * scale_y + offset_y)`` and the columns
    likewise. Parts of the extent may lie outside the picture (padding), parts of the picture outside the extent (crop).

    Attributes:
        height: Rows of the grid, h.
        width: Columns of the grid, w.
        scale_y: Original pixels per grid row, > 0.
        scale_x: Original pixels per grid column, > 0.
        offset_y: Original row at which the extent begins; negative where the processor padded.
        offset_x: Original column at which the extent begins.
        image_height: Rows of the original picture, H.
        image_width: Columns of the original picture, W.
    """

    height: int
    width: int
    scale_y: float
    scale_x: float
    offset_y: float
    offset_x: float
    image_height: int
    image_width: int

    def __post_init__(self) -> None:
        if min(self.height, self.width, self.image_height, self.image_width) < 1:
            raise ValueError(f"a grid and its picture need at least one row and column each: {self}")
        if not (self.scale_y > 0 and self.scale_x > 0):
            raise ValueError(f"grid cells need a positive size in pixels: {self}")

    @classmethod
    def from_center_crop(cls, image_height: int, image_width: int, size: int, patch: int) -> ImageGrid:
        """Resize the shortest side to ``size`` (the other truncated), cut out the centre ``size x size``."""
        frame = InputFrame.of_image(image_height, image_width).resized_shortest_edge(size)
        return frame.center_cropped(size, size).grid(patch)

    @classmethod
    def from_pad_then_resize(cls, image_height: int, image_width: int, size: int, patch: int) -> ImageGrid:
        """Pad to a square at original size, picture in the middle, then resize to ``size x size``."""
        return InputFrame.of_image(image_height, image_width).padded_to_square().resized(size, size).grid(patch)

    @classmethod
    def from_resize_then_pad(
        cls, image_height: int, image_width: int, size: int, patch: int, *, rounded: bool = True
    ) -> ImageGrid:
        """Resize the longest side to ``size`` (the other ``round``ed, or truncated), then pad to ``size x size``."""
        shrink = size / max(image_height, image_width)
        sides = [
            max(1, round(side * shrink) if rounded else int(side * shrink)) for side in (image_height, image_width)
        ]
        return InputFrame.of_image(image_height, image_width).resized(*sides).center_cropped(size, size).grid(patch)

    @classmethod
    def from_squash(
        cls, image_height: int, image_width: int, input_height: int, input_width: int, patch: int
    ) -> ImageGrid:
        """Resize both sides on their own, whatever the aspect ratio."""
        return InputFrame.of_image(image_height, image_width).resized(input_height, input_width).grid(patch)

    @classmethod
    def of_image(cls, image_height: int, image_width: int) -> ImageGrid:
        """Return the pixels of the picture itself, before any step of a processor."""
        return cls(image_height, image_width, 1.0, 1.0, 0.0, 0.0, image_height, image_width)

    def resized(self, rows: int, columns: int) -> ImageGrid:
        """Return the same extent in another number of cells."""
        scale_y = self.scale_y * self.height / rows
        scale_x = self.scale_x * self.width / columns
        return replace(self, height=rows, width=columns, scale_y=scale_y, scale_x=scale_x)

    divided = resized

    def resized_shortest_edge(self, size: int) -> ImageGrid:
        """Resize the shortest side to ``size``; the longest keeps the aspect ratio, truncated to a whole pixel."""
        if self.width <= self.height:
            return self.resized(int(size * self.height / self.width), size)
        return self.resized(size, int(size * self.width / self.height))

    def moved(self, top: int, left: int, height: int, width: int) -> ImageGrid:
        """Return the ``height x width`` window that begins at row ``top``, column ``left``; negative ones pad."""
        offset_y, offset_x = self.offset_y + top * self.scale_y, self.offset_x + left * self.scale_x
        return replace(self, height=height, width=width, offset_y=offset_y, offset_x=offset_x)

    def trimmed(self, rows: int, columns: int) -> ImageGrid:
        """Cut off so many rows above and below, and columns left and right."""
        return self.moved(rows, columns, self.height - 2 * rows, self.width - 2 * columns)

    def padded_to_square(self) -> ImageGrid:
        """Pad to the longest side, content in the middle, the odd pixel below or on the right."""
        side = max(self.height, self.width)
        return self.moved(-((side - self.height) // 2), -((side - self.width) // 2), side, side)

    def center_cropped(self, height: int, width: int, *, pad_up: bool = False) -> ImageGrid:
        """Return the middle ``height x width``; sides that are too short are padded instead.

        Args:
            height: Rows to keep, of the input's own.
            width: Columns to keep, of the input's own.
            pad_up: When padding, the odd pixel goes above and on the left (Pillow backend of transformers) instead of
                below and on the right (torchvision backend).
        """
        top, left = _crop_start(self.height, height, pad_up), _crop_start(self.width, width, pad_up)
        return self.moved(top, left, height, width)

    def grid(self, patch: int) -> ImageGrid:
        """Join ``patch x patch`` pixels to a cell; pixels beyond the last whole patch belong to no cell."""
        return replace(
            self,
            height=self.height // patch,
            width=self.width // patch,
            scale_y=self.scale_y * patch,
            scale_x=self.scale_x * patch,
        )

    def through(self, frame: ImageGrid) -> ImageGrid:
        """Return the same grid on the original picture, where it so far lies on what ``frame`` made of that picture."""
        return replace(
            self,
            scale_y=self.scale_y * frame.scale_y,
            scale_x=self.scale_x * frame.scale_x,
            offset_y=self.offset_y * frame.scale_y + frame.offset_y,
            offset_x=self.offset_x * frame.scale_x + frame.offset_x,
            image_height=frame.image_height,
            image_width=frame.image_width,
        )

    def grid_to_image(self, maps_grid: Tensor, fill: float) -> Tensor:
        """Interpolate maps over the grid's extent at the centre of every original pixel.

        Args:
            maps_grid: ``[..., h', w']``, any size that covers the same extent (a mask decoder's output is finer).
            fill: Value of pixels outside the extent, e.g. those that a centre crop cut away: nothing was seen there.

        Returns:
            ``[..., H, W]``, bilinear, float32 (or float64 as given).
        """
        leading, (map_height, map_width) = maps_grid.shape[:-2], maps_grid.shape[-2:]
        image = self.placed(maps_grid.reshape(-1, map_height, map_width), fill).image()
        return image.reshape(*leading, self.image_height, self.image_width)

    def placed(self, maps_grid: Tensor, fill: float) -> PlacedMaps:
        """Place maps ``[n, h', w']`` on the picture as `grid_to_image` does, their pixels not computed yet."""
        rows, columns = maps_grid.shape[-2:]
        return PlacedMaps(
            maps_grid,
            Axis.sampled(rows, self.image_height, self.scale_y * self.height, self.offset_y),
            Axis.sampled(columns, self.image_width, self.scale_x * self.width, self.offset_x),
            fill,
        )

    def image_to_grid(self, masks_image: Tensor) -> Tensor:
        """Measure the area of every cell that the masks cover.

        Args:
            masks_image: ``[..., H, W]``, bool or values in 0..1.

        Returns:
            ``[..., h, w]`` float32 in 0..1; area outside the picture counts as not covered.
        """
        if masks_image.shape[-2:] != (self.image_height, self.image_width):
            raise ValueError(
                f"masks of {tuple(masks_image.shape[-2:])} pixels on a grid for a picture of "
                f"({self.image_height}, {self.image_width}); give them at the original size"
            )
        rows = self._overlap(self.height, self.scale_y, self.offset_y, self.image_height, masks_image.device)
        columns = self._overlap(self.width, self.scale_x, self.offset_x, self.image_width, masks_image.device)
        return (rows @ masks_image.float() @ columns.T).clamp(0, 1)

    def picture_cells(self, map_height: int, map_width: int) -> tuple[int, int, int, int] | None:
        """Find the cells of a map over the extent that the picture fills, as the paper's released heads cut it out.

        The start is cut off to a whole cell and the size rounded: up to half a cell is off; `grid_to_image` is exact.

        Args:
            map_height: Rows of the map, h', any number.
            map_width: Columns of the map, w', any number.

        Returns:
            ``(top, left, height, width)`` in cells of the map; None where the picture reaches beyond the extent (a
            centre crop), so that no such window exists.
        """
        rows = _cells(-self.offset_y, self.image_height, self.scale_y * self.height, map_height)
        columns = _cells(-self.offset_x, self.image_width, self.scale_x * self.width, map_width)
        return None if rows is None or columns is None else (rows[0], columns[0], rows[1], columns[1])

    @staticmethod
    def _overlap(cells: int, scale: float, offset: float, pixels: int, device: torch.device) -> Tensor:
        """Return the share of each cell's length that each pixel covers, ``[cells, pixels]``."""
        start = torch.arange(cells, dtype=torch.float64)[:, None] * scale + offset
        pixel = torch.arange(pixels, dtype=torch.float64)
        length = torch.minimum(start + scale, pixel + 1) - torch.maximum(start, pixel)
        return (length.clamp(min=0) / scale).to(device=device, dtype=torch.float32)


#: A grid whose cells are the pixels of a model's input, while a processor's steps are followed one by one.
InputFrame = ImageGrid


def _cells(start: float, length: float, extent: float, cells: int) -> tuple[int, int] | None:
    """Return the first cell and number of cells of an interval in an extent; None if it does not lie within."""
    slack = 1e-6  # a quotient that is a whole number in exact arithmetic must not fall below it
    before, size = start * cells / extent, length * cells / extent
    if before < -slack or before + size > cells + slack:
        return None
    return int(before + slack), max(1, int(size + 0.5 + slack))


def _crop_start(side: int, crop: int, pad_up: bool) -> int:
    """Return the first kept pixel of a centre crop; negative = so many pixels of padding before the content."""
    if side >= crop:
        return (side - crop) // 2
    return -((crop - side + 1) // 2) if pad_up else -((crop - side) // 2)
