"""Samples that failed: each is answered, counted and shown, and the run goes on.

A rank that raised would leave the other ranks waiting for it, and hours of answers would be lost to one damaged
picture.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from loguru import logger

_SHOWN = 5

#: Documents that got no answer in this process, by task.
UNANSWERED: dict[str, set[int]] = {}


@dataclass(frozen=True)
class Failure:
    """One request that got no answer: which, and why."""

    task: str
    doc_id: int
    kind: str
    message: str


class FailureLog:
    """The failures of one call of the model, of one rank."""

    def __init__(self, rank: int = 0) -> None:
        self._rank = rank
        self._failures: list[Failure] = []

    def __len__(self) -> int:
        return len(self._failures)

    def add(self, task: str, doc_id: int, error: BaseException) -> None:
        """Note one; the first few are shown at once, the others with `report`."""
        failure = Failure(task, doc_id, type(error).__name__, str(error))
        self._failures.append(failure)
        UNANSWERED.setdefault(task, set()).add(doc_id)
        if len(self) <= _SHOWN:
            logger.opt(exception=error if len(self) == 1 else None).error(self._line(failure))
        if len(self) == _SHOWN:
            logger.error("flmm: further failures are counted and summed up at the end")

    @property
    def last(self) -> str:
        """The latest one: its kind and message, on one line."""
        failure = self._failures[-1]
        return " ".join(f"{failure.kind}: {failure.message}".split())

    def report(self, requests: int) -> None:
        """Sum up after `requests` requests; silent if none failed."""
        if not self._failures:
            return
        kinds = ", ".join(f"{kind} {count}" for kind, count in Counter(f.kind for f in self._failures).most_common())
        tasks = ", ".join(f"{task} {count}" for task, count in Counter(f.task for f in self._failures).most_common())
        last = self._failures[-1]
        logger.error(
            f"flmm: {len(self)} of {requests} requests FAILED on rank {self._rank} and have no answer "
            f"({kinds}; by task: {tasks}); they earn nothing. The last one: {self._line(last)}"
        )

    @staticmethod
    def _line(failure: Failure) -> str:
        return f"flmm: no answer for {failure.task} document {failure.doc_id}: {failure.kind}: {failure.message}"
