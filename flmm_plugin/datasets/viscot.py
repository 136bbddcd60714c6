"""Read the Visual-CoT benchmark: questions about pictures, their answers, and the region that holds the answer.

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
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from flmm_plugin.data.registry import Archive, DriveFolder, Part
from flmm_plugin.data.root import data_root
from flmm_plugin.datasets.json_files import coordinate, fields_of, integer, parsed_json, size_of, text_of
from flmm_plugin.datasets.problems import Problem
from flmm_plugin.datasets.reader import SplitReader, known_name
from flmm_plugin.errors import BadAnnotation
from flmm_plugin.images import Orientation
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

_ADDRESS = (
    "https://raw.githubusercontent.com/deepcs233/Visual-CoT/83212ae474ab46b70048a6df6a386cff6589ff92/viscot_benchmark"
)
#: Size and hash of the official files of the table's sets.
_FILES = {
    "benchmark/docvqa.json": (736581, "53f461a6244c81e282b56b72f371633cc5bb56ccb133de547396255f40649da5"),
    "benchmark/textcap.json": (724082, "7dbce0d799ee33e262db2db5f92e00bdded01e22e871495f70272c9a07f2249b"),
    "benchmark/textvqa.json": (434086, "b2e12f5c7c5e03ef466e6b852a2ebc9703bd4831116008c41faf14f66cb31478"),
    "benchmark/dude.json": (531382, "bbba0f79f542dc765347a63a71b0bf8e2f6a19a3cfa519800064e0038c01eb49"),
    "benchmark/sroie.json": (583612, "5641172d45b29db01c9ae8fa7325438c3a60053b96aa4b624cfd424c0bb4b4df"),
    "benchmark/infographicsvqa.json": (309157, "c2024e64d157031009549e2ae1c372438e194d65081051effdd4cdfd6dfac312"),
    "benchmark_det/docvqa.jsonl": (182364, "e285f4febc0237d8bf8eb29e810bbab5623ed8e35dffbf7604acaf4555abfb5d"),
    "benchmark_det/textcap.jsonl": (237421, "2357171ca2bd7820a0bfa016933dea128426b4b324deec067b9c256143ef3ba6"),
    "benchmark_det/textvqa.jsonl": (133278, "49989fe731546efebab72a6408943196d6da995df1626402a5613212147be8ba"),
    "benchmark_det/dude.jsonl": (137184, "7803ca08a2c66793012850c5adfb27a7c29290f74c30899d124e330c8b24ce64"),
    "benchmark_det/sroie.jsonl": (146976, "b3182bbf19b009cfd8db367b0d40d1a2fa722731a4eb47899765c72c5b7416e9"),
    "benchmark_det/infographicsvqa.jsonl": (101955, "861391b99ed1289f23714a2235b333c101aaa179bf53dde99cfc1da05f8a8a24"),
}
#: Folder of Google Drive with the test pictures that F-LMM's repository links.
_FOLDER = "https://drive.google.com/drive/folders/1j25nY7i47OudmyzZFyps8NmzVHx6sf5O"
_PICTURE_PAGES = {
    "docvqa": "register at https://www.docvqa.org/datasets/docvqa (CC BY 4.0 for research)",
    "textvqa": "https://dl.fbaipublicfiles.com/textvqa/images/train_val_images.zip (OpenImages: CC BY 2.0); TextCaps' "
    "pictures are the same",
    "dude": "https://huggingface.co/datasets/jordyvl/DUDE_loader, first page of each document as <id>_0.jpg",
    "sroie": "register at https://rrc.cvc.uab.es/?ch=13&com=downloads",
    "infographicsvqa": "register at https://www.docvqa.org/datasets/infographicvqa",
}
_BENCHMARK_FOLDERS = ("viscot/", "viscot_benchmark/", "Visual-CoT/viscot_benchmark/", "viscot/viscot_benchmark/", "")
_PICTURE_FOLDERS = ("viscot", ".", "Visual-CoT/playground/data", "playground/data", "viscot/playground/data")
# Copies of the benchmark disagree on the endings of pictures that are otherwise the same.
_ENDINGS = (".jpg", ".jpeg", ".png")
_WITH_BOX = re.compile(r"^(?P<path>.*)###\[(?P<box>[^\]]*)\]$", re.DOTALL)


def annotation_part(file: str) -> Part:
    """Return an annotation file, such as ``benchmark/docvqa.json``; those of ``benchmark_det`` are optional."""
    size, digest = _FILES.get(file, (None, None))
    return Part(
        f"Visual-CoT {file}",
        tuple(folder + file for folder in _BENCHMARK_FOLDERS),
        "Apache-2.0",
        Archive((f"{_ADDRESS}/{file}",), size, digest, file=f"viscot/{file}"),
        optional=file.startswith("benchmark_det"),
        splits=(Path(file).stem,),
    )


def table_parts() -> tuple[Part, ...]:
    """Return what the six sets of the paper's table need."""
    homes = ("viscot/cot", "cot", "Visual-CoT/playground/data/cot", "playground/data/cot", "images",
             "viscot/playground/data/cot")  # fmt: skip
    pictures = [
        Part(
            f"pictures of {name}",
            tuple(f"{home}/{name}" for home in homes),
            "as its page says",
            DriveFolder(_FOLDER, "viscot/cot"),
            how=f"from {_FOLDER}, or {page}; put the pictures, flat, into viscot/cot/{name}",
            splits=("textvqa", "textcap") if name == "textvqa" else (name,),
        )
        for name, page in _PICTURE_PAGES.items()
    ]
    return (*map(annotation_part, _FILES), *pictures)


