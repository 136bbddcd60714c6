"""Define RefCOCO-M: its record, documents and prompt."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flmm_plugin.data.registry import Benchmark, Split
from flmm_plugin.datasets.refcoco_m import EXPRESSIONS, NAME, ORIENTATION, PART, PICTURES, RefcocoMDataset
from flmm_plugin.tasks.documents import Documents
from flmm_plugin.tasks.phrases import phrase_documents

#: What ``dataset_kwargs`` may have.
SETTINGS = ("root", "unit")

_SPLIT = "validation"


def _read(root: Path, split: str) -> Split:
    return RefcocoMDataset(root).summary(split, "expressions", EXPRESSIONS)


BENCHMARKS = (
    Benchmark(
        name=NAME,
        title="RefCOCO-M: RefCOCO val, masks drawn anew",
        tasks=("flmm_refcoco_m",),
        paper="Moondream 2025 (its page on the hub)",
        parts=(PART,),
        splits=(_SPLIT,),
        read=_read,
        headline=("mIoU",),
        folders=("refcoco_m",),
        kit={"RefCOCO_M_SEG": {"": "flmm_refcoco_m"}, "RefCOCO_M_SEG_TINY": {"": "flmm_tiny_refcoco_m"}},
        order=11,
        pictures={_SPLIT: PICTURES},
        documents={"flmm_refcoco_m": EXPRESSIONS},
        scenes=(_SPLIT,),
    ),
)


def read_documents(split: str, settings: Mapping[str, Any]) -> Documents:
    """Read the documents; see `flmm_plugin.tasks.phrases.phrase_documents`.

    Args:
        split: Plays no role: there is one.
        settings: A task's ``dataset_kwargs``: optionally ``root`` and ``unit`` (default ``phrase``).

    Raises:
        UnknownArgument, DataNotFound, BadAnnotation: There is no such unit; from the reader.
    """
    dataset = RefcocoMDataset(settings.get("root"))
    unit = settings.get("unit", "phrase")
    return phrase_documents(dataset, unit, orientation=ORIENTATION, expected=EXPRESSIONS)


def prompt_of(doc: Mapping[str, Any]) -> str:
    """Return what is asked, for models that read a prompt; ``flmm_*`` models read the expressions themselves."""
    return f"Segment each of these in the image, one mask per line: {'; '.join(doc['expressions'])}"
