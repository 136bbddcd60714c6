"""Attention figures show the maps they are told to, and nothing where a model has none."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from flmm_plugin.records import Grounding
from flmm_plugin.reports.attention_figures import (
    AttentionView,
    cluster_maps,
    compare_attention,
    contact_sheet,
    pipeline,
    seen_by_grid,
    sharpest_maps,
)

GREY = Image.new("RGB", (60, 40), (100, 100, 100))


def maps(layers: int = 3, heads: int = 2) -> np.ndarray:
    found = np.random.default_rng(0).random((layers, heads, 4, 6)) + 1
    found[1, 0, 1:3, 1:3] += 40
    return found


def test_the_sharpest_are_those_with_structure() -> None:
    found = maps()
    found[2, 1] = 0  # a map of nothing is not sharp
    assert sharpest_maps(found, 1) == [(1, 0)]
    assert (2, 1) not in sharpest_maps(found, 5)
    assert len(sharpest_maps(found, 99)) == 6


def test_one_row_per_model_and_one_panel_per_map() -> None:
    one = compare_attention([AttentionView("a", maps())], GREY, phrase="the thing", count=2, cell=90)
    two = compare_attention([AttentionView("a", maps()), AttentionView("b", maps(5, 4))], GREY, count=2, cell=90)
    assert one.width == two.width == 4 * 96 + 6
    assert two.height > one.height
    colours = {tuple(colour) for colour in np.asarray(one).reshape(-1, 3)}
    assert len(colours) > 50


def test_a_map_that_a_model_lacks_is_an_empty_panel() -> None:
    views = [AttentionView("a", maps(3, 2)), AttentionView("b", maps(2, 2))]
    sheet = np.asarray(compare_attention(views, GREY, which=[(2, 0)], cell=90))
    row = sheet.shape[0] // 2
    panel = sheet[:, 2 * 96 + 6 + 10 : 2 * 96 + 6 + 80]
    assert not (panel[:row] == 225).all(axis=-1).any(axis=1).sum() > 40
    assert (panel[row:] == 225).all(axis=(1, 2)).sum() > 40


def test_pipeline_draws_the_masks_of_decoder_refiner_and_target() -> None:
    refined = np.full((40, 60), -4.0, np.float32)
    refined[5:20, 5:25] = 4
    decoder = np.full((40, 60), -4.0, np.float32)
    decoder[25:35, 30:50] = 4
    grounding = Grounding.from_logits("the thing", refined, decoder)
    view = AttentionView("a", maps())
    three = np.asarray(pipeline(GREY, view, grounding, cell=120)).astype(int)
    four = pipeline(GREY, view, grounding, target=np.ones((40, 60), bool), cell=120)
    assert four.width == three.shape[1] + 126
    tint = [np.abs(three[60:140, x : x + 120] - 100).sum(axis=-1) > 30 for x in (132, 258)]
    assert tint[0].any()
    assert tint[1].any()
    assert not np.array_equal(tint[0], tint[1])


def test_maps_without_four_axes_are_refused() -> None:
    with pytest.raises(ValueError, match="layers"):
        compare_attention([AttentionView("a", np.zeros((4, 6, 6)))], GREY)
    with pytest.raises(ValueError, match="model"):
        compare_attention([], GREY)


@dataclass
class Grid:
    height: int = 4
    width: int = 4
    scale_y: float = 10.0
    scale_x: float = 10.0
    offset_y: float = 0.0
    offset_x: float = 10.0


def test_view_is_what_the_grid_covers() -> None:
    image = GREY.copy()
    image.paste((255, 0, 0), (0, 0, 10, 40))  # cut away by the grid's centre crop
    view = np.asarray(seen_by_grid(image, Grid()))
    assert view.shape == (40, 40, 3)
    assert (view[:, 1:] == 100).all()
    beyond = np.asarray(seen_by_grid(Image.new("RGB", (20, 40), (100, 100, 100)), Grid(offset_x=-10.0)))
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
    small = contact_sheet(blob_maps(2, 3), GREY, Grid(), phrase="the thing", cell=30)
    deep = contact_sheet(blob_maps(5, 3), GREY, Grid(), phrase="the thing", cell=30)
    assert deep.height - small.height == 3 * 34
    assert deep.width == small.width
    pixels = np.asarray(deep)
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50
    wide = contact_sheet(blob_maps(1, 30), GREY, cell=20)
    assert wide.width == 34 + 30 * 24


def test_contact_sheet_needs_layers_and_heads() -> None:
    with pytest.raises(ValueError, match="layers"):
        contact_sheet(np.zeros((4, 6, 6)), GREY)
