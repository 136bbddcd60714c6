"""Define panoptic narrative grounding: its record, documents and prompt.

A document is one narrative with the phrases that are to be grounded in one pass; an *item* is one phrase. Which kinds
of items there are depends on who counts:

- ``flmm`` (the paper's numbers): the annotators' flag says whether a phrase is plural; a plural phrase is a thing,
  whatever it names; a singular one is what its segment's category is.
- ``bcv`` (the benchmark's own code): one segment is singular, more are plural; thing or stuff is what the category of
  the last segment is.

They differ in the last four of the five average recalls, never in the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from flmm_plugin.data.registry import Benchmark, Split
from flmm_plugin.datasets.png import (
    OFFICIAL_NARRATIVES,
    ORIENTATION,
    Narrative,
    PngDataset,
    PngPhrase,
    parts,
    phrase_masks,
    read_panoptic_map,
)
from flmm_plugin.datasets.reader import known_name
from flmm_plugin.records import BoolMask, decode_rle
from flmm_plugin.tasks.documents import Documents, numbered, picture_fields

#: What ``dataset_kwargs`` may have.
SETTINGS = ("root", "kinds", "question")

#: What the user asks before the narrative; the same for all released heads.
QUESTION = "Please give me a description of the image."


def _read(root: Path, split: str) -> Split:
    dataset = PngDataset(root, split, need_pictures=False)
    files = dict.fromkeys(path for one in dataset for path in (one.image_path, one.map_path))
    return replace(dataset.summary(split, "narratives", None), items=dataset.in_file, pictures=tuple(files))


BENCHMARKS = (
    Benchmark(
        name="png",
        title="Panoptic Narrative Grounding, val2017",
        tasks=("flmm_png", "flmm_keywords"),
        paper="Gonzalez et al. 2021 (arXiv 2109.04988)",
        parts=(*parts("val"), *parts("train")),
        splits=("val",),
        read=_read,
        headline=("AR", "F1"),
        folders=("png", "keywords"),
        kit={"PNG": {"": "flmm_png"}, "PNG_BCV": {"": "flmm_png_bcv"}, "PNG_TINY": {"": "flmm_tiny_png"}},
        order=4,
        training=("train",),
        documents=dict.fromkeys(("flmm_png", "flmm_png_bcv", "flmm_keywords"), OFFICIAL_NARRATIVES["val"]),
        scenes=("val",),
    ),
)


def read_documents(split: str, settings: Mapping[str, Any], unit: str = "phrases") -> Documents:
    """Read the documents of a split.

    Keys: ``narrative`` (its number in the file), ``image_id``; ``image_path``, ``orientation``, ``map_path``;
    ``height``, ``width`` in pixels; ``question``, ``pieces`` and ``grounded`` (indices of pieces), which are what a
    model is given; ``text``, the pieces joined; per item ``expressions``, ``spans`` (characters ``[start, end)`` of the
    text), ``segment_ids`` and ``kinds`` (e.g. ``["singular", "stuff"]``); and of the whole split ``expected_items``,
    ``expected_narratives`` (None where the file has a part of it) and ``left_out``: phrases and narratives that the
    reader could not use.

    Args:
        split: Name of the split: ``val`` or ``train``.
        settings: A task's ``dataset_kwargs``: optionally ``root``, ``kinds`` (default ``flmm``) and ``question``.
        unit: What is counted as complete: ``phrases`` or ``narratives``.

    Raises:
        UnknownArgument: There is no such way of sorting phrases into kinds.
        DataNotFound, BadAnnotation: From the reader.
    """
    kinds = known_name("way of sorting phrases", settings.get("kinds", "flmm"), ("flmm", "bcv"))
    question = settings.get("question") or QUESTION
    dataset = PngDataset(settings.get("root"), split)
    counts = {"phrases": dataset.phrases, "narratives": len(dataset)}
    expected = counts if dataset.in_file >= OFFICIAL_NARRATIVES[split] else dict.fromkeys(counts)
    of_split = {
        "expected_items": expected["phrases"],
        "expected_narratives": expected["narratives"],
        "left_out": {
            "phrases": sum(problem.dropped for problem in dataset.problems),
            "narratives": dataset.in_file - len(dataset),
        },
    }

    def build(narrative: Narrative) -> dict[str, Any]:
        phrases = narrative.phrases
        return {
            **picture_fields(narrative, ORIENTATION),
            "narrative": narrative.index,
            "image_id": narrative.image_id,
            "map_path": str(narrative.map_path),
            "question": question,
            "text": narrative.text,
            "pieces": list(narrative.utterances),
            "grounded": [phrase.piece for phrase in phrases],
            "expressions": [phrase.text.strip() for phrase in phrases],
            "spans": [list(phrase.span) for phrase in phrases],
            "segment_ids": [list(phrase.segment_ids) for phrase in phrases],
            "kinds": [list(kinds_of(phrase, kinds)) for phrase in phrases],
            **of_split,
        }

    return Documents(dataset, build, expected_items=expected[unit], items=counts[unit], unit=unit)


def kinds_of(phrase: PngPhrase, who: str = "flmm") -> tuple[str, str]:
    """Return ``singular`` or ``plural``, and ``thing`` or ``stuff``."""
    of_last = "thing" if phrase.things[-1] else "stuff"
    if who == "bcv":
        return "plural" if len(phrase.segment_ids) > 1 else "singular", of_last
    return ("plural", "thing") if phrase.plural else ("singular", of_last)


def targets_of(doc: Mapping[str, Any]) -> list[BoolMask]:
    """Return the target mask of each item, ``bool[H, W]`` in the image frame.

    From the panoptic map; a document of a log has the ``masks`` themselves.

    Raises:
        BadAnnotation: The map is missing, damaged, of another size, or lacks a segment.
    """
    size = (doc["height"], doc["width"])
    if "masks" in doc:
        return [decode_rle(rle, size) for rle in doc["masks"]]
    segments = read_panoptic_map(doc["map_path"], size)
    return phrase_masks(segments, doc["segment_ids"], doc["map_path"])


def prompt_of(doc: Mapping[str, Any]) -> str:
    """Return what is asked, for models that read a prompt; ``flmm_*`` models are fed the narrative itself."""
    return (
        f"This is said about the image: {doc['text'].strip()}\nSegment what each of these phrases of it means and "
        f"answer with one mask per line, in this order:\n{numbered(doc['expressions'])}"
    )


def target_of(doc: Mapping[str, Any]) -> str:
    """Name the phrases, which stand as the target in sample logs."""
    return "; ".join(doc["expressions"])
