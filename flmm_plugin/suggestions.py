"""Offer the name that somebody who misspelt one may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """Write the nearest known name as the end of a sentence, "" if none is near.

    >>> did_you_mean("gruond", ["ground", "chat"])
    "; did you mean 'ground'?"

    Args:
        name: Name that does not exist.
        known: Names to offer one of, compared without regard to case.
        cutoff: How alike they must be, 0 to 1.
    """
    by_lower = {one.lower(): one for one in known}
    near = difflib.get_close_matches(name.lower(), by_lower, 1, cutoff)
    return f"; did you mean {by_lower[near[0]]!r}?" if near else ""
