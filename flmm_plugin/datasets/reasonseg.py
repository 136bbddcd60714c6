"""Read ReasonSeg: a picture, an implicit query, the region that answers it, and regions that do not count.

A split is a folder of pairs ``<name>.jpg`` and ``<name>.json``; the JSON is labelme's with ``text`` (queries, of which
the first is used to evaluate) and ``is_sentence`` (long query or short phrase). Most files are UTF-8, some are cp1252.

Shapes are drawn as the benchmark's own reader does, with OpenCV: outlines one pixel wide, filled, fractions cut off;
the largest first, so that a smaller shape wins over a larger one wherever they overlap. A target inside an ignored
region survives. Target and ignored region are two masks here: in one run-length code, 1 and 255 could not be told
apart.

Layouts found under a root (``FLMM_DATA``, default ``data/``)::

    <root>/reason_seg/ReasonSeg/<split>/     LISA
    <root>/ReasonSeg/<split>/                the archive, unpacked here
    <root>/<split>/                          root = the archive's folder, if it is called ReasonSeg
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from flmm_plugin.data.registry import DriveFolder, Part
from flmm_plugin.data.root import data_root
from flmm_plugin.datasets.json_files import STRANGE, coordinate, fields_of, read_json, text_of
from flmm_plugin.datasets.problems import Problem
from flmm_plugin.datasets.reader import SplitReader, known_name
from flmm_plugin.errors import BadAnnotation, BadImage, DataNotFound
from flmm_plugin.images import Orientation, image_size
from flmm_plugin.records import BoolMask

#: Pictures per official split.
OFFICIAL_SIZES: Mapping[str, int] = {"train": 239, "val": 200, "test": 779}

#: How pictures are opened: upright, as labelme, which the shapes were drawn with, and the benchmark's own reader do.
ORIENTATION: Orientation = "upright"

#: Folder of Google Drive that LISA's repository links.
_FOLDER = "https://drive.google.com/drive/folders/125mewyg5Ao6tZ3ZdJ-1-E3n04LGVELqy"

_TARGET, _IGNORE = 1, 255
_NO_TARGET = "no shape of the target has a pixel in the picture, so that an empty mask is right"


def split_part(split: str) -> Part:
    """Return the folder of a split."""
    return Part(
        f"{split}: pairs of <name>.jpg and <name>.json",
        tuple(f"{folder}/{split}" for folder in ("reason_seg/ReasonSeg", "ReasonSeg", "reasonseg")),
        "Apache-2.0 (annotations); pictures: OpenImages and ScanNet terms",
        DriveFolder(_FOLDER, "ReasonSeg", (f"{split}.zip",)),
        how=f"{split}.zip of {_FOLDER}, which https://github.com/dvlab-research/LISA links; unpack it into ReasonSeg",
        splits=(split,),
    )


@dataclass(frozen=True)
class ReasonSegItem:
    """One picture with its query.

    Attributes:
        name: Of the pair of files, without suffix.
        image_path: The picture; its size was read, its pixels were not.
        height, width: Size of the picture in pixels.
        query: What is asked for: a sentence or a short phrase.
        is_sentence: Whether the query is a sentence.
        shapes: Polygons with their label, ``(label, points [p, 2] as (x, y))``, in file order.
    """

    name: str
    image_path: Path
    height: int
    width: int
    query: str
    is_sentence: bool
    shapes: tuple[tuple[str, tuple[tuple[float, float], ...]], ...]

    def masks(self) -> tuple[BoolMask, BoolMask]:
        """Target and ignored region, ``bool[H, W]`` each, image frame."""
        drawn = draw_shapes(self.shapes, self.height, self.width)
        return drawn == _TARGET, drawn == _IGNORE


class ReasonSegDataset(SplitReader[ReasonSegItem]):
    """One split, pictures in the order of their names.

    Args:
        root: Data root; None means ``FLMM_DATA``, or ``data`` if that is not set.
        split: Name of the split: ``val``, ``test`` or ``train``.

    Raises:
        UnknownArgument: Another split.
        DataNotFound: The folder or a picture is missing; the message says where it comes from.
        BadAnnotation: A JSON file is truncated or contradicts itself, or a picture has no readable size.
    """

    def __init__(self, root: str | os.PathLike[str] | None, split: str) -> None:
        self.split = known_name("split of ReasonSeg", split, OFFICIAL_SIZES)
        data = data_root(root)
        inside_archive = data.name.lower() == "reasonseg" and (data / split).is_dir()
        self.folder = data / split if inside_archive else split_part(split).path(data, "reasonseg")
        # A folder lists its files in no order; this one makes runs and --limit repeatable.
        annotations = sorted(self.folder.glob("*.json"), key=lambda path: path.stem)
        alone = sorted({p.stem for p in self.folder.glob("*.jpg")} - {p.stem for p in annotations})
        if alone:
            raise BadAnnotation(
                f"{len(alone)} pictures in {self.folder} have no JSON beside them, the first is {alone[0]}.jpg; "
                "unpack the archive again"
            )
        super().__init__(data, f"reasonseg-{split}", ReasonSegItem, annotations, (self.folder,))

    def _read(self, problems: list[Problem]) -> tuple[list[ReasonSegItem], dict[str, Any]]:
        items = [_item(path) for path in self.annotations]
        problems += [Problem(_NO_TARGET, item.name) for item in items if not item.masks()[0].any()]
        return items, {}

    @property
    def source(self) -> str:
        """The folder of the split."""
        return str(self.folder)

    @property
    def official_size(self) -> int:
        """The number of pictures in the released split."""
        return OFFICIAL_SIZES[self.split]

    @property
    def digest(self) -> str:
        """SHA-256 of all annotation files with their names."""
        joined = hashlib.sha256()
        for path in self.annotations:
            joined.update(path.stem.encode() + hashlib.sha256(path.read_bytes()).digest())
        return joined.hexdigest()


def draw_shapes(
    shapes: Sequence[tuple[str, Sequence[tuple[float, float]]]], height: int, width: int
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Shapes as one map: 1 target, 255 ignored, 0 neither.

    Args:
        shapes: (label, points as (x, y)). A label with "ignore" in it, in any case, is ignored; "flag" is not drawn.
        height: Height of the picture in pixels.
        width: Width of the picture in pixels.

    Returns:
        ``uint8[H, W]``, image frame.
    """
    outlines = [
        (label, np.array(points, dtype=np.int32).reshape(-1, 1, 2))
        for label, points in shapes
        if label.lower() != "flag"
    ]

    def drawn(canvas: Any, points: Any, value: int) -> Any:
        cv2.polylines(canvas, [points], True, (value,), 1)
        cv2.fillPoly(canvas, [points], (value,))
        return canvas

    areas = [cv2.countNonZero(drawn(np.zeros((height, width), np.uint8), points, 1)) for _, points in outlines]
    canvas = np.zeros((height, width), np.uint8)
    # Of two shapes of one size, the earlier one in the file is drawn over the other, as in the benchmark's reader.
    for index in np.argsort(areas, kind="stable")[::-1]:
        label, points = outlines[index]
        drawn(canvas, points, _IGNORE if "ignore" in label.lower() else _TARGET)
    return canvas


