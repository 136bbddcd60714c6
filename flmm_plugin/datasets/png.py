"""Read panoptic narrative grounding (PNG): narratives of COCO pictures whose phrases name regions of a panoptic map.

``png_coco_<split>2017.json`` is a list of ``{image_id, annotator_id, caption, segments: [{utterance, segment_ids,
noun, plural}]}``, ids as text; the utterances joined are the narrative. ``panoptic_<split>2017.json`` with one PNG per
picture says where the segments are: a pixel's segment is R + 256 G + 65536 B. A phrase is an utterance with at least
one segment; its mask is the union of its segments, ``bool[H, W]`` in the image frame.

Found under a root (``FLMM_DATA``, default ``data/``), each part on its own, ``X`` being
``coco``, ``panoptic_narrative_grounding``, ``png`` or nothing::

    narratives     X/annotations/png_coco_val2017.json       X/png_coco_val2017.json
    segments       X/annotations/panoptic_val2017.json       X/panoptic_val2017.json
    panoptic maps  X/annotations/panoptic_val2017/   X/annotations/panoptic_segmentation/val2017/   X/panoptic_val2017/
    pictures       X/val2017/                                X/images/val2017/

Nothing is left out silently: what cannot be used, or looks odd, is a `Problem` in `PngDataset.problems`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flmm_plugin.data.registry import Archive, Part, Pictures
from flmm_plugin.data.root import data_root
from flmm_plugin.datasets.json_files import STRANGE, fields_of, integer, name_of, read_json, size_of, text_of
from flmm_plugin.datasets.problems import Problem
from flmm_plugin.datasets.reader import SplitReader, known_name
from flmm_plugin.datasets.refer import COCO_ADDRESS, COCO_LICENCE
from flmm_plugin.errors import BadAnnotation, BadImage
from flmm_plugin.images import Orientation, open_image
from flmm_plugin.records import BoolMask

Span = tuple[int, int]

SPLITS = ("train", "val")

#: Narratives of the official files, as papers state them (arXiv 2208.05647, section 4.1); nobody states the phrases. A
#: file with fewer is a part of its split, however many of its phrases are scored.
OFFICIAL_NARRATIVES: Mapping[str, int] = {"val": 8380, "train": 133103}

#: How pictures and maps are opened: COCO annotates the pixels as they are stored, whatever the orientation tag says.
ORIENTATION: Orientation = "stored"

_FOLDERS = ("coco/", "panoptic_narrative_grounding/", "png/", "")

#: Page of the benchmark, and the folder of its annotations.
_PAGE = "https://bcv-uniandes.github.io/panoptic-narrative-grounding/"
_ANNOTATIONS = "https://lambda004.uniandes.edu.co/panoptic-narrative-grounding/annotations"

#: COCO's pictures of a split: size and hash of their archive, and how many it has.
_PICTURE_FILES = {
    "val": (815585330, "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05", 5000),
    "train": (19336861798, "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929", 118287),
}


def parts(split: str) -> tuple[Part, Part, Part, Part]:
    """Return what a split needs: narratives, segments, panoptic maps, pictures."""
    year = f"{split}2017"
    size, digest, count = _PICTURE_FILES[split]

    narratives = Part(
        f"narratives of {year}",
        _places(f"annotations/png_coco_{year}.json", f"png_coco_{year}.json"),
        "as its page says (research use)",
        Archive((f"{_ANNOTATIONS}/png_coco_{year}.json",), file=f"coco/annotations/png_coco_{year}.json"),
        how=f"download png_coco_{year}.json from {_PAGE} into coco/annotations",
        splits=(split,),
    )
    panoptic = Archive(
        (f"{COCO_ADDRESS}/annotations/panoptic_annotations_trainval2017.zip",),
        860725834,
        "c05f76d2129b6b561eb70efe16e7006df62f73fb92889132d373b9d90e31a370",
        into="coco",
        inner={f"annotations/panoptic_{year}.zip": "coco/annotations"},
    )
    segments = Part(
        f"panoptic segments of COCO {year}",
        _places(f"annotations/panoptic_{year}.json", f"panoptic_{year}.json"),
        "CC BY 4.0",
        panoptic,
        splits=(split,),
    )
    maps = Part(
        f"panoptic maps of COCO {year}",
        _places(f"annotations/panoptic_{year}", f"annotations/panoptic_segmentation/{year}", f"panoptic_{year}"),
        "CC BY 4.0",
        panoptic,
        splits=(split,),
    )
    pictures = Part(
        f"pictures of COCO {year}",
        _places(year, f"images/{year}"),
        COCO_LICENCE,
        Pictures(
            f"{COCO_ADDRESS}/{year}/{{name}}",
            Archive((f"{COCO_ADDRESS}/zips/{year}.zip",), size, digest, into="coco"),
            count=count,
            used=count,
        ),
        splits=(split,),
    )
    return narratives, segments, maps, pictures


def _places(*patterns: str) -> tuple[str, ...]:
    return tuple(folder + pattern for folder in _FOLDERS for pattern in patterns)


@dataclass(frozen=True)
class PngPhrase:
    """One phrase of a narrative that names segments.

    Attributes:
        piece: Index of its utterance in the narrative.
        text: The utterance, as it stands in the narrative.
        span: Its characters ``[start, end)`` in the narrative.
        segment_ids: Of the panoptic map, at least one.
        things: Per segment whether its category is a thing (else it is stuff).
        plural: The annotators' flag, True for several things.
    """

    piece: int
    text: str
    span: Span
    segment_ids: tuple[int, ...]
    things: tuple[bool, ...]
    plural: bool


@dataclass(frozen=True)
class Narrative:
    """One picture as one annotator described it.

    Attributes:
        index: Place in the annotation file.
        image_id: COCO's id of the picture.
        annotator_id: Id of the person who described it.
        image_path: The picture; not opened, so it may be missing or damaged.
        map_path: File of the panoptic map; it exists.
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
    """One picture of the panoptic annotation."""

    map_name: str
    height: int
    width: int
    things: Mapping[int, bool]  # segment id -> whether its category is a thing


