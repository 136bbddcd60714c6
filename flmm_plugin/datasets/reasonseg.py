"""ReasonSeg: a picture, an implicit query, the region that answers it, and regions that do not count.

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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from flmm_plugin.datasets.json_files import STRANGE, coordinate, read_json, text_of
from flmm_plugin.datasets.prepared import items_of
from flmm_plugin.datasets.problems import Problem
from flmm_plugin.datasets.refer import DATA_ROOT_VARIABLE, data_root
from flmm_plugin.errors import BadAnnotation, BadImage, DataNotFound, UnknownArgument
from flmm_plugin.images import Orientation, image_size
from flmm_plugin.records import BoolMask

#: Pictures per official split.
OFFICIAL_SIZES: Mapping[str, int] = {"train": 239, "val": 200, "test": 779}

#: How pictures are opened: upright, as labelme, which the shapes were drawn with, and the benchmark's own reader do.
ORIENTATION: Orientation = "upright"

_FOLDERS = ("reason_seg/ReasonSeg", "ReasonSeg", "reasonseg")
_TARGET, _IGNORE = 1, 255
_NO_TARGET = "no shape of the target has a pixel in the picture, so that an empty mask is right"
_SOURCE = "LISA's data release (ReasonSeg, linked from https://github.com/dvlab-research/LISA)"


@dataclass(frozen=True)
class ReasonSegItem:
    """One picture with its query.

    Attributes:
        name: Of the pair of files, without suffix.
        image_path: The picture; its size was read, its pixels were not.
        height: Of the picture in pixels.
        width: Likewise.
        query: What is asked for: a sentence or a short phrase.
        is_sentence: Which of the two.
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


class ReasonSegDataset(Sequence[ReasonSegItem]):
    """One split, pictures in the order of their names.

    Args:
        root: Data root; None means ``FLMM_DATA``, or ``data`` if that is not set.
        split: ``val``, ``test`` or ``train``.

    Raises:
        UnknownArgument: Another split.
        DataNotFound: The folder or a picture is missing; the message says where it comes from.
        BadAnnotation: A JSON file is truncated or contradicts itself, or a picture has no readable size.
    """

    def __init__(self, root: str | os.PathLike[str] | None, split: str) -> None:
        if split not in OFFICIAL_SIZES:
            raise UnknownArgument(f"ReasonSeg has the splits {', '.join(OFFICIAL_SIZES)}, not {split!r}")
        self.root, self.split = data_root(root), split
        self.folder = _folder(self.root, split)
        # A folder lists its files in no order; this one makes runs and --limit repeatable.
        self.annotation_paths = tuple(sorted(self.folder.glob("*.json"), key=lambda path: path.stem))
        lonely = sorted({p.stem for p in self.folder.glob("*.jpg")} - {p.stem for p in self.annotation_paths})
        if lonely:
            raise BadAnnotation(
                f"{len(lonely)} pictures in {self.folder} have no JSON beside them, the first is {lonely[0]}.jpg; "
                "unpack the archive again"
            )
        prepared = items_of(
            self.root, f"reasonseg-{split}", (self.folder, *self.annotation_paths), ReasonSegItem, self._read
        )
        self._items: tuple[ReasonSegItem, ...] = prepared.items
        #: Targets without a pixel, which an empty mask would match.
        self.problems: tuple[Problem, ...] = tuple(Problem(*facts) for facts in prepared.extra)

    def _read(self) -> tuple[list[ReasonSegItem], list[Any]]:
        """The pairs of files, and what is odd about them."""
        items = [_item(path) for path in self.annotation_paths]
        return items, [astuple(Problem(_NO_TARGET, item.name)) for item in items if not item.masks()[0].any()]

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: Any) -> Any:
        return self._items[index]

    def __iter__(self) -> Iterator[ReasonSegItem]:
        return iter(self._items)

    @property
    def official_size(self) -> int:
        """How many pictures the released split has."""
        return OFFICIAL_SIZES[self.split]

    @property
    def digest(self) -> str:
        """SHA-256 of all annotation files with their names."""
        whole = hashlib.sha256()
        for path in self.annotation_paths:
            whole.update(path.stem.encode() + hashlib.sha256(path.read_bytes()).digest())
        return whole.hexdigest()


def draw_shapes(
    shapes: Sequence[tuple[str, Sequence[tuple[float, float]]]], height: int, width: int
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Shapes as one map: 1 target, 255 ignored, 0 neither.

    Args:
        shapes: (label, points as (x, y)). A label with "ignore" in it, in any case, is ignored; "flag" is not drawn.
        height: Of the picture.
        width: Of the picture.

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


def read_annotation(path: Path) -> dict[str, Any]:
    """The JSON of one picture, UTF-8 or, as some released files are, cp1252.

    Raises:
        BadAnnotation: Neither, or truncated.
    """
    content = read_json(path, fallback="cp1252")
    if not isinstance(content, dict):
        raise BadAnnotation(f"{path} holds a JSON {type(content).__name__}, not an object; it is no ReasonSeg file")
    return content


def _item(path: Path) -> ReasonSegItem:
    content = read_annotation(path)
    picture = path.with_suffix(".jpg")
    if not picture.is_file():
        raise DataNotFound(f"no picture {picture} beside its JSON; unpack the archive again ({_SOURCE})")
    try:
        height, width = image_size(picture, ORIENTATION)
    except BadImage as exc:
        raise BadAnnotation(f"{picture} has no readable size ({exc}); unpack the archive again") from exc
    try:
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
    except STRANGE as exc:
        raise BadAnnotation(f"{path} lacks a field or has one of another kind ({exc!r}); fetch the file again") from exc


def _shape(shape: Mapping[str, Any]) -> tuple[str, tuple[tuple[float, float], ...]]:
    try:
        points = tuple((coordinate(x), coordinate(y)) for x, y in shape["points"])
    except STRANGE as exc:
        raise ValueError(f"a shape with label {shape['label']!r} has no finite points near a picture: {exc}") from exc
    if not points:
        raise ValueError(f"a shape with label {shape['label']!r} has no finite points")
    if not isinstance(shape["label"], str):
        raise ValueError(f"the label of a shape is a text, not {shape['label']!r}")
    return text_of(shape["label"]), points


def _folder(root: Path, split: str) -> Path:
    candidates = [root / folder / split for folder in _FOLDERS]
    if root.name.lower() == "reasonseg":
        candidates.append(root / split)
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise DataNotFound(
        f"no split {split} of ReasonSeg: looked for {' and '.join(map(str, candidates))}. It comes from {_SOURCE}: "
        f"unpack {split}.zip into {root / 'ReasonSeg'}, or set {DATA_ROOT_VARIABLE} to the folder that already holds it"
    )
