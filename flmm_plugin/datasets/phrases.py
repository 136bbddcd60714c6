"""Share what data sets have whose phrases may mean several objects, or none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flmm_plugin.datasets.segmentations import segmentation_rle
from flmm_plugin.records import BoolMask, decode_rle


@dataclass(frozen=True)
class PhraseItem:
    """A phrase about a picture, and the objects that it means.

    Attributes:
        image_id: Number of the picture in its annotation file.
        image_path: Its file; not opened, so it may be missing or damaged.
        height, width: Of the picture in pixels, as the annotation file states them.
        phrase: Words of the phrase, as they were typed.
        ann_ids: Ids of its objects; none: nothing in the picture is meant.
        segmentations: Of these objects, each in one of COCO's forms.
    """

    image_id: int
    image_path: Path
    height: int
    width: int
    phrase: str
    ann_ids: tuple[int, ...]
    segmentations: tuple[Any, ...]

    def rle(self) -> dict[str, Any]:
        """Return the union of the objects as a COCO run-length code, ``{"size": [H, W], "counts": str}``.

        Raises:
            BadAnnotation: A segmentation has none of COCO's forms, or is of another picture.
        """
        parts = [part for one in self.segmentations for part in (one if isinstance(one, list | tuple) else [one])]
        return segmentation_rle(parts, self.height, self.width, where=f"annotation {list(self.ann_ids)}")

    def mask(self) -> BoolMask:
        """Return the union of the objects, ``bool[H, W]`` in the image frame."""
        return decode_rle(self.rle())
