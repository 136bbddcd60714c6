"""Figures: the right pixels are coloured, sizes are as told, and odd input is drawn or refused."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from flmm_plugin.figures import NamedMask, colours, contour, in_column, in_row, mask_layer, overlay
from flmm_plugin.records import Grounding


def grounding(
    x0: int, y0: int, x1: int, y1: int, phrase: str = "a thing", size: tuple[int, int] = (40, 60)
) -> Grounding:
    logits = np.full(size, -4.0, np.float32)
    logits[y0:y1, x0:x1] = 4.0
    return Grounding.from_logits(phrase, logits)


def grey(width: int = 60, height: int = 40) -> Image.Image:
    return Image.new("RGB", (width, height), (100, 100, 100))


def test_colours_are_distinct_however_many() -> None:
    assert len(set(colours(24))) == 24
    assert colours(3) == colours(24)[:3]


def test_contour_is_the_rim() -> None:
    mask = np.zeros((7, 7), bool)
    mask[1:6, 1:6] = True
    rim = contour(mask)
    assert rim.sum() == 16
    assert not rim[3, 3]
    assert rim[1, 1]
    assert contour(np.ones((3, 3), bool)).sum() == 8  # the border of the picture is a rim too
    assert not contour(np.zeros((3, 3), bool)).any()


def test_layer_tints_exactly_the_masks_and_draws_every_contour_on_top() -> None:
    both = [grounding(5, 5, 30, 30), grounding(20, 10, 50, 35)]
    layer = np.asarray(mask_layer(both, (60, 40)))
    assert np.array_equal(layer[..., 3] > 0, both[0].mask | both[1].mask)
    first, second = colours(2)
    assert tuple(layer[29, 25]) == (*first, 255)  # bottom rim of the first, inside the second
    assert tuple(layer[20, 40][:3]) == second
    assert layer[20, 40, 3] < 255


def test_overlay_enlarges_small_pictures_and_adds_a_legend() -> None:
    items = [grounding(5, 5, 30, 30, "the red circle"), grounding(0, 0, 0, 0, "nothing at all " * 20)]
    plain = overlay(grey(), items, legend=False)
    assert plain.size == (480, 320)
    full = overlay(grey(), items)
    assert full.width == 480
    assert full.height > 320
    assert not np.array_equal(np.asarray(full)[320:], np.full_like(np.asarray(full)[320:], 255))
    assert overlay(grey(1000, 500), []).size == (1000, 500)
    outside = np.asarray(plain)[300:, 400:]
    assert (outside == 100).all()


def test_overlay_refuses_masks_of_another_size() -> None:
    with pytest.raises(ValueError, match=r"\(40, 61\)"):
        overlay(grey(61, 40), [grounding(1, 1, 5, 5)])


def test_masks_of_logs_are_drawn_like_groundings_without_a_score() -> None:
    known = grounding(5, 5, 30, 30)
    assert np.array_equal(overlay(grey(), [known], legend=False), overlay(grey(), [NamedMask("x", known.mask)], False))
    assert not np.array_equal(overlay(grey(), [known]), overlay(grey(), [NamedMask(known.phrase, known.mask)]))


def test_images_beside_and_below_each_other() -> None:
    pair = [grey(60, 40), grey(20, 50)]
    row, column = in_row(pair, 6), in_column(pair, 6)
    assert (row.size, column.size) == ((86, 50), (60, 96))
    assert row.getpixel((62, 0)) == row.getpixel((0, 45)) == (255, 255, 255)
    assert row.getpixel((66, 49)) == column.getpixel((0, 46)) == (100, 100, 100)
    tiles = in_row([Image.new("RGB", (4, 6), "red"), Image.new("RGB", (5, 3), "blue")], 1)
    assert tiles.size == (10, 6)
    assert tiles.getpixel((0, 0)) == (255, 0, 0)
    assert tiles.getpixel((5, 0)) == (0, 0, 255)
    assert tiles.getpixel((5, 5)) == (255, 255, 255)
