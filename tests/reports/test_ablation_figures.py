"""Figures of ablations: what is drawn, and what cannot be."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from flmm_plugin.errors import DataNotFound
from flmm_plugin.reports.ablation_figures import Bar, Chosen, Panel, ablation_bars, chosen_words

BLUE, ORANGE, GREEN = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (0x00, 0x9E, 0x73)


def painted(png: bytes, colour: tuple[int, int, int]) -> int:
    """Pixels of nearly a colour; bars are not quite opaque."""
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
    return int((np.abs(pixels - np.array(colour)).sum(axis=2) < 110).sum())


def test_a_panel_per_comparison_and_a_diamond_where_the_paper_has_a_number() -> None:
    layers = Panel("layers", "recall, %", (Bar("early", (40.0,)), Bar("all", (50.0, 52.0))), "all best")
    prompts = Panel("prompts", "recall, %", (Bar("mask", (60.0,), 63.4),))
    alone, both = ablation_bars([layers]), ablation_bars([layers, prompts])
    assert Image.open(io.BytesIO(both)).width > 1.8 * Image.open(io.BytesIO(alone)).width
    assert painted(alone, ORANGE) == 0
    assert painted(both, ORANGE) > 0
    assert painted(alone, BLUE) > 1000
    assert both == ablation_bars([layers, prompts])  # the same numbers give the same file


def test_a_higher_bar_is_taller() -> None:
    low = ablation_bars([Panel("", "", (Bar("a", (40.0,)), Bar("b", (60.0,))))])
    equal = ablation_bars([Panel("", "", (Bar("a", (60.0,)), Bar("b", (60.0,))))])
    assert painted(low, BLUE) < painted(equal, BLUE)


def test_nothing_cannot_be_drawn() -> None:
    with pytest.raises(DataNotFound, match="without arms"):
        ablation_bars([])
    with pytest.raises(DataNotFound, match="without arms"):
        ablation_bars([Panel("layers", "", ())])
    with pytest.raises(DataNotFound, match="no selector"):
        chosen_words([])


def test_selectors_tools_and_the_paper_look_different() -> None:
    here = [Chosen("0.1", 60, 98), Chosen("0.3", 80, 95)]
    paper, tool = Chosen("spaCy (paper)", 41.1, 97.3, "paper"), Chosen("noun chunks", 50, 90, "tool")
    assert painted(chosen_words(here), BLUE) > 0
    assert painted(chosen_words(here), ORANGE) == 0
    assert painted(chosen_words([*here, paper]), ORANGE) > 0
    assert painted(chosen_words([*here, tool]), GREEN) > painted(chosen_words(here), GREEN)
