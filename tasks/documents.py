"""Hold the documents of a task: one dictionary per request, built when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from flmm_plugin.datasets.reader import SplitReader
from flmm_plugin.images import open_image


class Document(dict[str, Any]):
    """One document, a plain dict that also answers ``doc["image"]``, by opening ``doc["image_path"]`` at that moment.

    The picture is no stored key: a log of the document stays small, and a damaged file troubles nobody but its reader.
    ``doc["orientation"]``, the constant of the data set's reader, says how it is opened.
    """

    def __missing__(self, key: str) -> Any:
        if key == "image":
            return open_image(self["image_path"], self.get("orientation") or "upright")
        raise KeyError(key)


class _NoDocument(Document):
    """Document 0 of an empty split, which lmms-eval looks at: every field is an empty text."""

    def __missing__(self, key: str) -> Any:
        return ""


class Documents(Sequence[Document]):
    """The documents of one split, with the few attributes of a `datasets.Dataset` that lmms-eval asks for.

    Args:
        reader: What was read; its digest and problems go into the results.
        build: Makes a document of an entry; called once per entry, when its document is first looked at.
        expected_items: Official number of items of the split; None: nobody states it, or the data here is a part.
        entries: What the documents are made of, one each; None: the reader's items.
        items: Number of items in all documents; None: as many as documents.
        unit: What an item is, in the plural.
        present: What the data has where it has nothing of the split.
        facts: What else changes the numbers, for the task's metadata in the results.

    Attributes:
        source: Where the annotations are, to be named in messages.
        digest: SHA-256 of the annotation files.
        problems: What the reader left out or found odd.
    """

    def __init__(
        self,
        reader: SplitReader[Any],
        build: Callable[[Any], dict[str, Any]],
        *,
        expected_items: int | None,
        entries: Sequence[Any] | None = None,
        items: int | None = None,
        unit: str = "items",
        present: str = "",
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self._entries: Sequence[Any] = reader if entries is None else entries
        self._build = build
        self._built: dict[int, Document] = {}
        self.expected_items = expected_items
        self.items = len(self._entries) if items is None else items
        self.unit = unit
        self.source = reader.source
        self.digest = reader.digest
        self.problems = reader.problems
        self.present = present
        self.facts = dict(facts or {})

    @property
    def features(self) -> dict[str, None]:
        """The names of the fields."""
        return dict.fromkeys(self[0])

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Document]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        if len(self) == 0 and index == 0:
            return _NoDocument()
        place = range(len(self))[index]
        if place not in self._built:
            self._built[place] = Document(self._build(self._entries[place]))
        return self._built[place]


def picture_fields(item: Any, orientation: str) -> dict[str, Any]:
    """Return what every document says of its picture: path, orientation, height and width in pixels."""
    return {
        "image_path": str(item.image_path),
        "orientation": orientation,
        "height": item.height,
        "width": item.width,
    }


def image_of(doc: Mapping[str, Any]) -> list[Any]:
    """Return the picture of a document as PIL RGB, for models that ask the task for it."""
    return [doc["image"]]


def numbered(phrases: Sequence[str]) -> str:
    """Return phrases as a numbered list, one per line, for prompts."""
    return "\n".join(f"{number}. {phrase}" for number, phrase in enumerate(phrases, start=1))
