"""The cache gives what the models gave, within the rounding of float16; and whatever happens to it costs time only."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from flmm_plugin.errors import BadCache, BadImage, EmptyPhrase
from flmm_plugin.training.cache import (
    CachedReader,
    CacheEstimate,
    Counts,
    FeatureCache,
    build,
    estimate,
)
from flmm_plugin.training.features import FrozenFeatures, FrozenReader
from flmm_plugin.training.samples import TrainingSample

from .frozen import Samples, frozen_lmm


@pytest.fixture(scope="module")
def reader(load_llava: Callable[..., Any]) -> FrozenReader:
    return FrozenReader(frozen_lmm(load_llava("mha")))


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    return Samples(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def some(samples: Samples) -> list[TrainingSample]:
    """Six samples of four pictures."""
    return [samples.narrative(0), samples.expressions(0), *(samples.narrative(at) for at in (1, 2)),
            *(samples.expressions(at) for at in (2, 3))]  # fmt: skip


def opened(folder: Path, reader: FrozenReader, **options: Any) -> CachedReader:
    return CachedReader(reader, FeatureCache.of_reader(folder, reader, **options))


def assert_equal(found: FrozenFeatures, expected: FrozenFeatures) -> None:
    assert torch.equal(found.attention, expected.attention)
    assert len(found.hidden) == len(expected.hidden)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found.hidden, expected.hidden, strict=True))
    assert found.grid == expected.grid
    assert (found.embedding is None) == (expected.embedding is None)
    if found.embedding is not None and expected.embedding is not None:
        assert torch.equal(found.embedding.features, expected.embedding.features)
        assert found.embedding.input_size == expected.embedding.input_size
        assert found.embedding.original_size == expected.embedding.original_size
    for name in ("selector_hidden", "selector_labels"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert (ours is None) == (theirs is None)
        assert ours is None or torch.equal(ours, theirs)


def test_from_the_disk_comes_what_was_computed_rounded_to_float16(
    reader: FrozenReader, some: list[TrainingSample], tmp_path: Path
) -> None:
    plain = [reader.read(sample) for sample in some]
    first = opened(tmp_path, reader)
    computed = [first.read(sample) for sample in some]
    again = opened(tmp_path, reader)
    found = [again.read(sample) for sample in some]
    assert first.counts == Counts(found=2, kept=10)  # two samples showed pictures that were there already
    assert again.counts == Counts(found=12)
    for one, two, three in zip(plain, computed, found, strict=True):
        assert_equal(two, one.rounded())
        assert_equal(three, one.rounded())
        torch.testing.assert_close(three.attention, one.attention, rtol=2**-11, atol=0)
        torch.testing.assert_close(torch.cat(three.hidden), torch.cat(one.hidden), rtol=2**-11, atol=0)


def test_the_models_are_not_asked_for_what_is_there(
    reader: FrozenReader, some: list[TrainingSample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = opened(tmp_path, reader)
    for sample in some:
        first.read(sample)
    again = opened(tmp_path, reader)
    monkeypatch.setattr(FrozenReader, "words", None)
    monkeypatch.setattr(FrozenReader, "picture", None)
    for sample in some:
        again.read(replace(sample, image_loader=_never))


def _never() -> Any:
    raise AssertionError("the picture was decoded")


def test_an_address_is_the_content_not_the_name(samples: Samples, reader: FrozenReader, tmp_path: Path) -> None:
    cache = opened(tmp_path / "cache", reader).cache
    one = samples.narrative(0)
    copied = tmp_path / "copy.png"
    shutil.copy(one.image_path, copied)
    assert cache.address(one) == cache.address(replace(one, key="other", image_path=copied))
    for other in (
        replace(one, prompt="Describe."),
        replace(one, grounded=(1,)),
        replace(one, keywords=False),
        replace(one, pieces=("There is a", " man", " near", " the big table", ".")),
    ):
        assert cache.address(other).words != cache.address(one).words
        assert cache.address(other).picture == cache.address(one).picture
    before = cache.address(replace(one, image_path=copied))
    shutil.copy(samples.picture(1), copied)
    os.utime(copied, ns=(1, 1))
    assert cache.address(replace(one, image_path=copied)) != before
    with pytest.raises(BadImage, match=r"none\.png"):
        cache.address(replace(one, image_path=tmp_path / "none.png"))


def test_another_model_shares_embeddings_and_nothing_else(
    reader: FrozenReader, load_llava: Callable[..., Any], some: list[TrainingSample], tmp_path: Path
) -> None:
    first = opened(tmp_path, reader)
    first.read(some[0])
    other = opened(tmp_path, FrozenReader(frozen_lmm(load_llava("gqa"))))
    features = other.read(some[0])
    assert other.counts == Counts(found=1, kept=1)
    assert not torch.equal(features.attention, first.read(some[0]).attention)


def test_heads_without_a_refiner_have_a_cache_too(
    load_llava: Callable[..., Any], some: list[TrainingSample], tmp_path: Path
) -> None:
    plain = FrozenReader(frozen_lmm(load_llava("mha"), sam=None))
    first = opened(tmp_path, plain)
    first.read(some[0])
    again = opened(tmp_path, plain)
    assert_equal(again.read(some[0]), plain.read(some[0]).rounded())
    assert again.counts == Counts(found=1)
    assert not list(tmp_path.glob("pictures-*"))


@pytest.mark.parametrize("kind", ["words", "pictures"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "deleted"])
def test_damage_is_named_and_made_good(
    reader: FrozenReader, some: list[TrainingSample], tmp_path: Path, caplog: pytest.LogCaptureFixture,
    kind: str, damage: str,
) -> None:  # fmt: skip
    first = opened(tmp_path, reader)
    for sample in some[:3]:
        first.read(sample)
    record = min(tmp_path.glob(f"{kind}-*/*.features"))
    content = bytearray(record.read_bytes())
    if damage == "deleted":
        record.unlink()
    elif damage == "truncated":
        record.write_bytes(content[: len(content) // 2])
    else:
        content[-300] ^= 0xFF
        record.write_bytes(content)
    again = opened(tmp_path, reader)
    for sample in some[:3]:
        assert_equal(again.read(sample), reader.read(sample).rounded())
    assert again.counts.kept > 0
    assert (record.name in caplog.text) == (damage != "deleted")
    third = opened(tmp_path, reader)
    for sample in some[:3]:
        third.read(sample)
    assert third.counts == Counts(found=6)


def test_beyond_the_cap_features_are_computed_and_rounded_alike(
    reader: FrozenReader, some: list[TrainingSample], tmp_path: Path
) -> None:
    capped = opened(tmp_path, reader, cap_bytes=25_000)
    for _ in range(2):
        for sample in some:
            assert_equal(capped.read(sample), reader.read(sample).rounded())
    assert capped.cache.full
    assert capped.counts.kept > 0
    assert capped.counts.not_kept > 0
    assert capped.cache.cap.used() <= 25_000


def test_an_estimate_is_near_to_what_is_written_and_writes_nothing(
    reader: FrozenReader, some: list[TrainingSample], tmp_path: Path
) -> None:
    one = opened(tmp_path, reader)
    before = sorted(tmp_path.rglob("*"))
    found = estimate(reader, one.cache, some, probes=3)
    assert sorted(tmp_path.rglob("*")) == before
    assert (found.samples, found.phrases, found.pictures, found.probed) == (6, 12, 4, 3)
    assert found.present_bytes == 0
    build(one, some, progress=False)
    assert one.cache.present_bytes() == pytest.approx(found.total_bytes, rel=0.2)
    text = estimate(reader, one.cache, some, probes=1).as_text()
    assert "6 samples, 12 phrases, 4 pictures" in text
    assert "no cap" in text


def test_the_estimate_passes_over_samples_that_cannot_be_used(
    reader: FrozenReader, samples: Samples, tmp_path: Path
) -> None:
    bad = samples.expressions(pieces=(" ", "; ", " ", ";"))
    cache = opened(tmp_path, reader).cache
    assert estimate(reader, cache, [bad, samples.narrative()], probes=2).probed == 1
    with pytest.raises(EmptyPhrase, match="none of the 1 samples"):
        estimate(reader, cache, [bad])


def planned(**changes: Any) -> CacheEstimate:
    facts: dict[str, Any] = {
        "folder": Path("cache"), "samples": 100, "phrases": 400, "pictures": 90, "probed": 8, "phrase_bytes": 1e6,
        "picture_bytes": 2e6, "read_seconds": 1.0, "write_seconds": 0.5, "load_seconds": 0.1, "present_bytes": 0,
        "used_bytes": 0, "free_bytes": 10**9, "cap_bytes": None,
    }  # fmt: skip
    return CacheEstimate(**{**facts, **changes})


def test_shares_and_break_even() -> None:
    one = planned()
    assert one.total_bytes == 580e6
    assert one.share == 1
    assert one.break_even == pytest.approx(1 + 0.5 / 0.9)
    assert planned(cap_bytes=290_000_000).share == 0.5
    assert planned(cap_bytes=290_000_000, present_bytes=100_000_000, used_bytes=200_000_000).share == pytest.approx(
        190 / 580
    )
    assert planned(load_seconds=2.0).break_even == float("inf")
    assert "never pays" in planned(load_seconds=2.0).as_text()


def test_a_cache_that_does_not_fit_on_the_disk_is_refused_with_three_ways_out() -> None:
    planned().check_room()
    planned(free_bytes=1, present_bytes=580_000_000).check_room()
    planned(free_bytes=200_000_000, cap_bytes=100_000_000).check_room()
    with pytest.raises(BadCache, match=r"580\.0 MB more.*cache\.folder=.*cache\.cap_gb=0.*--no-cache"):
        planned(free_bytes=200_000_000).check_room()


def test_processes_share_the_building(reader: FrozenReader, some: list[TrainingSample], tmp_path: Path) -> None:
    reports = [build(opened(tmp_path, reader), some, rank=rank, processes=4, progress=False) for rank in range(4)]
    assert [one.samples for one in reports] == [2, 2, 1, 1]
    assert [one.read for one in reports] == [2, 2, 1, 1]
    last = build(opened(tmp_path, reader), some, progress=False)
    assert (last.found, last.read) == (6, 0)


def test_building_stops_at_the_cap(reader: FrozenReader, some: list[TrainingSample], tmp_path: Path) -> None:
    report = build(opened(tmp_path, reader, cap_bytes=25_000), some, progress=False)
    assert report.full
    assert 0 < report.read < 6


def test_building_names_samples_that_cannot_be_used_and_goes_on(
    reader: FrozenReader, samples: Samples, tmp_path: Path
) -> None:
    bad = samples.expressions(pieces=(" ", "; ", " ", ";"))
    gone = replace(samples.narrative(1), image_path=tmp_path / "none.png")
    good = samples.narrative(2)
    one = opened(tmp_path / "cache", reader)
    named: list[str] = []
    report = build(one, [bad, gone, good], on_problem=lambda sample, _: named.append(sample.key), progress=False)
    assert named == [bad.key, gone.key]
    assert "none.png" in report.problems[gone.key]
    assert report.read == 1
    assert one.cache.address(good) in one.cache
    with pytest.raises(EmptyPhrase):
        build(one, [bad, good], progress=False)


class Slow(FrozenReader):
    """Gives the test time to kill it."""

    def words(self, *args: Any) -> FrozenFeatures:
        time.sleep(0.2)
        return super().words(*args)


def test_a_build_that_is_killed_goes_on(reader: FrozenReader, some: list[TrainingSample], tmp_path: Path) -> None:
    def slowly() -> None:
        build(opened(tmp_path, Slow(reader.lmm)), some, progress=False)

    process = multiprocessing.get_context("fork").Process(target=slowly, daemon=True)
    process.start()
    while not list(tmp_path.glob("pictures-*/*.features")):
        assert process.is_alive(), "it ended before it wrote anything"
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join(60)
    again = opened(tmp_path, reader)
    there = len(again.cache.words)
    assert 0 < there < 6
    report = build(again, some, progress=False)
    assert report.found + report.read == 6
    assert report.found > 0
    for sample in some:
        assert_equal(again.read(sample), reader.read(sample).rounded())


def test_a_picture_replaced_under_its_name_and_time_is_another(tmp_path: Path) -> None:
    path, cache = tmp_path / "x.bin", FeatureCache(tmp_path / "cache", {}, None)
    path.write_bytes(b"one")
    sample = replace(Samples(tmp_path).narrative(0), image_path=path)
    before, stat = cache.address(sample), path.stat()
    time.sleep(0.02)
    path.write_bytes(b"two")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert cache.address(sample) != before
