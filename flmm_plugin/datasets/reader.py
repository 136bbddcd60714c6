"""Share what all readers of official files do: keep items, name problems, hash the annotation files."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any, TypeVar

from flmm_plugin.data.registry import Split
from flmm_plugin.datasets.prepared import items_of
from flmm_plugin.datasets.problems import Problem, notes
from flmm_plugin.errors import UnknownArgument
from flmm_plugin.suggestions import did_you_mean

Item = TypeVar("Item")


class SplitReader(Sequence[Item]):
    """The items of one split, in file order; a class derives from it and says how the official files are read.

    Args:
        root: Folder that holds the benchmarks' files.
        key: Name of the prepared copy (`flmm_plugin.datasets.prepared`), different for everything that changes items.
        record: Class of the items, a frozen dataclass.
        annotations: The annotation files, which the digest is of.
        folders: Folders whose listing matters too.
        places: Folders of which only the place matters; they may be missing.

    Attributes:
        problems: Everything of the split that is left out or looks odd.
        facts: What else the reader found in the files.
    """

    def __init__(
        self,
        root: Path,
        key: str,
        record: type[Item],
        annotations: Sequence[Path],
        folders: Sequence[Path] = (),
        places: Sequence[Path] = (),
    ) -> None:
        self.root = root
        self.annotations = tuple(annotations)

        def build() -> tuple[tuple[Item, ...], dict[str, Any]]:
            problems: list[Problem] = []
            read, facts = self._read(problems)
            items = tuple(read)  # before the problems are listed: a generator finds them as it goes
            return items, {"facts": facts, "problems": [astuple(one) for one in problems]}

        prepared = items_of(root, key, (*annotations, *folders), record, build, places)
        self._items: Sequence[Item] = prepared.items
        self.facts: dict[str, Any] = prepared.extra["facts"]
        self.problems = tuple(Problem(*one) for one in prepared.extra["problems"])

    @abstractmethod
    def _read(self, problems: list[Problem]) -> tuple[Iterable[Item], dict[str, Any]]:
        """Read the official files: items, and facts that JSON holds; `problems` is added to."""

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: Any) -> Any:
        return self._items[index]

    def __iter__(self) -> Iterator[Item]:
        return iter(self._items)

    @property
    def source(self) -> str:
        """The place of the annotations, for messages."""
        return str(self.annotations[0])

    @property
    def digest(self) -> str:
        """SHA-256 of the annotation files' SHA-256: tells two data roots apart that hold the same split."""
        joined = hashlib.sha256()
        for path in self.annotations:
            joined.update(hashlib.sha256(path.read_bytes()).digest())
        return joined.hexdigest()

    def summary(self, name: str, unit: str, expected: int | None) -> Split:
        """Return what a data check says about the split.

        Args:
            name: Name of the split, as in task names.
            unit: What an item is: pictures, questions, ...
            expected: Official number of items, None where nobody states one.
        """
        pictures = tuple(dict.fromkeys(item.image_path for item in self._items))  # type: ignore[attr-defined]
        return Split(name, len(self), expected, unit, pictures, notes(self.problems))


def known_name(what: str, name: str, known: Iterable[str]) -> str:
    """Return a name that is one of those known.

    Args:
        what: Of what it is a name, e.g. ``split``.
        name: As the user gave it.
        known: All names that exist, in any order.

    Raises:
        UnknownArgument: It is none of them; the nearest one is offered.
    """
    names = list(known)
    if name in names:
        return name
    raise UnknownArgument(f"no {what} {name!r}{did_you_mean(name, names) or '.'} Known: {', '.join(names)}")