class PngDataset(SplitReader[Narrative]):
    """The narratives of a split with at least one phrase that names a segment.

    Args:
        root: Data root; None means ``FLMM_DATA``, or ``data`` if that is not set.
        split: Name of the split: ``train`` or ``val``.
        need_pictures: Whether the folder of the pictures must be there.

    Attributes:
        in_file: Narratives in the file, usable or not.

    Raises:
        UnknownArgument: No such split.
        DataNotFound: A file or folder is missing; the message says which and how to get it.
        BadAnnotation: A file is truncated, of another encoding, or of another form; or no narrative can be used.
    """

    def __init__(
        self, root: str | os.PathLike[str] | None = None, split: str = "val", *, need_pictures: bool = True
    ) -> None:
        self.split = known_name("split of PNG", split, SPLITS)
        folder = data_root(root)
        *needed, pictures = parts(split)
        self.narratives_path, self.panoptic_path, maps = (part.path(folder, "png") for part in needed)
        shown = pictures.path(folder, "png") if need_pictures else pictures.place(folder)
        self.map_folder, self.picture_folder = _unnested(maps), _unnested(shown)
        annotations = (self.narratives_path, self.panoptic_path)
        super().__init__(
            folder, f"png-{split}", Narrative, annotations, (self.map_folder,), places=(self.picture_folder,)
        )
        self.in_file: int = self.facts["in_file"]
        self._map: tuple[Path, npt.NDArray[np.int64]] | None = None

    def _read(self, problems: list[Problem]) -> tuple[list[Narrative], dict[str, Any]]:
        pictures = _read_panoptic(self.panoptic_path, problems)
        listed = read_json(self.narratives_path)
        if not isinstance(listed, list):
            raise BadAnnotation(f"{self.narratives_path} holds a {type(listed).__name__}, not a list of narratives")
        narratives = list(self._narratives(listed, pictures, problems))
        if listed and not narratives:
            raise BadAnnotation(
                f"no narrative of {self.narratives_path} can be used with {self.panoptic_path} and {self.map_folder} "
                f"(first: {problems[0]}); the files must be of the same split and release"
            )
        return narratives, {"in_file": len(listed)}

    def _narratives(
        self, listed: Sequence[Any], pictures: Mapping[int, _Panoptic], problems: list[Problem]
    ) -> Iterator[Narrative]:
        """Yield the narratives that can be used; why the others cannot be is added to `problems`."""
        with os.scandir(self.map_folder) as entries:  # one listing is far quicker than thousands of questions
            maps = frozenset(entry.name for entry in entries)
        seen: set[tuple[int, str, tuple[str, ...]]] = set()
        for index, one in enumerate(listed):
            try:
                image_id, annotator = integer(one["image_id"]), name_of(one.get("annotator_id", ""))
                utterances = tuple(text_of(segment["utterance"]) for segment in one["segments"])
                ids = [[integer(number) for number in segment["segment_ids"]] for segment in one["segments"]]
                plural = [_flag(segment.get("plural", False)) for segment in one["segments"]]
            except STRANGE as exc:
                problems.append(Problem("a field is missing or strange", f"narrative {index} ({exc!r})"))
                continue
            where = f"narrative {index} (image {image_id})"
            if (image_id, annotator, utterances) in seen:
                problems.append(Problem("listed twice, word by word; both count", where))
            seen.add((image_id, annotator, utterances))
            asked = sum(map(bool, ids))
            picture = pictures.get(image_id)
            if not asked:
                problems.append(Problem("no phrase names a segment", where))
            elif picture is None:
                problems.append(Problem("picture is not in the panoptic annotation", where, asked))
            elif picture.map_name not in maps:
                problems.append(Problem(f"no panoptic map in {self.map_folder.name}", where, asked))
            else:
                phrases = tuple(_phrases(where, utterances, ids, plural, picture, problems))
                if not phrases:
                    problems.append(Problem("no phrase is left", where))
                    continue
                yield Narrative(
                    index=index,
                    image_id=image_id,
                    annotator_id=annotator,
                    image_path=self.picture_folder / f"{image_id:012d}.jpg",
                    map_path=self.map_folder / picture.map_name,
                    height=picture.height,
                    width=picture.width,
                    utterances=utterances,
                    phrases=phrases,
                )

    @property
    def source(self) -> str:
        """The annotation file, and how much of the official one it is."""
        return f"{self.narratives_path}: {self.in_file} narratives, officially {OFFICIAL_NARRATIVES[self.split]}"

    @property
    def phrases(self) -> int:
        """Phrases of all usable narratives."""
        return sum(len(narrative.phrases) for narrative in self)

    def masks(self, narrative: Narrative) -> list[BoolMask]:
        """Return the target of each phrase, ``bool[H, W]`` in the image frame.

        Raises:
            BadAnnotation: The panoptic map is damaged, of another size than its annotation says, or lacks a segment.
        """
        if self._map is None or self._map[0] != narrative.map_path:
            # One narrative after the other is often of the same picture.
            size = (narrative.height, narrative.width)
            self._map = (narrative.map_path, read_panoptic_map(narrative.map_path, size))
        return phrase_masks(self._map[1], [phrase.segment_ids for phrase in narrative.phrases], narrative.map_path)


