"""Define gRefCOCO: its record and documents."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flmm_plugin.data.registry import Benchmark, Split
from flmm_plugin.datasets.gref import NAME, OFFICIAL_SIZES, PARTS, GrefDataset
from flmm_plugin.datasets.refer import ORIENTATION
from flmm_plugin.tasks.documents import Documents
from flmm_plugin.tasks.phrases import phrase_documents, phrases_prompt

#: What ``dataset_kwargs`` may have.
SETTINGS = ("root", "unit")

_TASKS = {split: f"flmm_{NAME}_{split}" for split in OFFICIAL_SIZES}


def _read(root: Path, split: str) -> Split:
    dataset = GrefDataset(root, split, need_pictures=False)
    official = dataset.official_size
    return dataset.summary(split, "expressions", None if official is None else official.expressions)


BENCHMARKS = (
    Benchmark(
        name=NAME,
        title="gRefCOCO (GRES)",
        tasks=(f"flmm_{NAME}", *_TASKS.values()),
        paper="Liu et al. 2023 (arXiv 2306.00968)",
        parts=PARTS,
        splits=tuple(OFFICIAL_SIZES),
        read=_read,
        headline=("gIoU",),
        folders=(NAME,),
        kit={"gRefCOCO_SEG": _TASKS, "gRefCOCO_SEG_TINY": {"": "flmm_tiny_grefcoco"}},
        order=10,
        training=("train",),
        pictures={split: size.images for split, size in OFFICIAL_SIZES.items()},
        documents={_TASKS[split]: size.expressions for split, size in OFFICIAL_SIZES.items()},
        scenes=("val",),
    ),
)


def read_documents(split: str, settings: Mapping[str, Any]) -> Documents:
    """Read the documents of a split, in the order of the file; see `flmm_plugin.tasks.phrases.phrase_documents`.

    Args:
        split: As the annotation file names it.
        settings: A task's ``dataset_kwargs``: optionally ``root`` and ``unit`` (default ``phrase``).

    Raises:
        UnknownArgument, DataNotFound, BadAnnotation: There is no such unit; from the reader.
    """
    dataset = GrefDataset(settings.get("root"), split)
    official = dataset.official_size
    return phrase_documents(
        dataset,
        settings.get("unit", "phrase"),
        orientation=ORIENTATION,
        expected=None if official is None else official.expressions,
        present=", ".join(f"{name} {count}" for name, count in sorted(dataset.split_counts.items())),
    )


def prompt_of(doc: Mapping[str, Any]) -> str:
    """Return what is asked, for models that read a prompt; ``flmm_*`` models read the expressions themselves."""
    return phrases_prompt(doc)
