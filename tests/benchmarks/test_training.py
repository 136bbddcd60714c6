"""The cost of training: what is timed is the same work, and the arithmetic on the times is right."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from flmm_plugin.bench.timing import Times
from flmm_plugin.geometry import ImageGrid
from flmm_plugin.heads.released import RELEASED
from flmm_plugin.training.features import FrozenReader
from tests.flmm_plugin.training.frozen import Samples, frozen_lmm


def test_quick_run_times_equal_work_and_writes_every_table(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLMM_CACHE", str(tmp_path / "world"))
    small = ["heads.decoder.base_channels=4", "heads.decoder.upsample_to=16"]
    assert script.main(["--quick", "--out", str(tmp_path), *small]) == 0
    record = json.loads((tmp_path / "training.json").read_text())
    assert record["checks"]["paper_attention"] < 1e-4
    assert 0 < record["checks"]["cached_attention"] < 2**-11
    assert record["facts"]["bytes a phrase"] > 1000
    assert [row["arm"] for row in record["arms"]] == ["heads", "cached", "filling", "no cache", "paper", "null"]
    assert all(row["ms a sample"] > 0 for row in record["arms"])
    for name in ("training", "training_cost", "training_codecs", "training_sizes"):
        first, *lines = (tmp_path / f"{name}.csv").read_text().splitlines()
        assert first.startswith("# computed" if name == "training_sizes" else "# measured")
        assert len(list(csv.DictReader(lines))) >= 4


def test_break_even_counts_the_first_epoch(script: ModuleType) -> None:
    def seconds(**arms: float) -> Times:
        return Times({name.replace("_", " "): [value] for name, value in arms.items()})

    # Three epochs with the cache: 12 + 2 x 2 = 16; without: 3 x 10 = 30. Even at 12 + 2 (e - 1) = 10 e, e = 1.25.
    found = seconds(filling=12, cached=2, no_cache=10)
    assert script.break_even(found, "no cache") == 1.25
    assert script.break_even(seconds(filling=12, cached=2, no_cache=2), "no cache") is None


def test_every_lmm_of_the_paper_has_a_size_that_is_arithmetic(script: ModuleType) -> None:
    rows = {row["LMM"]: row for row in script.size_rows()}
    assert set(rows) == {one.name for one in RELEASED}
    # LLaVA-1.5-7B: 1024 maps of 576 cells, 4 tokens of 32 x 4096, 12 of 4096 for the selector, two bytes each.
    numbers = 1024 * 576 + 4 * 32 * 4096 + 12 * 4096
    assert rows["LLaVA-1.5-7B"]["MB a phrase"] == pytest.approx(2 * numbers / 1e6, abs=0.02)
    assert rows["LLaVA-1.5-7B"]["MB a picture"] == pytest.approx(2 * 256 * 64 * 64 / 1e6, abs=0.01)


def test_bytes_by_arithmetic_are_those_of_the_tensors(
    script: ModuleType, load_llava: Callable[..., Any], tmp_path: Path
) -> None:
    features = FrozenReader(frozen_lmm(load_llava("mha"))).read(Samples(tmp_path).narrative())
    tokens = sum(len(one) for one in features.hidden) / 2
    assert features.selector_hidden is not None
    expected = script.words_bytes(12, 16, 3, 64, tokens, len(features.selector_hidden) / 2)
    rounded = features.rounded()
    powers = 2 * (12 + 3 * tokens) + len(features.selector_hidden)
    numbers = rounded.attention.numel() + torch.cat(rounded.hidden).numel() + features.selector_hidden.numel()
    assert 2 * expected == 2 * numbers + 2 * powers + len(features.selector_hidden)
    assert script.picture_bytes(16, 8) == 16 * (64 * 2 + 2)


def test_codecs_are_measured_on_what_is_stored(script: ModuleType) -> None:
    generator = torch.Generator().manual_seed(0)
    grid = ImageGrid(8, 8, 1.0, 1.0, 0.0, 0.0, 8, 8)
    features = script.FrozenFeatures(
        torch.rand(1, 6, 8, 8, generator=generator), (torch.randn(2, 3, 64, generator=generator),), grid
    )
    rows = {(row["part"], row["codec"]): row for row in script.codec_rows([features])}
    assert len(rows) == 3 * 5
    assert (
        rows["the same of a bfloat16 model", "zstd 1"]["times smaller"]
        > rows["hidden states", "zstd 1"]["times smaller"]
    )