@dataclass(frozen=True)
class VisCotItem:
    """One question.

    Attributes:
        question_id: As in the file; not contiguous.
        image_path: The picture's file; not opened, so it may be missing or damaged.
        question: Without the request for a box.
        answer: The one reference answer, in words.
        box: Region that holds the answer: ``(x0, y0, x1, y1)`` pixels of the original picture, as written, which may
            be reversed.
        box_from: ``benchmark_det``; or ``benchmark``, whose boxes are cut to whole numbers, where the former has none
            or another one.
        size: ``(H, W)`` of the picture, where ``benchmark_det`` states it.
        split: Name of the split, as in the file.
    """

    question_id: int
    image_path: Path
    question: str
    answer: str
    box: Box
    box_from: str
    size: tuple[int, int] | None
    split: str


class VisCotDataset(SplitReader[VisCotItem]):
    """The records of one set.

    Args:
        root: Data root; None means ``FLMM_DATA``, or ``data`` if that is not set.
        name: A set of `OFFICIAL_SIZES`, or an alias.

    Raises:
        UnknownArgument: No such set; the nearest one is offered.
        DataNotFound: The file is missing; the message says where it comes from.
        BadAnnotation: It is truncated, or a record of it is not of this form, or an id occurs twice.
    """

    def __init__(self, root: str | PathLike[str] | None, name: str) -> None:
        self.name = known_set(name)
        folder = data_root(root)
        self.path = annotation_part(f"benchmark/{self.name}.json").path(folder, "viscot")
        self.regions_path = self.path.parent.parent / "benchmark_det" / f"{self.name}.jsonl"
        sources = (self.path, self.regions_path) if self.regions_path.is_file() else (self.path,)
        super().__init__(folder, f"viscot-{self.name}", VisCotItem, sources)
        # Pictures are looked for in every run: they may come later than annotations, and under another ending.
        pictures = _Pictures([folder / one for one in _PICTURE_FOLDERS])
        written = (item.image_path.relative_to(folder).as_posix() for item in self._items)
        self._items = tuple(
            replace(item, image_path=pictures.find(path)) for item, path in zip(self._items, written, strict=True)
        )

    def _read(self, problems: list[Problem]) -> tuple[list[VisCotItem], dict[str, Any]]:
        records = parsed_json(self.path.read_bytes(), f"{self.path}")
        if not isinstance(records, list):
            raise BadAnnotation(
                f"{self.path} is a JSON {type(records).__name__}, not a list of records; fetch it again"
            )
        if not records:
            raise BadAnnotation(f"{self.path} has no records; fetch it again")
        regions = _regions(self.regions_path) if self.regions_path.is_file() else {}
        items = list(_records(records, regions, self.path, self.root))
        reversed_box = "its box is reversed; as in the benchmark's own code, no prediction can meet it"
        problems += [Problem(reversed_box, f"question {item.question_id}") for item in items if not encloses(item.box)]
        return items, {}

    @property
    def digest(self) -> str:
        """SHA-256 of the annotation file."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    @property
    def official_size(self) -> SetSize:
        """The set's official size."""
        return OFFICIAL_SIZES[self.name]

    @property
    def boxes_from(self) -> dict[str, int]:
        """The number of boxes from each file."""
        return dict(Counter(item.box_from for item in self._items))


