"""The Visual-CoT benchmark: questions about pictures, their answers, and the region that holds the answer.

A set is ``benchmark/<set>.json``, a list of records ``{"dataset", "split", "question_id", "image": [path, path +
"###[x0, y0, x1, y1]"], "conversations": [asked, box as text, "<image>", answer]}``; beside it lies
``benchmark_det/<set>.jsonl`` with the pictures' sizes and the same boxes with their fractions, which records cut off.

The benchmark's evaluator reads boxes from ``benchmark_det``, and so does this reader where that file has the box; else
it takes the whole numbers, and `VisCotItem.box_from` says so. The two differ by less than a pixel in all official sets.
In textcap, textvqa, infographicsvqa, openimages and vsr that matters: the IoU of the two is 0.93 to 0.996 in the mean
and down to 0.53 for small boxes.

Boxes are pixels of the original picture in both files, and text relative to the *square-padded* picture in the
conversation: `to_padded_square` is that change of frame. 8 boxes of the official docvqa file have x1 < x0 or y1 < y0;
such a record keeps its question, and `VisCotDataset.reversed_boxes` lists it.

Layouts found under a root (``FLMM_DATA``, default ``data/``)::

    <root>/viscot/benchmark/...             <root>/viscot/cot/docvqa/...
    <root>/viscot_benchmark/benchmark/...   <root>/cot/docvqa/...                  the official repository
    <root>/Visual-CoT/viscot_benchmark/...  <root>/Visual-CoT/playground/data/...  a clone of it
    <root>/benchmark/...                    <root>/images/docvqa/...               the released evaluation's copies
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from flmm_plugin.datasets.json_files import STRANGE, coordinate, parsed_json, size_of, text_of, whole
from flmm_plugin.datasets.prepared import items_of
from flmm_plugin.datasets.refer import DATA_ROOT_VARIABLE, data_root
from flmm_plugin.errors import BadAnnotation, DataNotFound, UnknownArgument
from flmm_plugin.images import Orientation
from flmm_plugin.nearest import did_you_mean
from flmm_plugin.records import Box

#: How pictures are opened: as they are stored, as the benchmark's own evaluation does with Pillow.
ORIENTATION: Orientation = "stored"

#: Sets of the paper's table 4, in its order.
TABLE_SETS = ("docvqa", "textcap", "textvqa", "dude", "sroie", "infographicsvqa")


class SetSize(NamedTuple):
    """Records and distinct pictures of an official set."""

    records: int
    images: int


#: Counted from the official files.
OFFICIAL_SIZES: Mapping[str, SetSize] = {
    "docvqa": SetSize(888, 617),
    "textcap": SetSize(853, 755),
    "textvqa": SetSize(526, 496),
    "dude": SetSize(603, 492),
    "sroie": SetSize(686, 322),
    "infographicsvqa": SetSize(360, 216),
    "flickr30k": SetSize(1546, 1255),
    "gqa": SetSize(978, 938),
    "openimages": SetSize(945, 889),
    "vsr": SetSize(404, 327),
    "cub": SetSize(492, 485),
}

#: Names that papers use for the sets' files.
ALIASES = {"textcaps": "textcap", "infographics": "infographicsvqa", "infovqa": "infographicsvqa"}

ASK_FOR_BOX = " Please provide the bounding box coordinate of the region that can help you answer the question better."

_BENCHMARK_FOLDERS = ("viscot", "viscot_benchmark", "Visual-CoT/viscot_benchmark", "viscot/viscot_benchmark", ".")
_PICTURE_FOLDERS = ("viscot", ".", "Visual-CoT/playground/data", "playground/data", "viscot/playground/data")
# Copies of the benchmark disagree on the endings of pictures that are otherwise the same.
_ENDINGS = (".jpg", ".jpeg", ".png")
_WITH_BOX = re.compile(r"^(?P<path>.*)###\[(?P<box>[^\]]*)\]$", re.DOTALL)


@dataclass(frozen=True)
class VisCotItem:
    """One question.

    Attributes:
        question_id: As in the file; not contiguous.
        image_path: The picture's file; not opened, so it may be missing or damaged.
        question: Without the request for a box.
        answer: The one reference answer.
        box: Region that holds the answer: ``(x0, y0, x1, y1)`` pixels of the original picture, as written, which may
            be reversed.
        box_from: ``benchmark_det``; or ``benchmark``, whose boxes are cut to whole numbers, where the former has none
            or another one.
        size: ``(H, W)`` of the picture, where ``benchmark_det`` states it.
        split: As in the file.
    """

    question_id: int
    image_path: Path
    question: str
    answer: str
    box: Box
    box_from: str
    size: tuple[int, int] | None
    split: str


@dataclass(frozen=True)
class _Record:
    """A record as its file has it: `VisCotItem` with the picture's path as written."""

    question_id: int
    picture: str
    question: str
    answer: str
    box: Box
    box_from: str
    size: tuple[int, int] | None
    split: str

    def shown_by(self, path: Path) -> VisCotItem:
        """The question, about the picture in that file."""
        facts = {name: value for name, value in vars(self).items() if name != "picture"}
        return VisCotItem(image_path=path, **facts)


