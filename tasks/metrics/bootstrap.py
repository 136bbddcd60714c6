"""Compute confidence intervals by resampling documents.

They say how far a number would move on another draw of the same kind of data.

The unit that is drawn is the document, since the items of one picture are not independent. Intervals are percentiles of
the resampled metric. A metric is described once, in one of two forms:

- `Ratio`: a sum over a sum. All resamples are one matrix product.
- `Statistic`: anything else, in two steps, so that what is slow (tokenizers, encoders) is done once, not per resample.

`with_interval` marks the function that prints a metric with its description.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np

Sample = Mapping[str, Any]

RESAMPLES = 1000
LEVEL = 0.95

# Draws per matrix product: bounds memory at any number of documents.
_CHUNK = 64


class Interval(NamedTuple):
    """Lower and upper bound, in the metric's unit."""

    low: float
    high: float


@dataclass(frozen=True)
class Ratio:
    """A metric that is ``scale * sum(numerators) / sum(denominators)`` over documents, 0 for nothing over nothing.

    Attributes:
        terms: Numerator and denominator of one document.
        scale: Factor of the ratio, 100 for percent.
    """

    terms: Callable[[Sample], tuple[float, float]]
    scale: float = 100.0

    def __call__(self, samples: Sequence[Sample]) -> float:
        """Return the metric of these documents."""
        pairs = [self.terms(sample) for sample in samples]
        above, below = sum(one for one, _ in pairs), sum(two for _, two in pairs)
        return self.scale * above / below if below else 0.0

    def interval(
        self, samples: Sequence[Sample], *, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0
    ) -> Interval:
        """Return the interval of the metric, draws of nothing over nothing left out; see `Statistic.interval`."""
        terms = np.array([self.terms(sample) for sample in samples], dtype=np.float64)
        values = [np.zeros(0)]
        for weights in _draws(len(samples), resamples, seed):
            above, below = (weights @ terms).T
            values.append(above[below != 0] / below[below != 0])
        return _percentiles(self.scale * np.concatenate(values), level)


@dataclass(frozen=True)
class Statistic:
    """A metric in two steps.

    Attributes:
        reduce: From the documents' records to as many values, once.
        combine: From values, some of them repeated, to the metric.
    """

    reduce: Callable[[Sequence[Sample]], Sequence[Any]]
    combine: Callable[[Sequence[Any]], float]

    def __call__(self, samples: Sequence[Sample]) -> float:
        """Return the metric of these documents."""
        return self.combine(self.reduce(samples))

    def interval(
        self, samples: Sequence[Sample], *, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0
    ) -> Interval:
        """Return the interval of the metric.

        Args:
            samples: The documents' records; none gives (0, 0).
            resamples: Number of draws, at least 1.
            level: Share of the draws that the interval holds.
            seed: The draws are a function of it and of the number of documents.
        """
        reduced = list(self.reduce(samples))
        values = [
            float(self.combine([reduced[index] for index in np.repeat(np.arange(len(reduced)), counts)]))
            for weights in _draws(len(reduced), resamples, seed)
            for counts in weights
        ]
        return _percentiles(np.array(values), level)


Function = TypeVar("Function", bound=Callable[..., Any])


def with_interval(statistic: Ratio | Statistic) -> Callable[[Function], Function]:
    """Mark a function that prints a metric with the description that intervals are drawn by."""

    def mark(function: Function) -> Function:
        function.statistic = statistic  # type: ignore[attr-defined]
        return function

    return mark


def statistic_of(aggregate: Callable[[Sequence[Sample]], float]) -> Ratio | Statistic:
    """Return the description of a metric; without one, it is computed anew for each resample."""
    found: Ratio | Statistic | None = getattr(aggregate, "statistic", None)
    return found or Statistic(reduce=lambda samples: samples, combine=aggregate)


def _draws(documents: int, resamples: int, seed: int) -> Any:
    """Yield how often each document is drawn, ``int64[<= 64, documents]``; the same draws for every metric."""
    if resamples < 1:
        raise ValueError(f"{resamples} resamples: an interval needs at least one")
    rng = np.random.default_rng(seed)
    for start in range(0, resamples if documents else 0, _CHUNK):
        yield rng.multinomial(documents, np.full(documents, 1 / documents), size=min(_CHUNK, resamples - start))


def _percentiles(values: Any, level: float) -> Interval:
    if not 0 < level < 1:
        raise ValueError(f"a level is a share between 0 and 1, e.g. 0.95, not {level}")
    if len(values) == 0:
        return Interval(0.0, 0.0)
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))
