"""Lay maps of low resolution on the pixels of a picture, one axis after the other: two matrix products.

All resampling of this package is bilinear, so each axis has a matrix of its own, ``pixels x cells``, with at most a few
numbers in a row. What is asked of a whole picture (its lowest value, a box) is asked of the few rows and columns where
it is decided, and pixels are computed when they are looked at. The matrices hold the very weights of torch's
``interpolate`` and ``grid_sample``: worked out more exactly than in float32, weights would move logits by 1e-4.

Shapes: n maps, h' x w' cells of a map, H x W original picture, p pixels of one axis, k cells of one axis.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, eq=False)
class Axis:
    """Say how the pixels of one axis are mixed from the cells of a map.

    Attributes:
        weights: ``float32[p, k]``, >= 0; zeros for pixels that the map does not reach.
        seen: ``bool[p]``: the map reaches the pixel.
    """

    weights: Tensor
    seen: Tensor

    @cached_property
    def whole(self) -> bool:
        """Tell whether the map reaches all pixels."""
        return bool(self.seen.all())

    @cached_property
    def ends(self) -> Tensor:
        """Ends of each stretch of pixels over which a map is straight, ``int64[*]``: its extremes lie there."""
        cell = (self.weights > 0).int().argmax(dim=1)
        change = (cell[1:] != cell[:-1]) | (self.seen[1:] != self.seen[:-1])
        edge = torch.ones(1, dtype=torch.bool)
        ends = torch.cat([edge, change]) | torch.cat([change, edge])
        return (ends & self.seen).nonzero().flatten()

    @staticmethod
    @lru_cache(maxsize=32)
    def stretched(cells: int, pixels: int) -> Axis:
        """Stretch a map over all pixels, as ``interpolate`` does."""
        return Axis(interpolated(torch.eye(cells), pixels).T.contiguous(), torch.ones(pixels, dtype=torch.bool))

    @staticmethod
    @lru_cache(maxsize=32)
    def sampled(cells: int, pixels: int, extent: float, offset: float) -> Axis:
        """Sample a map at the centre of each pixel, as ``grid_sample`` does, border cells continued.

        Args:
            cells: Number of cells of the map, k.
            pixels: Number of pixels of the picture, p.
            extent: Length of the map in pixels.
            offset: Pixel at which the map begins; negative where it begins before the picture.
        """
        centres = torch.arange(pixels, dtype=torch.float64) + 0.5
        within = ((centres - offset) / extent).float()
        seen = (within >= 0) & (within < 1)
        place = (((2 * within - 1) + 1) * cells - 1) / 2
        place = place.clamp(0, cells - 1)
        first = place.floor()
        share = (place - first)[:, None]
        left = F.one_hot(first.long(), cells)
        right = F.one_hot((first.long() + 1).clamp(max=cells - 1), cells)
        return Axis((left * (1 - share) + right * share) * seen[:, None], seen)


@dataclass(frozen=True, eq=False)
class PlacedMaps:
    """Maps of low resolution, and where they lie on the picture.

    Attributes:
        maps: Values of the cells, ``[n, h', w']``.
        rows: Mixes the H rows of the picture.
        columns: Mixes the W columns of the picture.
        fill: Value of pixels that the maps do not reach.
        stretched: The maps are stretched over the whole picture, so whoever resizes them starts from their cells.
    """

    maps: Tensor
    rows: Axis
    columns: Axis
    fill: float = 0.0
    stretched: bool = False

    @classmethod
    def over(cls, maps: Tensor, size: tuple[int, int]) -> PlacedMaps:
        """Stretch maps ``[n, h', w']`` over a picture of ``size`` (H, W)."""
        rows, columns = (Axis.stretched(*pair) for pair in zip(maps.shape[-2:], size, strict=True))
        return cls(maps, rows, columns, stretched=True)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the picture."""
        return len(self.rows.seen), len(self.columns.seen)

    def __len__(self) -> int:
        """Count the maps."""
        return len(self.maps)

    def one(self, index: int) -> PlacedMaps:
        """Return one of the maps by itself."""
        return replace(self, maps=self.maps[index : index + 1])

    def cpu(self) -> PlacedMaps:
        """Copy to the CPU, without gradients."""
        return replace(self, maps=self.maps.detach().cpu())

    def image(self) -> Tensor:
        """Return the value at every pixel, ``[n, H, W]`` float32 (or float64 as given)."""
        return self._at(slice(None), slice(None))

    def lowest(self) -> float:
        """Return the lowest value of any pixel."""
        lowest = float(self._at(self.rows.ends, self.columns.ends).detach().min())
        return lowest if self.rows.whole and self.columns.whole else min(lowest, self.fill)

    def above(self, threshold: float) -> tuple[Tensor, Tensor]:
        """Tell which rows ``bool[n, H]`` and columns ``bool[n, W]`` of the picture have a pixel above a value."""
        rows = self._at(slice(None), self.columns.ends).amax(dim=2) > threshold
        columns = self._at(self.rows.ends, slice(None)).amax(dim=1) > threshold
        return rows, columns

    def _at(self, rows: slice | Tensor, columns: slice | Tensor) -> Tensor:
        maps = self.maps if self.maps.dtype == torch.float64 else self.maps.float()
        down = self.rows.weights[rows].to(maps)
        across = self.columns.weights[columns].to(maps)
        values = down @ maps @ across.T
        if self.rows.whole and self.columns.whole:
            return values
        seen = self.rows.seen[rows][:, None] & self.columns.seen[columns]
        return values.masked_fill(~seen.to(values.device), self.fill)


def interpolated(maps: Tensor, size: int) -> Tensor:
    """Resize the last axis of ``[*, k]`` linearly, corners not aligned."""
    return F.interpolate(maps[None], size, mode="linear", align_corners=False)[0]
