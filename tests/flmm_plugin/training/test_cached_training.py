"""A run from the feature cache makes the heads of a run without it, up to the rounding of float16."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from flmm_plugin.training.features import FrozenFeatures, FrozenReader
from flmm_plugin.training.loop import Trainer
from flmm_plugin.training.recipe import TrainRecipe
from flmm_plugin.training.samples import TrainingSample

from .frozen import SMALL_SAM


@pytest.fixture
def recipe(refer_folder: Callable[..., Any], png_folder: Callable[..., Any], tmp_path: Path) -> TrainRecipe:
    """Four steps on lists of expressions and narratives, all heads."""
    refer_folder()
    png_folder()
    return TrainRecipe.from_dict(
        {
            "heads": {
                "decoder": {"base_channels": 4, "upsample_to": 16},
                "refiner": {"sam": SMALL_SAM},
            },
            "data": {
                "root": str(tmp_path),
                "parts": [{"dataset": "refcoco", "split": "val"}, {"dataset": "png", "split": "val"}],
            },
            "optimiser": {"lr": 1e-3},
            "saving": {"every": 1000},
            "cache": {"folder": str(tmp_path / "features")},
            "epochs": 2,
            "batch_size": 2,
            "trackers": [],
        }
    )


def weights(recipe: TrainRecipe, out: Path, backbone: Any) -> dict[str, Tensor]:
    trainer = Trainer(recipe, out, backbone=backbone, progress=False)
    run = trainer.run()
    assert run.steps == 4
    return load_file(run.last)


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return float(sum((one[name].double() - other[name].double()).square().sum() for name in one) ** 0.5)


def test_cached_and_uncached_runs_make_the_same_heads(
    recipe: TrainRecipe, load_llava: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = load_llava("mha")
    uncached = replace(recipe, cache=replace(recipe.cache, enabled=False))
    plain = weights(uncached, tmp_path / "plain", backbone)
    filled = weights(recipe, tmp_path / "filled", backbone)
    # Some features are kept, some never are: which ones makes no difference to a single bit.
    capped = replace(recipe.cache, folder=str(tmp_path / "small"), cap_gb=2.5e-5)
    assert all(
        torch.equal(one, filled[name])
        for name, one in weights(replace(recipe, cache=capped), tmp_path / "capped", backbone).items()
    )
    # Nor does it make one whether the models are there at all.
    monkeypatch.setattr(FrozenReader, "words", None)
    monkeypatch.setattr(FrozenReader, "picture", None)
    found = weights(recipe, tmp_path / "found", backbone)
    assert all(torch.equal(one, filled[name]) for name, one in found.items())
    monkeypatch.undo()
    # How far may weights be off that saw features of eleven digits? As far as those of a run without cache whose
    # features are off by chance in the last of them.
    read = FrozenReader.read
    generator = torch.Generator().manual_seed(0)

    def jittered(self: FrozenReader, sample: TrainingSample) -> FrozenFeatures:
        features = read(self, sample)
        assert features.embedding is not None
        return replace(
            features,
            attention=_off(features.attention, generator),
            hidden=tuple(_off(states, generator) for states in features.hidden),
            embedding=replace(features.embedding, features=_off(features.embedding.features, generator)),
        )

    monkeypatch.setattr(FrozenReader, "read", jittered)
    chance = weights(uncached, tmp_path / "chance", backbone)
    assert 0 < distance(filled, plain) < 3 * distance(chance, plain)


def _off(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Each value changed by less than float16's relative rounding."""
    return tensor * (1 + (torch.rand(tensor.shape, generator=generator) * 2 - 1) * 2**-11)
