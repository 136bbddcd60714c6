"""Count what every task prints beside its metrics: items, errors, and whether that was all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def counted(items: int, errors: int, expected: int | None) -> dict[str, dict[str, Any]]:
    """Return what one document contributes to ``items``, ``errors`` and ``complete``.

    Args:
        items: Number of items in the document.
        errors: How many of them have no usable reply.
        expected: Official number of items of the whole split, None if unknown.
    """
    return {
        "items": {"count": items},
        "errors": {"count": errors},
        "complete": {"count": items, "expected": expected},
    }


def total(samples: Iterable[Mapping[str, Any]]) -> int:
    """Sum the documents' ``count``.

    >>> total([{"count": 2}, {"count": 1}])
    3
    """
    return sum(sample["count"] for sample in samples)


def is_complete(samples: Iterable[Mapping[str, Any]]) -> int:
    """Return 1 if the documents' counts add up to the number that each of them expects, else 0.

    >>> is_complete([{"count": 1, "expected": 2}]), is_complete([{"count": 1, "expected": 2}] * 2)
    (0, 1)
    """
    listed = list(samples)
    return int({sample["expected"] for sample in listed} == {total(listed)})