def _item(path: Path) -> ReasonSegItem:
    content = read_json(path, fallback="cp1252")  # as some released files are
    if not isinstance(content, dict):
        raise BadAnnotation(f"{path} holds a JSON {type(content).__name__}, not an object; it is no ReasonSeg file")
    picture = path.with_suffix(".jpg")
    if not picture.is_file():
        raise DataNotFound(f"no picture {picture} beside its JSON; unpack the archive again")
    try:
        height, width = image_size(picture, ORIENTATION)
    except BadImage as exc:
        raise BadAnnotation(f"{picture} has no readable size ({exc}); unpack the archive again") from exc
    with fields_of(str(path)):
        queries, is_sentence = content["text"], content["is_sentence"]
        if not isinstance(queries, list) or not isinstance(is_sentence, bool):
            raise ValueError("`text` is a list of queries and `is_sentence` is true or false")
        if not isinstance(queries[0], str) or not text_of(queries[0]).strip():
            raise ValueError("the first query of `text` has no words")
        return ReasonSegItem(
            name=path.stem,
            image_path=picture,
            height=height,
            width=width,
            query=queries[0].strip(),
            is_sentence=is_sentence,
            shapes=tuple(_shape(shape) for shape in content["shapes"]),
        )


def _shape(shape: Mapping[str, Any]) -> tuple[str, tuple[tuple[float, float], ...]]:
    label = shape["label"]
    if not isinstance(label, str):
        raise ValueError(f"the label of a shape is a text, not {label!r}")
    try:
        points = tuple((coordinate(x), coordinate(y)) for x, y in shape["points"])
    except STRANGE as exc:
        raise ValueError(f"a shape with label {label!r} has no finite points near a picture: {exc}") from exc
    if not points:
        raise ValueError(f"a shape with label {label!r} has no finite points")
    return text_of(label), points
