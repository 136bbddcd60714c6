"""What is kept of the time that stages took."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from flmm_plugin import measured
from flmm_plugin.measured import Measurement, Stopwatch, measurements, remember, remember_model

ONE = Measurement("mme", "a/b", "cpu", "float32", 1, 4, 2.0, 1000, {"torch": "2"})


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLMM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_what_is_remembered_is_read_back() -> None:
    assert measurements() == []
    remember(ONE, replace(ONE, stage="pope"))
    assert [one.stage for one in measurements()] == ["mme", "pope"]
    assert measurements()[0] == ONE
    assert ONE.per_document == 0.5


def test_damaged_lines_and_senseless_numbers_are_passed_over() -> None:
    remember(ONE)
    with measured.path().open("a") as file:
        file.write('{"stage": "x"}\n[1]\n17\n{"stage": "half\n{"stage": "a", "unknown": 1}\n')
    for change in ({"seconds": 0.0}, {"seconds": float("inf")}, {"documents": 0}, {"documents": 1.5}, {"model": ""},
                   {"seconds": "fast"}, {"versions": None}, {"parameters": -1}):  # fmt: skip
        remember(replace(ONE, **change))
    remember(replace(ONE, stage="later"))
    assert [one.stage for one in measurements()] == ["mme", "later"]


def test_a_place_that_cannot_be_written_fails_nothing(cache: Path) -> None:
    cache.touch()
    remember(ONE)
    assert measurements() == []


def _remember_many(number: int) -> None:
    for _ in range(20):
        remember(replace(ONE, stage=f"task {number}"))


def test_several_processes_share_the_file() -> None:
    processes = [multiprocessing.get_context("fork").Process(target=_remember_many, args=(n,)) for n in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert len(measurements()) == 80


def test_seconds_are_shared_among_documents_and_warm_up_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 100.0, 100.0, 104.0, 104.0, 105.0, 105.0, 106.0])
    monkeypatch.setattr(measured.time, "perf_counter", lambda: next(clock))
    watch = Stopwatch()
    with watch.lap("a"):
        pass
    with watch.lap("a", "a", "a", "b"):
        pass
    with watch.lap("b") as lap:
        lap.tasks = []
    assert watch.take() == {"a": (3, 3.0), "b": (1, 1.0)}
    with watch.lap("a"):
        pass
    assert watch.take() == {"a": (1, 1.0)}, "of a later turn nothing is warm-up"


def test_what_raises_is_not_timed() -> None:
    watch = Stopwatch()
    with pytest.raises(KeyError), watch.lap("a"):
        raise KeyError("a")
    assert watch.take() == {}


def test_a_model_says_what_was_measured_and_one_that_cannot_fails_nothing() -> None:
    watch = Stopwatch()
    model: Any = SimpleNamespace(num_parameters=lambda: 12, is_loaded_in_4bit=True)
    backbone = SimpleNamespace(model=model, name="a/b", device=torch.device("cpu"), dtype=torch.bfloat16)
    with watch.lap("PNG"):
        pass
    remember_model(watch, backbone, 2, lambda name: (f"flmm_{name.lower()}",))
    (found,) = measurements()
    assert (found.stage, found.device, found.dtype, found.batch_size) == ("flmm_png", "cpu", "4 bit", 2)
    with watch.lap("PNG"):
        pass
    remember_model(watch, None, 1)
    assert len(measurements()) == 1