class VisCotDataset(Sequence[VisCotItem]):
    """The records of one set, in file order.

    Args:
        root: Data root; None means ``FLMM_DATA``, or ``data`` if that is not set.
        name: A set of `OFFICIAL_SIZES`, or an alias.

    Raises:
        UnknownArgument: No such set; the nearest one is offered.
        DataNotFound: The file is missing; the message says where it comes from.
        BadAnnotation: It is truncated, or a record of it is not of this form, or an id occurs twice.
    """

    def __init__(self, root: str | PathLike[str] | None, name: str) -> None:
        self.root = data_root(root)
        self.name = known_set(name)
        self.path = _benchmark_file(self.root, self.name)
        content = self.path.read_bytes()
        self.digest = hashlib.sha256(content).hexdigest()
        regions = self.path.parent.parent / "benchmark_det" / f"{self.name}.jsonl"
        sources = (self.path, regions) if regions.is_file() else (self.path,)

        def read() -> tuple[Iterator[_Record], None]:
            found = _regions(regions) if regions.is_file() else {}
            return _records(_json(content, self.path), found, self.path), None

        records: tuple[_Record, ...] = items_of(self.root, f"viscot-{self.name}", sources, _Record, read).items
        # Pictures are looked for in every run: they may come later than annotations, and under another ending.
        pictures = _Pictures([self.root / folder for folder in _PICTURE_FOLDERS])
        self._items = tuple(record.shown_by(pictures.find(record.picture)) for record in records)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: Any) -> Any:
        return self._items[index]

    def __iter__(self) -> Iterator[VisCotItem]:
        return iter(self._items)

    @property
    def official_size(self) -> SetSize:
        """The set's official size."""
        return OFFICIAL_SIZES[self.name]

    @property
    def boxes_from(self) -> dict[str, int]:
        """How many boxes are from which file."""
        return dict(Counter(item.box_from for item in self._items))

    @property
    def reversed_boxes(self) -> tuple[int, ...]:
        """Question ids whose box encloses nothing."""
        return tuple(item.question_id for item in self._items if not encloses(item.box))


def encloses(box: Box) -> bool:
    """Whether a box ``(x0, y0, x1, y1)`` has an inside."""
    return box[0] < box[2] and box[1] < box[3]


def to_padded_square(box: Box, size: tuple[int, int]) -> Box:
    """Pixels of a picture as fractions of the picture padded to a square, the conversations' frame.

    Args:
        box: ``(x0, y0, x1, y1)`` pixels.
        size: ``(H, W)`` of the picture.

    >>> to_padded_square((0.0, 0.0, 100.0, 50.0), (50, 100))
    (0.0, 0.25, 1.0, 0.75)
    """
    height, width = size
    side = max(height, width)
    left, top = (side - width) // 2, (side - height) // 2
    return (box[0] + left) / side, (box[1] + top) / side, (box[2] + left) / side, (box[3] + top) / side


def from_padded_square(box: Box, size: tuple[int, int]) -> Box:
    """Inverse of `to_padded_square`.

    >>> from_padded_square((0.0, 0.25, 1.0, 0.75), (50, 100))
    (0.0, 0.0, 100.0, 50.0)
    """
    height, width = size
    side = max(height, width)
    left, top = (side - width) // 2, (side - height) // 2
    return box[0] * side - left, box[1] * side - top, box[2] * side - left, box[3] * side - top


def known_set(name: str) -> str:
    """The file name of a set.

    Raises:
        UnknownArgument: No such set.
    """
    found = ALIASES.get(name.lower(), name.lower())
    if found in OFFICIAL_SIZES:
        return found
    hint = did_you_mean(found, [*OFFICIAL_SIZES, *ALIASES]) or "."
    raise UnknownArgument(f"no set {name!r} of the Visual-CoT benchmark{hint} Known: {', '.join(OFFICIAL_SIZES)}")


def _benchmark_file(root: Path, name: str) -> Path:
    tried = [root / folder / "benchmark" / f"{name}.json" for folder in _BENCHMARK_FOLDERS]
    for path in tried:
        if path.is_file():
            return path
    raise DataNotFound(
        f"no annotations of the Visual-CoT set {name}: looked for {' and '.join(map(str, tried[:2]))}. Get them with: "
        f"flmm data download viscot --root '{root}'; or set {DATA_ROOT_VARIABLE} to the folder that already holds them"
    )


