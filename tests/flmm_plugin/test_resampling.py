"""Maps on the pixels of a picture, against torch's own two-dimensional resampling; what is asked of few pixels."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from flmm_plugin.geometry import ImageGrid
from flmm_plugin.resampling import PlacedMaps

GRIDS = {
    "whole": ImageGrid(6, 6, 40 / 6, 52 / 6, 0.0, 0.0, 40, 52),
    "padded": ImageGrid(6, 6, 52 / 6, 52 / 6, -6.0, 0.0, 40, 52),
    "cropped": ImageGrid(6, 6, 40 / 6, 40 / 6, 0.0, 6.0, 40, 52),
    "coarser than its pixels": ImageGrid(6, 6, 0.5, 1.1, 0.0, 0.0, 3, 6),
}


@pytest.mark.parametrize("name", GRIDS)
def test_pixels_are_those_of_grid_sample(name: str) -> None:
    grid, maps = GRIDS[name], 2 * torch.randn(3, 9, 12, generator=torch.Generator().manual_seed(0))
    sides = [(grid.image_height, grid.scale_y * 6, grid.offset_y), (grid.image_width, grid.scale_x * 6, grid.offset_x)]
    y, x = ((((torch.arange(p, dtype=torch.float64) + 0.5) - start) / extent).float() for p, extent, start in sides)
    where = torch.stack(torch.meshgrid(2 * y - 1, 2 * x - 1, indexing="ij"), dim=-1).flip(-1)
    expected = F.grid_sample(maps[None], where[None], padding_mode="border", align_corners=False)[0]
    inside = ((y >= 0) & (y < 1))[:, None] & (x >= 0) & (x < 1)
    expected = expected.masked_fill(~inside, -9.0)
    placed = grid.placed(maps, -9.0)
    assert (placed.image() - expected).abs().max() < 1e-5
    assert placed.lowest() == pytest.approx(float(expected.min()), abs=1e-5)
    rows, columns = placed.above(1.0)
    assert torch.equal(rows, (expected > 1.0).any(dim=2))
    assert torch.equal(columns, (expected > 1.0).any(dim=1))


@pytest.mark.parametrize("size", [(40, 52), (5, 80), (9, 12)])
def test_stretched_pixels_are_those_of_interpolate(size: tuple[int, int]) -> None:
    maps = 2 * torch.randn(2, 9, 12, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(maps[None], size, mode="bilinear", align_corners=False)[0]
    placed = PlacedMaps.over(maps, size)
    assert (placed.image() - expected).abs().max() < 1e-5
    assert placed.lowest() == pytest.approx(float(expected.min()), abs=1e-5)
    assert torch.equal(placed.one(1).image()[0], placed.image()[1])
