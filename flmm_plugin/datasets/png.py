"""Panoptic narrative grounding (PNG): narratives of COCO pictures whose phrases name regions of a panoptic map.

``png_coco_<split>2017.json`` is a list of ``{image_id, annotator_id, caption, segments: [{utterance, segment_ids,
noun, plural}]}``, ids as text; the utterances joined are the narrative. ``panoptic_<split>2017.json`` with one PNG per
picture says where the segments are: a pixel's segment is R + 256 G + 65536 B. A phrase is an utterance with at least
one segment; its mask is the union of its segments, ``bool[H, W]`` in the image frame.

Found under a root (``FLMM_DATA``, default ``data/``), each part on its own, ``X`` being
``panoptic_narrative_grounding``, ``coco``, ``png`` or nothing::

    narratives     X/annotations/png_coco_val2017.json       X/png_coco_val2017.json
    segments       X/annotations/panoptic_val2017.json       X/panoptic_val2017.json
    panoptic maps  X/annotations/panoptic_segmentation/val2017/   X/annotations/panoptic_val2017/   X/panoptic_val2017/
    pictures       X/images/val2017/                         X/val2017/

Nothing is left out silently: what cannot be used, or looks odd, is a `Problem` in `PngDataset.problems`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flmm_plugin.datasets.json_files import STRANGE, name_of, read_json, size_of, text_of, whole
from flmm_plugin.datasets.prepared import items_of
from flmm_plugin.datasets.problems import Problem, counted
from flmm_plugin.datasets.refer import DATA_ROOT_VARIABLE, data_root
from flmm_plugin.errors import BadAnnotation, BadImage, DataNotFound, UnknownArgument
from flmm_plugin.images import Orientation, open_image
from flmm_plugin.records import BoolMask

Span = tuple[int, int]

SPLITS = ("train", "val")

#: How pictures and maps are opened: COCO annotates the pixels as they are stored, whatever the orientation tag says.
ORIENTATION: Orientation = "stored"

_HOMES = ("panoptic_narrative_grounding", "coco", "png", ".")
_FILES = ("{home}/annotations/{name}", "{home}/{name}")
_MAPS = (
    "{home}/annotations/panoptic_segmentation/{year}",
    "{home}/annotations/panoptic_{year}",
    "{home}/panoptic_{year}",
)
_PICTURES = ("{home}/images/{year}", "{home}/{year}")


@dataclass(frozen=True)
class PngPhrase:
    """One phrase of a narrative that names segments.

    Attributes:
        piece: Index of its utterance.
        text: The utterance, as it stands in the narrative.
        span: Its characters ``[start, end)`` in the narrative.
        segment_ids: Of the panoptic map, at least one.
        things: Per segment whether its category is a thing (else it is stuff).
        plural: The annotators' flag.
    """

    piece: int
    text: str
    span: Span
    segment_ids: tuple[int, ...]
    things: tuple[bool, ...]
    plural: bool


@dataclass(frozen=True)
class Narrative:
    """One picture as one annotator told it.

    Attributes:
        index: Place in the annotation file.
        image_id: COCO's id of the picture.
        annotator_id: Who told it.
        image_path: The picture; not opened, so it may be missing or damaged.
        map_path: The panoptic map; exists.
        height, width: In pixels, as the panoptic annotation states them.
        utterances: All pieces of the narrative, in order.
        phrases: Those that name segments, at least one.
    """

    index: int
    image_id: int
    annotator_id: str
    image_path: Path
    map_path: Path
    height: int
    width: int
    utterances: tuple[str, ...]
    phrases: tuple[PngPhrase, ...]

    @property
    def text(self) -> str:
        """The utterances, joined as they are."""
        return "".join(self.utterances)


@dataclass(frozen=True)
class _Panoptic:
    """What the panoptic annotation says of one picture."""

    map_name: str
    height: int
    width: int
    things: Mapping[int, bool]  # segment id -> whether its category is a thing


@dataclass
class _Reading:
    """The narratives that can be used so far, and the problems met on the way."""

    narratives: list[Narrative] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    seen: set[tuple[int, str, tuple[str, ...]]] = field(default_factory=set)

    def note(self, kind: str, where: str, dropped: int = 0) -> None:
        self.problems.append(Problem(kind, where, dropped))


class PngDataset(Sequence[Narrative]):
    """The narratives of a split with at least one phrase that names a segment, in file order.

    Args:
        root: Data root; None means ``FLMM_DATA``, or ``data`` if that is not set.
        split: ``train`` or ``val``.

    Raises:
        UnknownArgument: No such split.
        DataNotFound: A file or folder is missing; the message says which and how to get it.
        BadAnnotation: A file is truncated, of another encoding, or of another form.
    """

    def __init__(self, root: str | os.PathLike[str] | None = None, split: str = "val") -> None:
        if split not in SPLITS:
            raise UnknownArgument(f"no split {split!r} of PNG; known: {', '.join(SPLITS)}")
        self.root, self.split = data_root(root), split
        year = f"{split}2017"
        self.narratives_path = _find(self.root, _FILES, Path.is_file, name=f"png_coco_{year}.json")
        self.panoptic_path = _find(self.root, _FILES, Path.is_file, name=f"panoptic_{year}.json")
        self.map_folder = _find(self.root, _MAPS, Path.is_dir, year=year)
        self.picture_folder = _find(self.root, _PICTURES, Path.is_dir, year=year)
        sources = (self.narratives_path, self.panoptic_path, self.map_folder, self.picture_folder)
        prepared = items_of(self.root, f"png-{split}", sources, Narrative, self._read)
        self._narratives: tuple[Narrative, ...] = prepared.items
        #: Narratives in the file, usable or not.
        self.told: int = prepared.extra["told"]
        #: Everything that was left out or looks odd.
        self.problems: tuple[Problem, ...] = tuple(Problem(*facts) for facts in prepared.extra["problems"])
        self._map: tuple[Path, npt.NDArray[np.int64]] | None = None

    def _read(self) -> tuple[list[Narrative], dict[str, Any]]:
        """The official files: narratives that can be used, how many were told, and what was odd."""
        reading = _Reading()
        pictures = _read_panoptic(self.panoptic_path, reading)
        told = read_json(self.narratives_path)
        if not isinstance(told, list):
            raise BadAnnotation(f"{self.narratives_path} holds a {type(told).__name__}, not a list of narratives")
        maps = _names(self.map_folder)
        for index, one in enumerate(told):
            self._add(index, one, pictures, maps, reading)
        if not reading.narratives:
            first = reading.problems[0] if reading.problems else "the list is empty"
            raise BadAnnotation(
                f"no narrative of {self.narratives_path} can be used with {self.panoptic_path} and {self.map_folder} "
                f"(first: {first}); the files must be of the same split and release"
            )
        return reading.narratives, {"told": len(told), "problems": [astuple(one) for one in reading.problems]}

    def __len__(self) -> int:
        return len(self._narratives)

    def __getitem__(self, index: Any) -> Any:
        return self._narratives[index]

    def __iter__(self) -> Iterator[Narrative]:
        return iter(self._narratives)

    @property
    def phrases(self) -> int:
        """Phrases of all usable narratives."""
        return sum(len(narrative.phrases) for narrative in self)

    @property
    def problem_counts(self) -> dict[str, int]:
        """How many problems there are of each kind."""
        return counted(self.problems)

    @property
    def digest(self) -> str:
        """SHA-256 of both annotation files: tells two data roots apart that hold the same split."""
        both = hashlib.sha256()
        for path in (self.narratives_path, self.panoptic_path):
            both.update(hashlib.sha256(path.read_bytes()).digest())
        return both.hexdigest()

    def masks(self, narrative: Narrative) -> list[BoolMask]:
        """The target of each phrase, ``bool[H, W]`` in the image frame.

        Raises:
            BadAnnotation: The panoptic map is damaged, of another size than its annotation says, or lacks a segment.
        """
        if self._map is None or self._map[0] != narrative.map_path:
            # One narrative after the other is often of the same picture.
            size = (narrative.height, narrative.width)
            self._map = (narrative.map_path, read_panoptic_map(narrative.map_path, size))
        return phrase_masks(self._map[1], [phrase.segment_ids for phrase in narrative.phrases], narrative.map_path)

    def _add(
        self, index: int, one: Any, pictures: Mapping[int, _Panoptic], maps: frozenset[str], reading: _Reading
    ) -> None:
        try:
            image_id, annotator = whole(one["image_id"]), name_of(one.get("annotator_id", ""))
            utterances = tuple(text_of(segment["utterance"]) for segment in one["segments"])
            ids = [[whole(number) for number in segment["segment_ids"]] for segment in one["segments"]]
            plural = [_flag(segment.get("plural", False)) for segment in one["segments"]]
        except STRANGE as exc:
            return reading.note("a field is missing or strange", f"narrative {index} ({exc!r})")
        where, asked = f"narrative {index} (image {image_id})", sum(map(bool, ids))
        picture = pictures.get(image_id)
        told = (image_id, annotator, utterances)
        if told in reading.seen:
            reading.note("told twice, word by word; both count", where)
        reading.seen.add(told)
        if not asked:
            return reading.note("no phrase names a segment", where)
        if picture is None:
            return reading.note("picture is not in the panoptic annotation", where, asked)
        if picture.map_name not in maps:
            return reading.note(f"no panoptic map in {self.map_folder.name}", where, asked)
        phrases: list[PngPhrase] = []
        end = 0
        for piece, (text, segments) in enumerate(zip(utterances, ids, strict=True)):
            start, end = end, end + len(text)
            if segments:
                asked_here = f"{where}, phrase {text!r}"
                phrases += _phrase(asked_here, piece, text, (start, end), segments, plural[piece], picture, reading)
        if not phrases:
            return reading.note("no phrase is left", where)
        image_path = self.picture_folder / f"{image_id:012d}.jpg"
        reading.narratives.append(
            Narrative(
                index,
                image_id,
                annotator,
                image_path,
                self.map_folder / picture.map_name,
                picture.height,
                picture.width,
                utterances,
                tuple(phrases),
            )
        )


def read_panoptic_map(path: str | os.PathLike[str], size: tuple[int, int]) -> npt.NDArray[np.int64]:
    """The segment of every pixel, ``[H, W]`` in the image frame.

    Args:
        path: A COCO panoptic PNG.
        size: ``(H, W)`` that the annotation states.

    Raises:
        BadAnnotation: It is missing or damaged, or of another size.
    """
    try:
        colors = np.asarray(open_image(path, ORIENTATION), dtype=np.int64)
    except BadImage as exc:
        raise BadAnnotation(f"panoptic map: {exc}") from exc
    if colors.shape[:2] != size:
        raise BadAnnotation(
            f"panoptic map {path} is {colors.shape[0]} x {colors.shape[1]}, its annotation says {size[0]} x {size[1]} "
            "(height x width); both must be of the same release"
        )
    segments: npt.NDArray[np.int64] = colors @ np.array([1, 256, 65536])
    return segments


def phrase_mask(segments: npt.NDArray[np.int64], segment_ids: Sequence[int]) -> BoolMask:
    """The union of some segments of a panoptic map, ``bool[H, W]``.

    >>> phrase_mask(np.array([[1, 2], [3, 2]]), [1, 3])
    array([[ True, False],
           [ True, False]])
    """
    return np.isin(segments, list(segment_ids))


def phrase_masks(
    segments: npt.NDArray[np.int64], phrases: Sequence[Sequence[int]], path: str | os.PathLike[str]
) -> list[BoolMask]:
    """`phrase_mask` of several phrases of one map.

    Args:
        segments: The map, ``[H, W]``.
        phrases: The segments of each phrase.
        path: The map's file, for messages.

    Raises:
        BadAnnotation: A segment has no pixel: nothing, or too little, would be the target.
    """
    for number in dict.fromkeys(number for phrase in phrases for number in phrase):
        if not (segments == number).any():
            raise BadAnnotation(f"panoptic map {path} has no pixel of segment {number}; take files of one release")
    return [phrase_mask(segments, phrase) for phrase in phrases]


def _phrase(
    where: str,
    piece: int,
    text: str,
    span: Span,
    segments: list[int],
    plural: bool,
    picture: _Panoptic,
    reading: _Reading,
) -> list[PngPhrase]:
    """The phrase as a list of one, or of none if it cannot be used."""
    if not text.strip():
        reading.note("names a segment and has no words", where, 1)
        return []
    known = [number for number in dict.fromkeys(segments) if number in picture.things]
    for number in segments:
        if number not in picture.things:
            reading.note("segment is not in the panoptic annotation", f"{where}, segment {number}", int(not known))
    if not known:
        return []
    if len(known) > 1 and not plural:
        reading.note("singular phrase with several segments", where)
    things = tuple(picture.things[number] for number in known)
    return [PngPhrase(piece, text, span, tuple(known), things, plural)]


def _read_panoptic(path: Path, reading: _Reading) -> dict[int, _Panoptic]:
    """Every picture that the panoptic annotation has, by id."""
    content = read_json(path)
    try:
        is_thing = {whole(one["id"]): _flag(one["isthing"]) for one in content["categories"]}
        sizes = {whole(one["id"]): size_of(one) for one in content["images"]}
        pictures: dict[int, _Panoptic] = {}
        for one in content["annotations"]:
            image_id = whole(one["image_id"])
            if image_id in pictures:
                reading.note("picture is annotated twice, the first time counts", f"image {image_id}")
                continue
            things: dict[int, bool] = {}
            for segment in one["segments_info"]:
                number = whole(segment["id"])
                if number in things:
                    reading.note("segment is listed twice, the first time counts", f"image {image_id}, {number}")
                    continue
                things[number] = is_thing[whole(segment["category_id"])]
            pictures[image_id] = _Panoptic(text_of(one["file_name"]), *sizes[image_id], things)
    except STRANGE as exc:
        raise BadAnnotation(f"{path} is not a COCO panoptic annotation ({exc!r}); fetch it again") from exc
    return pictures


def _flag(value: Any) -> bool:
    if value not in (True, False):  # also 1 and 0, as COCO has them
        raise ValueError(f"{value!r} is neither true nor false")
    return bool(value)


def _names(folder: Path) -> frozenset[str]:
    """File names in a folder: one listing is far quicker than thousands of questions."""
    with os.scandir(folder) as entries:
        return frozenset(entry.name for entry in entries)


def _find(root: Path, patterns: Sequence[str], exists: Callable[[Path], bool], name: str = "", year: str = "") -> Path:
    candidates = [root / pattern.format(home=home, name=name, year=year) for home in _HOMES for pattern in patterns]
    for path in candidates:
        # COCO's own archive has a folder of maps beside, and one inside, one of the same name.
        inner = path / path.name
        if exists(path):
            return inner if path.is_dir() and inner.is_dir() else path
    looked = ", ".join(str(path) for path in candidates)
    raise DataNotFound(f"no {name or year} of panoptic narrative grounding: looked for {looked}. {_how_to_get(root)}")


def _how_to_get(root: Path) -> str:
    return (
        "Narratives are on the PNG project's page (https://bcv-uniandes.github.io/panoptic-narrative-grounding), the "
        "panoptic annotation is http://images.cocodataset.org/annotations/panoptic_annotations_trainval2017.zip "
        "(821 MB), the pictures are http://images.cocodataset.org/zips/val2017.zip (1 GB) and train2017.zip (18 GB); "
        f"put them under '{root / 'coco'}' as listed in flmm_plugin/datasets/png.py, or set {DATA_ROOT_VARIABLE} to "
        "the folder that already holds them"
    )
