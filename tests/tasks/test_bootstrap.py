"""Intervals: the two forms agree, they are repeatable, and they are as wide as theory says."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from flmm_plugin.tasks.metrics.bootstrap import Interval, Ratio, Statistic, statistic_of

SAMPLES = [{"a": int(a), "b": int(b)} for a, b in np.random.default_rng(1).integers(1, 50, (40, 2))]
RATIO = Ratio(lambda sample: (sample["a"], sample["a"] + sample["b"]))


def share(samples: object) -> float:
    listed = list(samples)  # type: ignore[call-overload]
    return 100 * sum(s["a"] for s in listed) / sum(s["a"] + s["b"] for s in listed)


def test_a_ratio_and_a_plain_metric_draw_the_same() -> None:
    fast, slow = RATIO.interval(SAMPLES, resamples=200), statistic_of(share).interval(SAMPLES, resamples=200)
    assert fast == pytest.approx(slow, abs=1e-9)
    assert RATIO(SAMPLES) == pytest.approx(share(SAMPLES))
    assert fast.low < RATIO(SAMPLES) < fast.high


def test_what_is_slow_is_done_once() -> None:
    calls = []

    def reduce(samples: object) -> list[int]:
        calls.append(len(list(samples)))  # type: ignore[call-overload]
        return list(range(calls[-1]))

    Statistic(reduce, lambda values: float(np.mean(values))).interval(SAMPLES, resamples=50)
    assert calls == [40]


def test_the_seed_decides_and_more_level_is_wider() -> None:
    assert RATIO.interval(SAMPLES, seed=3) == RATIO.interval(SAMPLES, seed=3) != RATIO.interval(SAMPLES, seed=4)
    wide, narrow = RATIO.interval(SAMPLES, level=0.99), RATIO.interval(SAMPLES, level=0.5)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_the_interval_of_a_mean_is_the_normal_one() -> None:
    values = np.random.default_rng(5).normal(50, 10, 400)
    found = Ratio(lambda sample: (sample["x"], 1), scale=1).interval([{"x": x} for x in values], resamples=4000)
    expected = stats.norm.interval(0.95, values.mean(), values.std() / np.sqrt(400))
    assert found == pytest.approx(expected, abs=0.12)


def test_a_draw_without_any_item_is_no_zero() -> None:
    # One document of three has items of this kind: every draw that has it gives the same number.
    samples = [{"a": 1, "b": 1}, {"a": 0, "b": 0}, {"a": 0, "b": 0}]
    assert RATIO.interval(samples) == pytest.approx([RATIO(samples)] * 2)


def test_edges() -> None:
    assert RATIO.interval([]) == Interval(0.0, 0.0)
    assert statistic_of(share).interval([]) == Interval(0.0, 0.0)
    assert Ratio(lambda sample: (0, 0)).interval(SAMPLES) == Interval(0.0, 0.0)
    assert RATIO.interval(SAMPLES[:1]) == pytest.approx([RATIO(SAMPLES[:1])] * 2)
    with pytest.raises(ValueError, match="at least one"):
        RATIO.interval(SAMPLES, resamples=0)
    with pytest.raises(ValueError, match=r"0\.95"):
        RATIO.interval(SAMPLES, level=95)
