"""The documents of a GranD-f split: one picture, its reference caption, and the masks of the caption's phrases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flmm_plugin.datasets.grandf import ORIENTATION, GranDfDataset, GranDfItem
from flmm_plugin.tasks.gcg import encoders
from flmm_plugin.tasks.picture_docs import PictureDocs

#: Pictures of the official splits: the paper (arXiv 2311.03356) states 2.5K and 5K. A file with fewer is a part.
OFFICIAL_PICTURES: Mapping[str, int] = {"val": 2450, "test": 4950}

#: Fields of every document.
BLANK: dict[str, Any] = {
    "image_id": "",
    "image_path": None,
    "orientation": ORIENTATION,
    "height": 0,
    "width": 0,
    "caption": "",
    "labels": [],
    "masks": [],
    "sentence_encoder": "",
    "expected_items": None,
}


def gcg_docs(dataset: GranDfDataset, sentence_encoder: str) -> PictureDocs:
    """Documents of a split.

    Keys: ``image_id`` (text), ``image_path``, ``orientation``, ``height``, ``width`` in pixels; ``caption``; ``labels``
    and ``masks`` (COCO run-length codes), one per annotated phrase; ``sentence_encoder``, by which mask recall compares
    phrases; ``expected_items``, pictures of the split: as many as the annotation file has, None if that is a part.
    """
    expected = len(dataset) if len(dataset) >= OFFICIAL_PICTURES[dataset.split] else None

    def build(item: GranDfItem) -> dict[str, Any]:
        return {
            "image_id": item.image_id,
            "image_path": str(item.image_path),
            "orientation": ORIENTATION,
            "height": item.height,
            "width": item.width,
            "caption": item.caption,
            "labels": list(item.labels),
            "masks": list(item.masks),
            "sentence_encoder": sentence_encoder,
            "expected_items": expected,
        }

    return PictureDocs(
        dataset,
        build,
        blank=BLANK,
        expected_items=expected,
        source=str(dataset.caption_path),
        digest=dataset.digest,
        problems=[str(one) for one in dataset.problems],
    )


def read_docs(split: str, settings: Mapping[str, Any]) -> PictureDocs:
    """The documents of a split; `settings` are a task's ``dataset_kwargs``: ``root``, ``sentence_encoder``.

    Raises:
        DataNotFound, BadAnnotation: From the reader.
    """
    return gcg_docs(GranDfDataset(settings.get("root"), split), encoders.chosen(settings.get("sentence_encoder")))


def prompt_of(doc: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """What is asked, the same of every picture."""
    return str(settings["prompt"])


def target_of(doc: Mapping[str, Any]) -> str:
    """The reference caption, which stands as the target in sample logs."""
    return str(doc["caption"])
