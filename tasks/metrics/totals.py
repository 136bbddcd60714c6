"""The two counts that every task prints beside its metrics: how many, and whether that was all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def total(samples: Iterable[Mapping[str, Any]]) -> int:
    """Sum of the documents' ``count``.

    >>> total([{"count": 2}, {"count": 1}])
    3
    """
    return sum(sample["count"] for sample in samples)


def is_complete(samples: Iterable[Mapping[str, Any]]) -> int:
    """1 if the documents' counts add up to the number that each of them expects, else 0.

    >>> is_complete([{"count": 1, "expected": 2}]), is_complete([{"count": 1, "expected": 2}] * 2)
    (0, 1)
    """
    listed = list(samples)
    return int({sample["expected"] for sample in listed} == {total(listed)})
