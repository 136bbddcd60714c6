"""Answers on disk one by one: the kit itself writes every tenth, and a kill costs what came after.

A journal is one file of JSON lines beside the kit's own results, kept while a model answers a data set and removed when
the kit has written them all. A line is found again by all that was asked (`messages.digest_of`), not by a row's number.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from flmm_plugin import json_lines

_FIELDS = 3  # of a line: identity, digest, answer


class Journal:
    """One process's answers of one data set.

    Args:
        path: The file that this process writes.
        identity: Name of what decides the answers: lines of another one are left out.
        others: Files that earlier runs, perhaps of another number of processes, left; they are read as well.
    """

    def __init__(self, path: Path, identity: str, others: Iterable[Path] = ()) -> None:
        self.path, self._identity = path, identity[:16]
        found = (line for file in {path, *others} for line in json_lines.read(file))
        lines = [line for line in found if isinstance(line, list) and len(line) == _FIELDS]
        self._known = {digest: answer for whose, digest, answer in lines if whose == self._identity}
        #: Whether answers of another identity are there.
        self.foreign = any(whose != self._identity for whose, _, _ in lines)
        #: Answers that were found, and answers that were added.
        self.found = self.added = 0

    def get(self, digest: str) -> str | None:
        """The answer to what was asked, None if it is not there."""
        answer = self._known.get(digest)
        self.found += answer is not None
        return answer

    def add(self, digest: str, answer: str) -> None:
        """Write an answer down; it is on disk when this returns."""
        self._known[digest] = answer
        self.added += 1
        json_lines.append(self.path, [self._identity, digest, answer])
