"""The world as panoptic narratives: the real reader reads it, and its targets are the world's own masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flmm_plugin.datasets.png import PngDataset
from flmm_plugin.datasets.problems import counted
from flmm_plugin.images import open_image
from flmm_plugin.tiny.layouts_png import write_png


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PngDataset:
    return PngDataset(write_png(tmp_path_factory.mktemp("world"), scenes=20, seed=5))


def test_every_kind_of_phrase_occurs(dataset: PngDataset) -> None:
    phrases = [phrase for narrative in dataset for phrase in narrative.phrases]
    assert {phrase.plural for phrase in phrases} == {True, False}
    assert {thing for phrase in phrases for thing in phrase.things} == {True, False}
    assert all(len(phrase.segment_ids) > 1 for phrase in phrases if phrase.plural)
    assert (dataset.in_file, len(dataset)) == (26, 25)
    assert counted(dataset.problems) == {"no phrase names a segment": 1}


def test_the_narrative_is_a_sentence_and_its_pieces_join(dataset: PngDataset) -> None:
    for narrative in dataset:
        assert narrative.text.endswith(".")
        for phrase in narrative.phrases:
            assert narrative.text[slice(*phrase.span)] == phrase.text
            assert phrase.text == phrase.text.rstrip()
    first = dataset[0]
    assert first.text.startswith("A ")
    assert first.text.endswith(" ground.")


def test_targets_cover_the_picture_and_show_their_colour(dataset: PngDataset) -> None:
    for narrative in dataset:
        masks = dataset.masks(narrative)
        size = (narrative.height, narrative.width)
        assert np.asarray(open_image(narrative.image_path)).shape[:2] == size == masks[0].shape
        alone = [mask for mask, phrase in zip(masks, narrative.phrases, strict=True) if not phrase.plural]
        assert np.sum(alone, axis=0).max() == 1
        if not all(phrase.things[0] for phrase in narrative.phrases):
            assert np.logical_or.reduce(masks).all()
    red = [
        np.asarray(open_image(narrative.image_path))[mask].mean(axis=0)
        for narrative in dataset
        for mask, phrase in zip(dataset.masks(narrative), narrative.phrases, strict=True)
        if " red " in phrase.text and not phrase.plural and mask.sum() > 50
    ]
    assert red
    assert all(r > 1.5 * g and r > 1.5 * b for r, g, b in red)


def test_it_is_a_function_of_the_seed(tmp_path: Path, dataset: PngDataset) -> None:
    again = PngDataset(write_png(tmp_path, scenes=20, seed=5))
    assert again.digest == dataset.digest
