"""Name what a reader could not use as it stands; nothing is left out in silence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_SHOWN = 5


@dataclass(frozen=True)
class Problem:
    """Something in the files that is left out, or looks odd.

    Attributes:
        kind: A few words that are the same for all problems of the kind.
        where: Which document, picture, object or phrase.
        dropped: Items that are left out because of it.
    """

    kind: str
    where: str
    dropped: int = 0

    def __str__(self) -> str:
        return f"{self.where}: {self.kind}"


def counted(problems: Iterable[Problem]) -> dict[str, int]:
    """Count the problems of each kind.

    >>> counted([Problem("empty", "a"), Problem("odd", "b"), Problem("empty", "c")])
    {'empty': 2, 'odd': 1}
    """
    return dict(Counter(problem.kind for problem in problems))


def summed_up(problems: Sequence[Problem]) -> str:
    """Return one line for a log: the counts, and the first few.

    >>> summed_up([Problem("empty", "ref 1"), Problem("empty", "ref 2")])
    'empty 2. First: ref 1: empty; ref 2: empty'
    """
    counts = ", ".join(f"{kind} {count}" for kind, count in counted(problems).items())
    return f"{counts}. First: {'; '.join(map(str, problems[:_SHOWN]))}"


def notes(problems: Sequence[Problem]) -> tuple[str, ...]:
    """Return one line per kind: how often, and where at first.

    >>> notes([Problem("empty", "ref 1"), Problem("empty", "ref 2")])
    ('2 times: empty (ref 1; ref 2)',)
    """
    places = {kind: [one.where for one in problems if one.kind == kind][:_SHOWN] for kind in counted(problems)}
    return tuple(f"{count} times: {kind} ({'; '.join(places[kind])})" for kind, count in counted(problems).items())
