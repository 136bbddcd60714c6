"""Read GranD-f's evaluation splits for grounded conversation generation: a caption, its phrases, a mask for each.

Two COCO-like files describe a split: ``{split}_gcg_coco_caption_gt.json`` (pictures; per picture a caption and the
labels, i.e. phrases of it) and ``{split}_gcg_coco_mask_gt.json`` (masks as run-length codes). Label i of a picture
belongs to its i-th mask, in file order. Pictures of both splits lie in one folder and have string ids
(``sa_10010541``), which COCO's own tools take for lists of letters.

Layouts found under a root (``FLMM_DATA``, default ``data/``)::

    <root>/GranDf/annotations/val_test/*.json      <root>/GranDf_HA_images/val_test/*.jpg            GLaMM
    <root>/GranDf/annotations/val_test/*.json      <root>/GranDf/GranDf_HA_images/val_test/*.jpg     one folder for all
    <root>/annotations/val_test/*.json             <root>/GranDf_HA_images/val_test/*.jpg            root = that folder
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flmm_plugin.data.registry import Hub, Part
from flmm_plugin.data.root import data_root
from flmm_plugin.datasets.json_files import fields_of, inside, name_of, read_json, size_of, text_of
from flmm_plugin.datasets.problems import Problem
from flmm_plugin.datasets.reader import SplitReader, known_name
from flmm_plugin.datasets.segmentations import has_pixels, segmentation_rle
from flmm_plugin.errors import BadAnnotation
from flmm_plugin.images import Orientation

SPLITS = ("val", "test")

#: How pictures are opened: upright, as GLaMM's own evaluation does with OpenCV.
ORIENTATION: Orientation = "upright"

PICTURES = Part(
    "pictures (SA-1B's) of val and test",
    ("GranDf_HA_images/val_test", "GranDf/GranDf_HA_images/val_test", "images/GranDf_HA_images/val_test"),
    "SA-1B research licence",
    how="the archive of human-annotated pictures that GLaMM's data page "
    "(https://github.com/mbzuai-oryx/groundingLMM/blob/main/docs/datasets.md) links; unpack it as "
    "GranDf_HA_images/val_test",
)


def annotation_part(split: str, kind: str) -> Part:
    """Return an annotation file of a split; its kind is ``caption`` or ``mask``."""
    name = f"{split}_gcg_coco_{kind}_gt.json"
    folders = ("GranDf/annotations/val_test", "annotations/val_test", "GranDf/annotations")
    return Part(
        f"{kind} of {split}",
        tuple(f"{folder}/{name}" for folder in folders),
        "Apache-2.0",
        Hub("MBZUAI/GranD-f", "GranDf/annotations/val_test", (f"*{name}",)),
        splits=(split,),
    )


@dataclass(frozen=True)
class GranDfItem:
    """One picture with its caption, phrases and masks.

    Attributes:
        image_id: As text, whatever the file has.
        image_path: File of the picture; not opened.
        height, width: Of the picture in pixels, as the file states them.
        caption: The one reference caption of the picture.
        labels: Phrases of the caption, in file order.
        masks: COCO run-length codes of the picture's size, in file order; mask i shows label i.
    """

    image_id: str
    image_path: Path
    height: int
    width: int
    caption: str
    labels: tuple[str, ...]
    masks: tuple[dict[str, Any], ...]


class GranDfDataset(SplitReader[GranDfItem]):
    """One split, pictures in the order of the caption file.

    Args:
        root: Data root; None means ``FLMM_DATA``, or ``data`` if that is not set.
        split: Name of the split: ``val`` or ``test``.

    Raises:
        UnknownArgument: Another split.
        DataNotFound: A file or folder is missing; the message says which and where it comes from.
        BadAnnotation: A file is truncated, of another encoding, or contradicts itself.
    """

    def __init__(self, root: str | os.PathLike[str] | None, split: str) -> None:
        self.split = known_name("split of GranD-f", split, SPLITS)
        folder = data_root(root)
        self.caption_path = annotation_part(split, "caption").path(folder, "gcg")
        self.mask_path = annotation_part(split, "mask").path(folder, "gcg")
        self.picture_folder = PICTURES.path(folder, "gcg")
        annotations = (self.caption_path, self.mask_path)
        super().__init__(folder, f"gcg-{split}", GranDfItem, annotations, places=(self.picture_folder,))

    def _read(self, problems: list[Problem]) -> tuple[list[GranDfItem], dict[str, Any]]:
        items = list(self._joined(_content(self.caption_path), _content(self.mask_path)))
        problems += [problem for item in items for problem in _unusual(item)]
        return items, {}

    def _joined(self, captions: Mapping[str, Any], masks: Mapping[str, Any]) -> Iterator[GranDfItem]:
        """Pictures with what both files say of each."""
        images = _by_image(captions["images"], "id", self.caption_path)
        captioned = _by_image(captions["annotations"], "image_id", self.caption_path)
        masked = self._masks_of(images, masks["annotations"])
        for image_id, image in images.items():
            where = f"picture {image_id} of {self.caption_path}"
            if image_id not in captioned:
                raise BadAnnotation(f"{where} has no caption; fetch the file again")
            with fields_of(where, "fetch both files again"):
                caption, (height, width) = captioned[image_id], size_of(image)
                labels = caption["labels"]
                if not isinstance(labels, list) or not all(isinstance(x, str) for x in (caption["caption"], *labels)):
                    raise ValueError("`caption` is a text and `labels` a list of texts")
                codes = [
                    segmentation_rle(one["segmentation"], height, width, self._mask_named(one))
                    for one in masked.get(image_id, ())
                ]
                yield GranDfItem(
                    image_id=image_id,
                    image_path=inside(self.picture_folder, image.get("file_name", f"{image_id}.jpg")),
                    height=height,
                    width=width,
                    caption=text_of(caption["caption"]),
                    labels=tuple(map(text_of, labels)),
                    masks=tuple(codes),
                )

    def _masks_of(
        self, images: Mapping[str, Any], annotations: list[dict[str, Any]]
    ) -> dict[str, list[dict[str, Any]]]:
        """Return the mask annotations of each picture."""
        masked: dict[str, list[dict[str, Any]]] = {}
        known: set[str] = set()
        for annotation in annotations:
            where = self._mask_named(annotation)
            if str(annotation.get("id")) in known:
                raise BadAnnotation(f"{where} is there twice; fetch the file again")
            known.add(str(annotation.get("id")))
            with fields_of(where):
                image_id = name_of(annotation["image_id"])
            if image_id not in images:
                raise BadAnnotation(
                    f"{where} is of picture {image_id}, which {self.caption_path} does not have; take both files of "
                    "one split"
                )
            if annotation.get("iscrowd"):
                raise BadAnnotation(
                    f"{where} is a crowd region, which this benchmark does not have; fetch the file again"
                )
            masked.setdefault(image_id, []).append(annotation)
        return masked

    def _mask_named(self, annotation: Mapping[str, Any]) -> str:
        return f"annotation {annotation.get('id')} of {self.mask_path}"


def _unusual(item: GranDfItem) -> Iterator[Problem]:
    """Yield the oddities of a picture, which are kept as they are."""
    picture = f"picture {item.image_id}"
    if len(item.labels) != len(item.masks):
        counts = f"{len(item.labels)} labels and {len(item.masks)} masks"
        yield Problem("as many labels as masks are expected", f"{picture} has {counts}")
    for place, code in enumerate(item.masks):
        if not has_pixels(code):
            yield Problem("mask without a pixel", f"mask {place} of {picture}")
    for place, label in enumerate(item.labels):
        if not label.strip():
            yield Problem("label without words", f"label {place} of {picture}")
    if not item.caption.strip():
        yield Problem("caption without words", f"caption of {picture}")


def _by_image(rows: list[dict[str, Any]], key: str, path: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        with fields_of(f"an entry of {path}"):
            image_id = name_of(row[key])
        if image_id in found:
            raise BadAnnotation(
                f"{path}: two entries have {key} {image_id}, every picture has one; fetch the file again"
            )
        found[image_id] = row
    return found


def _content(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict) or not all(
        isinstance(content.get(key), list) and all(isinstance(row, dict) for row in content[key])
        for key in ("images", "annotations")
    ):
        raise BadAnnotation(f"{path} has no lists `images` and `annotations`; it is not a file of GranD-f's val_test")
    return content
