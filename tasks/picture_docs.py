"""Documents that are about one picture, built when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from flmm_plugin.images import open_image


class PictureDoc(dict[str, Any]):
    """One document, a plain dict that also answers ``doc["image"]``, by opening ``doc["image_path"]`` at that moment.

    The picture is no stored key: a log of the document stays small, and a damaged file troubles nobody but its reader.
    ``doc["orientation"]``, the constant of the data set's reader, says how it is opened.
    """

    def __missing__(self, key: str) -> Any:
        if key == "image":
            return open_image(self["image_path"], self.get("orientation") or "upright")
        raise KeyError(key)


class PictureDocs(Sequence[PictureDoc]):
    """The documents of one split, with the few attributes of a `datasets.Dataset` that lmms-eval asks for.

    Args:
        items: What the documents are made of.
        build: Makes one; called once per item, when it is first looked at.
        blank: What a document without content looks like: lmms-eval looks at document 0 even of an empty split.
        expected_items: Published number of items of the split, None if nobody states it.
        source: Where the annotations are, to be named in messages.
        digest: SHA-256 of them.
        problems: Sentences about what is odd in them.

    Attributes:
        features: Names of the fields.
    """

    def __init__(
        self,
        items: Sequence[Any],
        build: Callable[[Any], dict[str, Any]],
        *,
        blank: dict[str, Any],
        expected_items: int | None,
        source: str,
        digest: str,
        problems: Sequence[str] = (),
    ) -> None:
        self._items, self._build, self._blank = items, build, blank
        self._built: dict[int, PictureDoc] = {}
        self.expected_items, self.source, self.digest = expected_items, source, digest
        self.problems = tuple(problems)
        self.features: dict[str, None] = dict.fromkeys(blank)

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[PictureDoc]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        if len(self) == 0 and index == 0:
            return PictureDoc(self._blank)
        place = range(len(self))[index]
        if place not in self._built:
            self._built[place] = PictureDoc(self._build(self._items[place]))
        return self._built[place]
