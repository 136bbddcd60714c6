"""What a task hands to lmms-eval for one document.

lmms-eval writes the whole of it into the sample log, and lists each of its items among the task's results, those that
no metric sums as well: a row without a number. So what only the log should keep is held here without being an item.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LOGGED_ALONE = frozenset({"reference"})


def reply_of(results: Any) -> str:
    """The first reply of what lmms-eval hands over or logs, however deep it is nested; "" for what is no text.

    >>> reply_of(["a"]), reply_of([["a", "b"]]), reply_of([None]), reply_of([])
    ('a', 'a', '', '')
    """
    while isinstance(results, list):
        results = results[0] if results else ""
    return results if isinstance(results, str) else ""


class SampleScores(dict[str, Any]):
    """Scores of one document by metric, and beside them what only the sample log keeps (`LOGGED_ALONE`).

    Copies (``dict(scores)``, ``log.update(scores)``, ``{**scores}``) hold everything; `items` leaves the latter out.

    >>> scores = SampleScores({"cIoU": 1, "reference": {"phrases": []}})
    >>> list(scores.items()), sorted(dict(scores))
    ([('cIoU', 1)], ['cIoU', 'reference'])
    """

    def items(self) -> Any:
        """The metrics alone, as a view."""
        return self.metrics.items()

    @property
    def metrics(self) -> Mapping[str, Any]:
        """What is summed over documents."""
        return {name: self[name] for name in self if name not in LOGGED_ALONE}
