"""GranD-f's evaluation splits for grounded conversation generation: a caption, its phrases, a mask for each.

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

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flmm_plugin.datasets.json_files import STRANGE, inside, name_of, read_json, size_of, text_of
from flmm_plugin.datasets.prepared import items_of
from flmm_plugin.datasets.refer import DATA_ROOT_VARIABLE, data_root
from flmm_plugin.datasets.segmentations import has_pixels, segmentation_rle
from flmm_plugin.errors import BadAnnotation, DataNotFound, UnknownArgument
from flmm_plugin.images import Orientation

SPLITS = ("val", "test")

#: How pictures are opened: upright, as GLaMM's own evaluation does with OpenCV.
ORIENTATION: Orientation = "upright"

_ANNOTATION_FOLDERS = ("GranDf/annotations/val_test", "annotations/val_test", "GranDf/annotations")
_PICTURE_FOLDERS = (
    "GranDf_HA_images/val_test",
    "GranDf/GranDf_HA_images/val_test",
    "images/GranDf_HA_images/val_test",
)
_SOURCE = "https://huggingface.co/datasets/MBZUAI/GranD-f"


@dataclass(frozen=True)
class GranDfItem:
    """One picture with its caption, phrases and masks.

    Attributes:
        image_id: As text, whatever the file has.
        image_path: Its file; not opened.
        height: Of the picture in pixels, as the file states it.
        width: Likewise.
        caption: The reference caption.
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


class GranDfDataset(Sequence[GranDfItem]):
    """One split, pictures in the order of the caption file.

    Args:
        root: Data root; None means ``FLMM_DATA``, or ``data`` if that is not set.
        split: ``val`` or ``test``.

    Attributes:
        notes: What is odd about the data and was kept as it is, one sentence each.

    Raises:
        UnknownArgument: Another split.
        DataNotFound: A file or folder is missing; the message says which and where it comes from.
        BadAnnotation: A file is truncated, of another encoding, or contradicts itself.
    """

    def __init__(self, root: str | os.PathLike[str] | None, split: str) -> None:
        if split not in SPLITS:
            raise UnknownArgument(f"GranD-f has the evaluation splits {' and '.join(SPLITS)}, not {split!r}")
        self.root, self.split = data_root(root), split
        folder = _folder(self.root, _ANNOTATION_FOLDERS, "annotations of GranD-f")
        self.caption_path = _required(folder / f"{split}_gcg_coco_caption_gt.json")
        self.mask_path = _required(folder / f"{split}_gcg_coco_mask_gt.json")
        self.picture_folder = _folder(self.root, _PICTURE_FOLDERS, "pictures of GranD-f's val and test splits")
        sources = (self.caption_path, self.mask_path, self.picture_folder)
        self._items: tuple[GranDfItem, ...] = items_of(
            self.root,
            f"gcg-{split}",
            sources,
            GranDfItem,
            lambda: (_join(_read(self.caption_path), _read(self.mask_path), self), None),
        ).items
        self.notes = tuple(note for item in self._items for note in _odd(item))

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: Any) -> Any:
        return self._items[index]

    def __iter__(self) -> Iterator[GranDfItem]:
        return iter(self._items)

    @property
    def digest(self) -> str:
        """SHA-256 of both annotation files."""
        both = hashlib.sha256()
        for path in (self.caption_path, self.mask_path):
            both.update(hashlib.sha256(path.read_bytes()).digest())
        return both.hexdigest()