def read_panoptic_map(path: str | os.PathLike[str], size: tuple[int, int]) -> npt.NDArray[np.int64]:
    """Read the segment of every pixel, ``[H, W]`` in the image frame.

    Args:
        path: File of a panoptic map, a PNG as COCO writes it.
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
    """Return the union of some segments of a panoptic map, ``bool[H, W]``.

    >>> phrase_mask(np.array([[1, 2], [3, 2]]), [1, 3])
    array([[ True, False],
           [ True, False]])
    """
    return np.isin(segments, list(segment_ids))


def phrase_masks(
    segments: npt.NDArray[np.int64], phrases: Sequence[Sequence[int]], path: str | os.PathLike[str]
) -> list[BoolMask]:
    """Return the `phrase_mask` of several phrases of one map.

    Args:
        segments: Segment of each pixel of the map, ``[H, W]``.
        phrases: The segments of each phrase.
        path: The map's file, for messages.

    Raises:
        BadAnnotation: A segment has no pixel: nothing, or too little, would be the target.
    """
    for number in dict.fromkeys(number for phrase in phrases for number in phrase):
        if not (segments == number).any():
            raise BadAnnotation(f"panoptic map {path} has no pixel of segment {number}; take files of one release")
    return [phrase_mask(segments, phrase) for phrase in phrases]


def _phrases(
    where: str,
    utterances: Sequence[str],
    segment_ids: Sequence[Sequence[int]],
    plural: Sequence[bool],
    picture: _Panoptic,
    problems: list[Problem],
) -> Iterator[PngPhrase]:
    """Yield the phrases of one narrative that can be used."""
    end = 0
    for piece, (text, segments) in enumerate(zip(utterances, segment_ids, strict=True)):
        start = end
        end += len(text)
        place = f"{where}, phrase {text!r}"
        if not segments:
            continue
        if not text.strip():
            problems.append(Problem("names a segment and has no words", place, 1))
            continue
        known = [number for number in dict.fromkeys(segments) if number in picture.things]
        for number in segments:
            if number not in picture.things:
                problems.append(
                    Problem("segment is not in the panoptic annotation", f"{place}, segment {number}", int(not known))
                )
        if len(known) > 1 and not plural[piece]:
            problems.append(Problem("singular phrase with several segments", place))
        if known:
            things = tuple(picture.things[number] for number in known)
            yield PngPhrase(piece, text, (start, end), tuple(known), things, plural[piece])


def _read_panoptic(path: Path, problems: list[Problem]) -> dict[int, _Panoptic]:
    """Return every picture that the panoptic annotation has, by id."""
    content = read_json(path)
    pictures: dict[int, _Panoptic] = {}
    with fields_of(f"{path} is not a COCO panoptic annotation: it", "fetch it again"):
        is_thing = {integer(one["id"]): _flag(one["isthing"]) for one in content["categories"]}
        sizes = {integer(one["id"]): size_of(one) for one in content["images"]}
        for one in content["annotations"]:
            image_id = integer(one["image_id"])
            if image_id in pictures:
                problems.append(Problem("picture is annotated twice, the first time counts", f"image {image_id}"))
                continue
            things: dict[int, bool] = {}
            for segment in one["segments_info"]:
                number = integer(segment["id"])
                if number in things:
                    place = f"image {image_id}, {number}"
                    problems.append(Problem("segment is listed twice, the first time counts", place))
                    continue
                things[number] = is_thing[integer(segment["category_id"])]
            pictures[image_id] = _Panoptic(text_of(one["file_name"]), *sizes[image_id], things)
    return pictures


def _flag(value: Any) -> bool:
    if value not in (True, False):  # also 1 and 0, as COCO has them
        raise ValueError(f"{value!r} is neither true nor false")
    return bool(value)


def _unnested(folder: Path) -> Path:
    """Return the folder of the same name inside, where there is one: so COCO's own archive of archives unpacks."""
    inner = folder / folder.name
    return inner if inner.is_dir() else folder
