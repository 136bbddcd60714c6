"""Define ReasonSeg: its record, documents and prompts.

A document is one picture, one query, the target's mask and the mask of what does not count.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flmm_plugin.data.registry import Benchmark, Split
from flmm_plugin.datasets.reasonseg import OFFICIAL_SIZES, ORIENTATION, ReasonSegDataset, ReasonSegItem, split_part
from flmm_plugin.records import encode_rle
from flmm_plugin.tasks.documents import Documents, picture_fields

#: What ``dataset_kwargs`` may have.
SETTINGS = ("root",)

_SPLITS = ("val", "test")


def _read(root: Path, split: str) -> Split:
    dataset = ReasonSegDataset(root, split)
    return dataset.summary(split, "pictures", dataset.official_size)


BENCHMARKS = (
    Benchmark(
        name="reasonseg",
        title="ReasonSeg, val and test",
        tasks=("flmm_reasonseg_val", "flmm_reasonseg_test"),
        paper="Lai et al. 2024 (arXiv 2308.00692)",
        parts=tuple(map(split_part, _SPLITS)),
        splits=_SPLITS,
        read=_read,
        headline=("gIoU",),
        folders=("reasonseg",),
        kit={
            "ReasonSeg": {split: f"flmm_reasonseg_{split}" for split in _SPLITS},
            "ReasonSeg_TINY": {"": "flmm_tiny_reasonseg"},
        },
        order=5,
        documents={f"flmm_reasonseg_{split}": OFFICIAL_SIZES[split] for split in _SPLITS},
        scenes=("test",),
    ),
)


def read_documents(split: str, settings: Mapping[str, Any]) -> Documents:
    """Read the documents of a split; a picture's shapes are drawn when its document is first looked at.

    Keys: ``name``, ``split``; ``image_path``, ``orientation``, ``height``, ``width`` in pixels; ``query`` as written,
    and the same once more as ``expression``, which is what lmms-eval's ``sam3`` reads; ``is_sentence``: long query or
    short phrase; ``mask`` and ``ignore`` (COCO run-length codes); ``expected_items``, pictures of the official split.

    Raises:
        DataNotFound, BadAnnotation: From the reader.
    """
    dataset = ReasonSegDataset(settings.get("root"), split)

    def build(item: ReasonSegItem) -> dict[str, Any]:
        target, ignore = item.masks()
        return {
            **picture_fields(item, ORIENTATION),
            "name": item.name,
            "split": dataset.split,
            "query": item.query,
            "expression": item.query,
            "is_sentence": item.is_sentence,
            "mask": encode_rle(target),
            "ignore": encode_rle(ignore),
            "expected_items": dataset.official_size,
        }

    return Documents(dataset, build, expected_items=dataset.official_size)


def prompt_of(doc: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """Return the query in the words of its kind."""
    # Not `format`: a query may have braces of its own.
    return str(settings["long" if doc["is_sentence"] else "short"]).replace("{query}", doc["query"])


def target_of(doc: Mapping[str, Any]) -> str:
    """Return the query, which stands as the target in sample logs; the target mask is in the document."""
    return str(doc["query"])
