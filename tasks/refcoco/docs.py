"""The documents of a RefCOCO split: what one pass of a model is asked, and what its masks are compared with.

The *unit* of a task says what one document is:

- ``picture`` (F-LMM's protocol): one picture with the first sentence of each of its objects, as typed, in lower case.
- ``per_sentence`` (LISA, Sa2VA, LAVT): one sentence, as the refer API cleans it.

In both, one *item* (one number in a mean) is one expression.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

from flmm_plugin.datasets.refer import ORIENTATION, ReferDataset, ReferItem
from flmm_plugin.errors import UnknownArgument
from flmm_plugin.tasks.picture_docs import PictureDoc

Unit = Literal["picture", "per_sentence"]

#: Fields of every document; a per-sentence document also has ``expression``.
FIELDS = (
    "image_id", "image_path", "orientation", "height", "width", "ref_ids", "ann_ids", "expressions", "masks",
    "expected_items",
)  # fmt: skip


class ReferDoc(PictureDoc):
    """One document.

    Keys: ``image_id``; ``image_path``, ``orientation``; ``height``, ``width`` in pixels; ``ref_ids``, ``ann_ids``,
    ``expressions`` and ``masks`` (targets, COCO run-length codes), one per item; ``expected_items``, the published size
    of the whole split in items, None if unknown; ``expression``, in per-sentence documents only.
    """


class ReferDocs(Sequence[ReferDoc]):
    """The documents of one split, with the few attributes of a `datasets.Dataset` that lmms-eval asks for.

    Attributes:
        features: Names of the fields.
        items: Number of items in all documents.
        expected_items: Published number of items of the split, None if nobody states it.
        split_counts: Refs per split name of the annotation file.
        refs_path: The annotation file.
        digest: SHA-256 of the annotation files.
        problems: What of the split is ignored or looks odd.
    """

    def __init__(self, dataset: ReferDataset, unit: Unit) -> None:
        if unit not in get_args(Unit):
            raise UnknownArgument(f"no unit {unit!r} of documents; known: {', '.join(get_args(Unit))}")
        official = dataset.official_size
        self.expected_items = None if official is None else official.refs if unit == "picture" else official.sentences
        self.split_counts = dataset.split_counts
        self.refs_path = dataset.refs_path
        self.digest = dataset.digest
        self.problems = dataset.problems
        build = _picture_docs if unit == "picture" else _sentence_docs
        self._docs = [ReferDoc(doc, expected_items=self.expected_items) for doc in build(dataset)]
        self.items = sum(len(doc["expressions"]) for doc in self._docs)
        names = FIELDS if unit == "picture" else (*FIELDS, "expression")
        self.features: dict[str, None] = dict.fromkeys(names)

    def __len__(self) -> int:
        return len(self._docs)

    def __iter__(self) -> Iterator[ReferDoc]:
        return iter(self._docs)

    def __getitem__(self, index: Any) -> Any:
        # lmms-eval looks at document 0 of every task before it asks how many there are.
        if not self._docs and index == 0:
            return ReferDoc(dict.fromkeys(self.features), expressions=[], masks=[], expression="")
        return self._docs[index]


def read_docs(split: str, settings: Mapping[str, Any]) -> ReferDocs:
    """The documents of a split.

    Args:
        split: As the annotation file names it.
        settings: A task's ``dataset_kwargs``: ``name``, and optionally ``unit``, ``by`` and ``root``.

    Raises:
        DataNotFound, UnsafePickle, BadAnnotation: From the reader.
    """
    dataset = ReferDataset(settings.get("root"), settings["name"], split, settings.get("by"))
    return ReferDocs(dataset, settings.get("unit", "picture"))


def prompt_of(doc: Mapping[str, Any]) -> str:
    """What is asked, in words, for models that read a prompt; ``flmm_*`` models read the expressions themselves."""
    listed = "\n".join(f"{number}. {expression}" for number, expression in enumerate(doc["expressions"], start=1))
    return f"Segment each of these in the image and answer with one mask per line, in this order:\n{listed}"


def target_of(doc: Mapping[str, Any]) -> str:
    """Name the expressions, which stand as the target in sample logs; the target masks are in the document."""
    return "; ".join(doc["expressions"])


def _picture_docs(dataset: ReferDataset) -> Iterator[dict[str, Any]]:
    """One document per picture, pictures in the order of their first ref."""
    by_picture: dict[int, list[ReferItem]] = {}
    for item in dataset:
        by_picture.setdefault(item.image_id, []).append(item)
    for refs in by_picture.values():
        yield _doc(dataset, refs, [_first_sentence(ref) for ref in refs])


def _sentence_docs(dataset: ReferDataset) -> Iterator[dict[str, Any]]:
    for ref in dataset:
        for sentence in ref.cleaned:
            yield {**_doc(dataset, [ref], [sentence.strip().lower()]), "expression": sentence.strip().lower()}


def _first_sentence(ref: ReferItem) -> str:
    """The first sentence in lower case; "" (which scores as an error) for a ref that nobody described."""
    return ref.sentences[0].lower() if ref.sentences else ""


def _doc(dataset: ReferDataset, refs: list[ReferItem], expressions: list[str]) -> dict[str, Any]:
    first = refs[0]
    return {
        "image_id": first.image_id,
        "image_path": str(first.image_path),
        "orientation": ORIENTATION,
        "height": first.height,
        "width": first.width,
        "ref_ids": [ref.ref_id for ref in refs],
        "ann_ids": [ref.ann_id for ref in refs],
        "expressions": expressions,
        "masks": [dataset.rle(ref) for ref in refs],
    }
