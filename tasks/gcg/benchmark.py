"""Define grounded conversation generation (GranD-f): its record, documents and prompt.

A document is one picture, its reference caption, and the masks of the caption's phrases.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flmm_plugin.data.registry import Benchmark, Split
from flmm_plugin.datasets.grandf import ORIENTATION, PICTURES, SPLITS, GranDfDataset, GranDfItem, annotation_part
from flmm_plugin.tasks.documents import Documents, picture_fields
from flmm_plugin.tasks.gcg import encoders

#: What ``dataset_kwargs`` may have; see `flmm_plugin.tasks.gcg.encoders`.
SETTINGS = ("root", "sentence_encoder")

#: Pictures of the official splits: the paper (arXiv 2311.03356) states 2.5K and 5K. A file with fewer is a part.
OFFICIAL_PICTURES: Mapping[str, int] = {"val": 2450, "test": 4950}


def _read(root: Path, split: str) -> Split:
    return GranDfDataset(root, split).summary(split, "pictures", None)


BENCHMARKS = (
    Benchmark(
        name="gcg",
        title="GranD-f: grounded conversation generation, val and test",
        tasks=("flmm_gcg", "flmm_gcg_val", "flmm_gcg_test"),
        paper="Rasheed et al. 2024 (arXiv 2311.03356)",
        parts=(*(annotation_part(split, kind) for split in SPLITS for kind in ("caption", "mask")), PICTURES),
        splits=SPLITS,
        read=_read,
        headline=("mIoU",),
        folders=("gcg",),
        kit={"GCG": {split: f"flmm_gcg_{split}" for split in SPLITS}, "GCG_TINY": {"": "flmm_tiny_gcg"}},
        order=6,
        scenes=("val",),
    ),
)


def read_documents(split: str, settings: Mapping[str, Any]) -> Documents:
    """Read the documents of a split.

    Keys: ``image_id`` (text), ``image_path``, ``orientation``, ``height``, ``width`` in pixels; ``caption``; ``labels``
    and ``masks`` (COCO run-length codes), one per annotated phrase; ``sentence_encoder``, by which mask recall compares
    phrases; ``expected_items``, pictures of the split: as many as the annotation file has, None if that is a part.

    Raises:
        DataNotFound, BadAnnotation: From the reader.
    """
    sentence_encoder = encoders.chosen(settings.get("sentence_encoder"))
    dataset = GranDfDataset(settings.get("root"), split)
    expected = len(dataset) if len(dataset) >= OFFICIAL_PICTURES[split] else None

    def build(item: GranDfItem) -> dict[str, Any]:
        return {
            **picture_fields(item, ORIENTATION),
            "image_id": item.image_id,
            "caption": item.caption,
            "labels": list(item.labels),
            "masks": list(item.masks),
            "sentence_encoder": sentence_encoder,
            "expected_items": expected,
        }

    return Documents(dataset, build, expected_items=expected, facts={"sentence_encoder": sentence_encoder})


def prompt_of(doc: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """Return what is asked, the same of every picture."""
    return str(settings["prompt"])


def target_of(doc: Mapping[str, Any]) -> str:
    """Return the reference caption, which stands as the target in sample logs."""
    return str(doc["caption"])
