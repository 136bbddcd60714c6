"""The documents of a ReasonSeg split: one picture, one query, the target's mask and the mask of what does not count."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flmm_plugin.datasets.reasonseg import ORIENTATION, ReasonSegDataset, ReasonSegItem
from flmm_plugin.records import encode_rle
from flmm_plugin.tasks.picture_docs import PictureDocs

_PLACE = "{query}"

#: Fields of every document.
BLANK: dict[str, Any] = {
    "name": "",
    "split": "",
    "image_path": None,
    "orientation": ORIENTATION,
    "height": 0,
    "width": 0,
    "query": "",
    "expression": "",
    "is_sentence": False,
    "mask": None,
    "ignore": None,
    "expected_items": None,
}


def reasonseg_docs(dataset: ReasonSegDataset) -> PictureDocs:
    """Documents of a split; a picture's shapes are drawn when its document is first looked at.

    Keys: ``name``, ``split``; ``image_path``, ``orientation``, ``height``, ``width`` in pixels; ``query`` as written,
    and the same once more as ``expression``, which is what lmms-eval's ``sam3`` reads; ``is_sentence``: long query or
    short phrase; ``mask`` and ``ignore`` (COCO run-length codes); ``expected_items``, pictures of the official split.
    """

    def build(item: ReasonSegItem) -> dict[str, Any]:
        target, ignore = item.masks()
        return {
            "name": item.name,
            "split": dataset.split,
            "image_path": str(item.image_path),
            "orientation": ORIENTATION,
            "height": item.height,
            "width": item.width,
            "query": item.query,
            "expression": item.query,
            "is_sentence": item.is_sentence,
            "mask": encode_rle(target),
            "ignore": encode_rle(ignore),
            "expected_items": dataset.official_size,
        }

    return PictureDocs(
        dataset,
        build,
        blank=BLANK,
        expected_items=dataset.official_size,
        source=str(dataset.folder),
        digest=dataset.digest,
        problems=[str(problem) for problem in dataset.problems],
    )


def read_docs(split: str, settings: Mapping[str, Any]) -> PictureDocs:
    """The documents of a split; `settings` are a task's ``dataset_kwargs``: ``root``.

    Raises:
        DataNotFound, BadAnnotation: From the reader.
    """
    return reasonseg_docs(ReasonSegDataset(settings.get("root"), split))


def prompt_of(doc: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """The query in the words of its kind."""
    # Not `format`: a query may have braces of its own.
    return str(settings["long" if doc["is_sentence"] else "short"]).replace(_PLACE, doc["query"])


def target_of(doc: Mapping[str, Any]) -> str:
    """The query, which stands as the target in sample logs; the target mask is in the document."""
    return str(doc["query"])
