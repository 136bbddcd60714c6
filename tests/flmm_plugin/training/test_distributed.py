"""Two processes do what one does, and fail together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flmm_plugin.training.recipe import TrainRecipe

from .runs import forked_together, run, small_recipe, weights


@pytest.fixture
def recipe(refer_folder: Callable[..., Any], png_folder: Callable[..., Any], tmp_path: Path) -> TrainRecipe:
    """Batches of three: of the four samples of an epoch the second batch has one, for two processes."""
    refer_folder()
    png_folder()
    validation = {"parts": [{"dataset": "refcoco", "split": "val"}], "every": 1}
    return small_recipe(tmp_path, validation=validation, batch_size=3)


def test_two_processes_make_the_weights_of_one(
    recipe: TrainRecipe, load_llava: Callable[..., Any], tmp_path: Path
) -> None:
    backbone = load_llava("mha")
    one = run(recipe, tmp_path / "one", backbone)
    assert forked_together(2, lambda: run(recipe, tmp_path / "two", backbone)) == [0, 0]
    single, double = weights(tmp_path / "one"), weights(tmp_path / "two")
    first = run(replace(recipe, steps=1, epochs=1), tmp_path / "first", backbone)
    moved = max(float((single[name] - other).abs().max()) for name, other in weights(first.last.parent).items())
    apart = max(float((single[name] - double[name]).abs().max()) for name in single)
    assert moved > 1e-3
    assert apart < 2e-5, "more than the rounding of sums in another order"
    import json

    record = json.loads((tmp_path / "two" / "run.json").read_text())
    assert record["processes"] == 2
    assert one.scores is not None
    assert record["result"]["scores"]["phrases"] == one.scores.phrases


def test_a_process_that_fails_takes_the_other_with_it(
    recipe: TrainRecipe, load_llava: Callable[..., Any], tmp_path: Path
) -> None:
    backbone = load_llava("mha")
    (tmp_path / "coco" / "train2014" / "COCO_train2014_000000000011.jpg").write_bytes(b"no picture")
    strict = replace(recipe, bad_samples="stop", validation=replace(recipe.validation, parts=()))
    assert forked_together(2, lambda: run(strict, tmp_path / "strict", backbone)) == [1, 1]
    assert forked_together(
        2, lambda: run(replace(strict, bad_samples="skip", max_bad_share=0.5), tmp_path / "skip", backbone)
    ) == [0, 0]
