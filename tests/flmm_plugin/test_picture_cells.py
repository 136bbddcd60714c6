"""The window that released heads cut out of their decoder's output, against whole-number arithmetic."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flmm_plugin.geometry import ImageGrid

SIZES = st.integers(1, 3000)


def window(before: int, length: int, padded: int, cells: int) -> tuple[int, int]:
    """As the description of the method says it, in the pixels of the padded picture."""
    return int(before * cells / padded), max(1, int(length * cells / padded + 0.5))


@settings(max_examples=300, deadline=None)
@given(SIZES, SIZES, st.sampled_from([(336, 14), (384, 16), (392, 14), (448, 14)]), st.sampled_from([63, 64]))
def test_resized_then_padded(height: int, width: int, processor: tuple[int, int], cells: int) -> None:
    side, patch = processor
    longest = max(height, width)
    rows, columns = (max(1, int(length * side / longest)) for length in (height, width))
    grid = ImageGrid.from_resize_then_pad(height, width, side, patch, rounded=False)
    top, tall = window((side - rows) // 2, rows, side, cells)
    left, wide = window((side - columns) // 2, columns, side, cells)
    assert grid.picture_cells(cells, cells) == (top, left, tall, wide)


@settings(max_examples=300, deadline=None)
@given(SIZES, SIZES, st.sampled_from([63, 64]))
def test_padded_then_resized(height: int, width: int, cells: int) -> None:
    side = max(height, width)
    grid = ImageGrid.from_pad_then_resize(height, width, 336, 14)
    top, tall = window((side - height) // 2, height, side, cells)
    left, wide = window((side - width) // 2, width, side, cells)
    assert grid.picture_cells(cells, cells) == (top, left, tall, wide)
    assert top + tall <= cells
    assert left + wide <= cells


def test_a_picture_that_was_squashed_fills_everything_and_a_cropped_one_has_no_window() -> None:
    assert ImageGrid.from_squash(60, 100, 336, 336, 14).picture_cells(64, 64) == (0, 0, 64, 64)
    assert ImageGrid.from_center_crop(60, 100, 336, 14).picture_cells(64, 64) is None
    assert ImageGrid.from_center_crop(60, 60, 336, 14).picture_cells(64, 64) == (0, 0, 64, 64)


@pytest.mark.parametrize(("rows", "columns"), [(64, 48), (63, 64)])
def test_maps_that_are_not_square(rows: int, columns: int) -> None:
    grid = ImageGrid.from_pad_then_resize(50, 100, 336, 14)
    assert grid.picture_cells(rows, columns) == (int(25 * rows / 100), 0, int(50 * rows / 100 + 0.5), columns)