def encloses(box: Box) -> bool:
    """Return whether a box ``(x0, y0, x1, y1)`` has an inside."""
    return box[0] < box[2] and box[1] < box[3]


def to_padded_square(box: Box, size: tuple[int, int]) -> Box:
    """Return pixels of a picture as fractions of the picture padded to a square, the conversations' frame.

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


def known_set(name: str) -> str:
    """Return the file name of a set.

    Raises:
        UnknownArgument: No such set.
    """
    found = ALIASES.get(name.lower(), name.lower())
    return known_name("set of the Visual-CoT benchmark", found, OFFICIAL_SIZES)


class _Region(NamedTuple):
    """One line of ``benchmark_det``: (H, W) of the picture, and the box."""

    size: tuple[int, int]
    box: Box


def _regions(path: Path) -> dict[int, _Region]:
    """Return the lines of ``benchmark_det`` by question id."""
    found: dict[int, _Region] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        where = f"line {number} of {path}"
        record = parsed_json(line, where)
        with fields_of(where, "fetch it again"):
            question = integer(record["question_id"])
            region = _Region(size_of(record), _box(record["bbox"]))
        if found.setdefault(question, region) != region:
            raise BadAnnotation(f"{where}: question_id {question} has another box above; fetch it again")
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
        """Return the file of a record's path, under any known layout and ending; the first guess if there is none."""
        parent, _, name = written.rpartition("/")
        if parent not in self._listed:
            self._listed[parent] = list(self._folders_of(parent))
        stem, dot, ending = name.rpartition(".")
        for folder, names in self._listed[parent]:
            for candidate in (name, *(stem + other for other in _ENDINGS if dot and other != dot + ending)):
                if candidate in names:
                    return folder / candidate
        return self._folders[0] / written

    def _folders_of(self, parent: str) -> Iterator[tuple[Path, frozenset[str]]]:
        """Yield the folders that exist for a record's folder, with the names in them."""
        places = [parent, f"images/{parent.removeprefix('cot/')}"] if parent.startswith("cot/") else [parent]
        for folder in self._folders:
            for place in places:
                if (folder / place).is_dir():
                    yield folder / place, frozenset(os.listdir(folder / place))


def _records(records: Sequence[Any], regions: Mapping[int, _Region], path: Path, root: Path) -> Iterator[VisCotItem]:
    """Yield the records of a set, with the sizes of ``benchmark_det`` and its boxes where they are the same ones."""
    seen: set[int] = set()
    for place, record in enumerate(records):
        with fields_of(f"record {place} of {path} is not of the Visual-CoT benchmark's form: it"):
            number, picture = integer(record["question_id"]), text_of(record["image"][0])
            match = _WITH_BOX.match(record["image"][1])
            turns = [text_of(turn["value"]) for turn in record["conversations"]]
            if match is None or len(turns) < 4:
                raise ValueError("it has no box, or fewer than four turns")
            cut = _box([float(part) for part in match["box"].split(",")])
            if picture.startswith("/") or ".." in picture.split("/"):
                raise ValueError(f"the picture path {picture!r} leads out of the data folder")
            split = str(record.get("split", ""))
        if number in seen:
            raise BadAnnotation(f"question_id {number} occurs twice in {path}; fetch the file again")
        seen.add(number)
        region = regions.get(number)
        same = region is not None and all(abs(one - two) < 1 for one, two in zip(region.box, cut, strict=True))
        yield VisCotItem(
            question_id=number,
            image_path=root / picture,
            question=turns[0].removeprefix("<image>").lstrip("\n").removesuffix(ASK_FOR_BOX),
            answer=turns[3],
            box=region.box if region is not None and same else cut,
            box_from="benchmark_det" if same else "benchmark",
            size=None if region is None else region.size,
            split=split,
        )
