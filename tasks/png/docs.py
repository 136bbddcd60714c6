"""The documents of a PNG split: one narrative each, with the phrases that are to be grounded in one pass.

An *item* is one phrase. Which kinds of items there are depends on who counts:

- ``flmm`` (the paper's numbers): the annotators' flag says whether a phrase is plural; a plural phrase is a thing,
  whatever it names; a singular one is what its segment's category is.
- ``bcv`` (the benchmark's own code): one segment is singular, more are plural; thing or stuff is what the category of
  the last segment is.

They differ in the last four of the five average recalls, never in the first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

from flmm_plugin.datasets.png import ORIENTATION, Narrative, PngDataset, PngPhrase, phrase_masks, read_panoptic_map
from flmm_plugin.errors import UnknownArgument
from flmm_plugin.records import BoolMask, decode_rle
from flmm_plugin.tasks.picture_docs import PictureDoc

Kinds = Literal["flmm", "bcv"]

#: What the user asks before the narrative; the same for all released heads.
QUESTION = "Please give me a description of the image."

#: Narratives of the official files, as papers state them (arXiv 2208.05647, section 4.1); nobody states the phrases. A
#: file with fewer is a part of its split, however many of its phrases are scored.
OFFICIAL_NARRATIVES: Mapping[str, int] = {"val": 8380, "train": 133103}

FIELDS = (
    "narrative", "image_id", "image_path", "orientation", "map_path", "height", "width", "question", "text", "pieces",
    "grounded", "expressions", "spans", "segment_ids", "kinds", "expected_items", "expected_narratives", "left_out",
)  # fmt: skip


class PngDoc(PictureDoc):
    """One document.

    Keys: ``narrative`` (its number in the file), ``image_id``; ``image_path``, ``orientation``, ``map_path``;
    ``height``, ``width`` in pixels; ``question``, ``pieces`` and ``grounded`` (indices of pieces), which are what a
    model is given; ``text``, the pieces joined; per item ``expressions``, ``spans`` (characters ``[start, end)`` of the
    text), ``segment_ids`` and ``kinds`` (e.g. ``["singular", "stuff"]``); and of the whole split ``expected_items``,
    ``expected_narratives`` (None where the file has a part of it) and ``left_out``: phrases and narratives that the
    reader could not use.
    """


class PngDocs(Sequence[PngDoc]):
    """The documents of one split, with the few attributes of a `datasets.Dataset` that lmms-eval asks for.

    Args:
        dataset: The narratives.
        question: Before each narrative.
        kinds: How items are sorted.

    Attributes:
        features: Names of the fields.
        items: Number of phrases in all documents.
        digest: SHA-256 of the annotation files.
    """

    def __init__(self, dataset: PngDataset, question: str = QUESTION, kinds: Kinds = "flmm") -> None:
        if kinds not in get_args(Kinds):
            raise UnknownArgument(f"no way {kinds!r} of sorting phrases; known: {', '.join(get_args(Kinds))}")
        self.items = dataset.phrases
        self.digest = dataset.digest
        official = dataset.in_file >= OFFICIAL_NARRATIVES[dataset.split]
        whole = {
            "expected_items": self.items if official else None,
            "expected_narratives": len(dataset) if official else None,
            "left_out": {
                "phrases": sum(problem.dropped for problem in dataset.problems),
                "narratives": dataset.in_file - len(dataset),
            },
        }
        self._docs = [PngDoc(_doc(narrative, question, kinds), **whole) for narrative in dataset]
        self.features: dict[str, None] = dict.fromkeys(FIELDS)

    def __len__(self) -> int:
        return len(self._docs)

    def __iter__(self) -> Iterator[PngDoc]:
        return iter(self._docs)

    def __getitem__(self, index: Any) -> Any:
        # lmms-eval looks at document 0 of every task before it asks how many there are.
        if not self._docs and index == 0:
            return PngDoc(dict.fromkeys(self.features), question="", text="", pieces=[], grounded=[], expressions=[])
        return self._docs[index]


def read_docs(split: str, settings: Mapping[str, Any]) -> PngDocs:
    """The documents of a split; `settings` are a task's ``dataset_kwargs``: ``root``, ``kinds``, ``question``.

    Raises:
        DataNotFound, BadAnnotation: From the reader.
    """
    return docs_of(PngDataset(settings.get("root"), split), settings)


def docs_of(dataset: PngDataset, settings: Mapping[str, Any]) -> PngDocs:
    """The documents of narratives that were read."""
    return PngDocs(dataset, settings.get("question") or QUESTION, settings.get("kinds", "flmm"))


def prompt_of(doc: Mapping[str, Any]) -> str:
    """What is asked, in words, for models that read a prompt; ``flmm_*`` models are fed the narrative itself."""
    listed = "\n".join(f"{number}. {phrase}" for number, phrase in enumerate(doc["expressions"], start=1))
    return (
        f"This is said about the image: {doc['text'].strip()}\nSegment what each of these phrases of it means and "
        f"answer with one mask per line, in this order:\n{listed}"
    )


def target_of(doc: Mapping[str, Any]) -> str:
    """Name the phrases, which stand as the target in sample logs."""
    return "; ".join(doc["expressions"])


def targets_of(doc: Mapping[str, Any]) -> list[BoolMask]:
    """The target mask of each item, ``bool[H, W]`` in the image frame.

    From the panoptic map; a document of a log has the ``masks`` themselves.

    Raises:
        BadAnnotation: The map is missing, damaged, of another size, or lacks a segment.
    """
    size = (doc["height"], doc["width"])
    if "masks" in doc:
        return [decode_rle(rle, size) for rle in doc["masks"]]
    segments = read_panoptic_map(doc["map_path"], size)
    return phrase_masks(segments, doc["segment_ids"], doc["map_path"])


def kinds_of(phrase: PngPhrase, how: Kinds = "flmm") -> tuple[str, str]:
    """``singular`` or ``plural``, and ``thing`` or ``stuff``."""
    if how == "bcv":
        return "plural" if len(phrase.segment_ids) > 1 else "singular", "thing" if phrase.things[-1] else "stuff"
    if phrase.plural:
        return "plural", "thing"
    return "singular", "thing" if phrase.things[-1] else "stuff"


def _doc(narrative: Narrative, question: str, kinds: Kinds) -> dict[str, Any]:
    phrases = narrative.phrases
    return {
        "narrative": narrative.index,
        "image_id": narrative.image_id,
        "image_path": str(narrative.image_path),
        "orientation": ORIENTATION,
        "map_path": str(narrative.map_path),
        "height": narrative.height,
        "width": narrative.width,
        "question": question,
        "text": narrative.text,
        "pieces": list(narrative.utterances),
        "grounded": [phrase.piece for phrase in phrases],
        "expressions": [phrase.text.strip() for phrase in phrases],
        "spans": [list(phrase.span) for phrase in phrases],
        "segment_ids": [list(phrase.segment_ids) for phrase in phrases],
        "kinds": [list(kinds_of(phrase, kinds)) for phrase in phrases],
    }