def _join(captions: Mapping[str, Any], masks: Mapping[str, Any], data: GranDfDataset) -> Iterator[GranDfItem]:
    """Pictures with what both files say of each."""
    images = _by_image(captions["images"], "id", data.caption_path)
    captioned = _by_image(captions["annotations"], "image_id", data.caption_path)
    masked: dict[str, list[dict[str, Any]]] = {}
    known: set[str] = set()
    for annotation in masks["annotations"]:
        where = f"annotation {annotation.get('id')} of {data.mask_path}"
        if str(annotation.get("id")) in known:
            raise BadAnnotation(f"{where} is there twice; fetch the file again")
        known.add(str(annotation.get("id")))
        image_id = _id(annotation, "image_id", where)
        if image_id not in images:
            raise BadAnnotation(
                f"{where} is of picture {image_id}, which {data.caption_path} does not have; take both files of one "
                "split"
            )
        if annotation.get("iscrowd"):
            raise BadAnnotation(f"{where} is a crowd region, which this benchmark does not have; fetch the file again")
        masked.setdefault(image_id, []).append(annotation)
    for image_id, image in images.items():
        if image_id not in captioned:
            raise BadAnnotation(f"picture {image_id} of {data.caption_path} has no caption; fetch the file again")
        try:
            caption, (height, width) = captioned[image_id], size_of(image)
            labels = caption["labels"]
            if not isinstance(labels, list) or not all(isinstance(one, str) for one in (caption["caption"], *labels)):
                raise ValueError("`caption` is a text and `labels` a list of texts")
            codes = [
                segmentation_rle(one["segmentation"], height, width, f"annotation {one.get('id')} of {data.mask_path}")
                for one in masked.get(image_id, ())
            ]
            yield GranDfItem(
                image_id=image_id,
                image_path=inside(data.picture_folder, image.get("file_name", f"{image_id}.jpg")),
                height=height,
                width=width,
                caption=text_of(caption["caption"]),
                labels=tuple(map(text_of, labels)),
                masks=tuple(codes),
            )
        except STRANGE as exc:
            raise BadAnnotation(
                f"picture {image_id} of {data.caption_path} lacks a field or has one of another kind ({exc!r}); "
                "fetch both files again"
            ) from exc


def _odd(item: GranDfItem) -> Iterator[str]:
    if len(item.labels) != len(item.masks):
        yield f"picture {item.image_id} has {len(item.labels)} labels and {len(item.masks)} masks"
    for place, code in enumerate(item.masks):
        if not has_pixels(code):
            yield f"mask {place} of picture {item.image_id} has no pixel"
    for place, label in enumerate(item.labels):
        if not label.strip():
            yield f"label {place} of picture {item.image_id} has no words"
    if not item.caption.strip():
        yield f"the caption of picture {item.image_id} has no words"


def _id(row: Mapping[str, Any], key: str, where: str) -> str:
    try:
        return name_of(row[key])
    except STRANGE as exc:
        raise BadAnnotation(f"{where} has no {key} ({exc!r}); fetch the file again") from exc


def _by_image(rows: list[dict[str, Any]], key: str, path: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        image_id = _id(row, key, f"an entry of {path}")
        if image_id in found:
            raise BadAnnotation(
                f"{path}: two entries have {key} {image_id}, every picture has one; fetch the file again"
            )
        found[image_id] = row
    return found


def _read(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict) or not all(
        isinstance(content.get(key), list) and all(isinstance(row, dict) for row in content[key])
        for key in ("images", "annotations")
    ):
        raise BadAnnotation(f"{path} has no lists `images` and `annotations`; it is not a file of GranD-f's val_test")
    return content


def _folder(root: Path, candidates: Sequence[str], what: str) -> Path:
    for candidate in candidates:
        if (root / candidate).is_dir():
            return root / candidate
    looked = " and ".join(str(root / candidate) for candidate in candidates)
    raise DataNotFound(f"no {what}: looked for {looked}. {_HOW_TO_GET}")


def _required(path: Path) -> Path:
    if not path.is_file():
        raise DataNotFound(f"no file {path}. {_HOW_TO_GET}")
    return path


_HOW_TO_GET = (
    f"GranD-f's annotations and pictures (GranDf_HA_images) are released with GLaMM at {_SOURCE}: unpack both, or set "
    f"{DATA_ROOT_VARIABLE} to the folder that already holds them"
)