def _json(content: bytes, path: Path) -> list[Any]:
    records = parsed_json(content, f"{path}")
    if not isinstance(records, list):
        raise BadAnnotation(f"{path} is a JSON {type(records).__name__}, not a list of records; fetch it again")
    if not records:
        raise BadAnnotation(f"{path} has no records; fetch it again")
    return records


class _Region(NamedTuple):
    """What a line of ``benchmark_det`` says: (H, W) of the picture, and the box."""

    size: tuple[int, int]
    box: Box


def _regions(path: Path) -> dict[int, _Region]:
    """The lines of ``benchmark_det`` by question id."""
    found: dict[int, _Region] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        record = parsed_json(line, f"line {number} of {path}")
        try:
            question, region = whole(record["question_id"]), _Region(size_of(record), _box(record["bbox"]))
        except STRANGE as exc:
            raise BadAnnotation(
                f"line {number} of {path} lacks a field or has one of another kind ({exc!r}); fetch it again"
            ) from exc
        if found.setdefault(question, region) != region:
            raise BadAnnotation(
                f"line {number} of {path}: question_id {question} has another box above; fetch it again"
            )
    return found


def _box(numbers: Any) -> Box:
    """Four finite numbers.

    Raises:
        ValueError, TypeError: Others.
    """
    if not isinstance(numbers, list):
        raise TypeError(f"a box that is {type(numbers).__name__}")
    x0, y0, x1, y1 = map(coordinate, numbers)
    return x0, y0, x1, y1


class _Pictures:
    """Finds the file of a record's picture; folders are listed once, not asked once per record."""

    def __init__(self, folders: Iterable[Path]) -> None:
        self._folders = list(folders)
        self._listed: dict[str, list[tuple[Path, frozenset[str]]]] = {}

    def find(self, written: str) -> Path:
        """The file of the path in a record, under any known layout and ending; the first guess if there is none.

        Raises:
            BadAnnotation: A path that leads out of the data folder.
        """
        parent, _, name = written.rpartition("/")
        if written.startswith("/") or ".." in written.split("/"):
            raise BadAnnotation(f"the picture path {written!r} leads out of the data folder; fetch the file again")
        if parent not in self._listed:
            self._listed[parent] = list(self._folders_of(parent))
        stem, dot, ending = name.rpartition(".")
        for folder, names in self._listed[parent]:
            for candidate in (name, *(stem + other for other in _ENDINGS if dot and other != dot + ending)):
                if candidate in names:
                    return folder / candidate
        return self._folders[0] / written

    def _folders_of(self, parent: str) -> Iterator[tuple[Path, frozenset[str]]]:
        """The folders that exist for a record's folder, with the names in them."""
        places = [parent, f"images/{parent.removeprefix('cot/')}"] if parent.startswith("cot/") else [parent]
        for folder in self._folders:
            for place in places:
                if (folder / place).is_dir():
                    yield folder / place, frozenset(os.listdir(folder / place))


def _records(records: list[Any], regions: Mapping[int, _Region], path: Path) -> Iterator[_Record]:
    """The records of a set, with the sizes of ``benchmark_det`` and its boxes where they are the same ones."""
    seen: set[int] = set()
    for place, record in enumerate(records):
        try:
            number, picture = whole(record["question_id"]), text_of(record["image"][0])
            match = _WITH_BOX.match(record["image"][1])
            turns = [text_of(turn["value"]) for turn in record["conversations"]]
            if match is None or len(turns) < 4:
                raise ValueError("it has no box, or fewer than four turns")
            cut = _box([float(part) for part in match["box"].split(",")])
        except STRANGE as exc:
            raise BadAnnotation(
                f"record {place} of {path} is not of the Visual-CoT benchmark's form ({exc!r}); fetch the file again"
            ) from exc
        if number in seen:
            raise BadAnnotation(f"question_id {number} occurs twice in {path}; fetch the file again")
        seen.add(number)
        region = regions.get(number)
        same = region is not None and all(abs(one - two) < 1 for one, two in zip(region.box, cut, strict=True))
        yield _Record(
            question_id=number,
            picture=picture,
            question=turns[0].removeprefix("<image>").lstrip("\n").removesuffix(ASK_FOR_BOX),
            answer=turns[3],
            box=region.box if region is not None and same else cut,
            box_from="benchmark_det" if same else "benchmark",
            size=None if region is None else region.size,
            split=str(record.get("split", "")),
        )
