"""Figures: the right pixels are coloured, sizes are as told, and odd input is drawn or refused."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from flmm_plugin.records import Grounding
from flmm_plugin.reports.figures import (
    cluster_maps,
    colours,
    contact_sheet,
    contour,
    mask_layer,
    overlay,
    seen_by_grid,
)


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
    with pytest.raises(ValueError, match=r"\(40, 60\), the picture is \(40, 61\)"):
        overlay(grey(61, 40), [grounding(1, 1, 5, 5)])


@dataclass
class Grid:
    height: int = 4
    width: int = 4
    scale_y: float = 10.0
    scale_x: float = 10.0
    offset_y: float = 0.0
    offset_x: float = 10.0


def test_view_is_what_the_grid_covers() -> None:
    image = grey()
    image.paste((255, 0, 0), (0, 0, 10, 40))  # cut away by the grid's centre crop
    view = np.asarray(seen_by_grid(image, Grid()))
    assert view.shape == (40, 40, 3)
    assert (view[:, 1:] == 100).all()
    beyond = np.asarray(seen_by_grid(grey(20, 40), Grid(offset_x=-10.0)))
    assert (beyond[5, 5] == 0).all()
    assert (beyond[5, 15] == 100).all()


def blob_maps(layers: int = 3, heads: int = 2) -> np.ndarray:
    maps = np.random.default_rng(0).random((layers, heads, 6, 6)) * 0.01
    maps[..., 1:3, 1:3] += 1.0
    return maps


def test_clusters_find_the_blob_and_rank_by_attention() -> None:
    labels = cluster_maps(blob_maps(), clusters=2)
    expected = np.zeros((6, 6), int)
    expected[1:3, 1:3] = 1
    assert np.array_equal(labels, expected)
    assert np.array_equal(labels, cluster_maps(blob_maps() * np.array([1.0, 1000.0])[:, None, None], clusters=2))


def test_clusters_of_maps_without_structure() -> None:
    assert cluster_maps(np.zeros((2, 2, 5, 5))).tolist() == np.zeros((5, 5), int).tolist()
    assert set(np.unique(cluster_maps(blob_maps(), clusters=4))) == {0, 1, 2, 3}


def test_contact_sheet_has_one_cell_per_head_and_layer() -> None:
    small = contact_sheet(blob_maps(2, 3), grey(), Grid(), phrase="the thing", cell=30)
    deep = contact_sheet(blob_maps(5, 3), grey(), Grid(), phrase="the thing", cell=30)
    assert deep.height - small.height == 3 * 34
    assert deep.width == small.width
    pixels = np.asarray(deep)
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50
    wide = contact_sheet(blob_maps(1, 30), grey(), cell=20)
    assert wide.width == 34 + 30 * 24


def test_contact_sheet_needs_layers_and_heads() -> None:
    with pytest.raises(ValueError, match=r"\[layers, heads, h, w\]"):
        contact_sheet(np.zeros((4, 6, 6)), grey())
