"""RefCOCO, RefCOCO+ and RefCOCOg in the layout of the refer API: expressions, and the object each one means.

A *ref* is one object of one picture with several sentences. ``refs(<by>).p`` lists the refs of all splits;
``instances.json`` has the pictures' sizes and the objects' polygons, as in COCO. Masks are ``bool[H, W]`` in the
image frame.

Three layouts are found under a root (``FLMM_DATA``, default ``data/``)::

    <root>/coco/refcoco/...   <root>/coco/train2014/...                     F-LMM, mmdetection
    <root>/refcoco/...        <root>/train2014/...                          the same folders without ``coco``
    <root>/refcoco/...        <root>/images/mscoco/images/train2014/...     refer, LISA
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from flmm_plugin import bundled
from flmm_plugin.datasets.json_files import STRANGE, inside, read_json, size_of, text_of, whole
from flmm_plugin.datasets.prepared import items_of
from flmm_plugin.datasets.problems import Problem
from flmm_plugin.datasets.safe_pickle import load_data_pickle
from flmm_plugin.datasets.segmentations import SMALLEST_POLYGON, has_pixels, segmentation_rle
from flmm_plugin.errors import BadAnnotation, DataNotFound, UnknownArgument
from flmm_plugin.images import Orientation
from flmm_plugin.nearest import did_you_mean
from flmm_plugin.records import BoolMask, decode_rle

DATA_ROOT_VARIABLE = "FLMM_DATA"
DEFAULT_ROOT = "data"


class SplitSize(NamedTuple):
    """How many refs, sentences and pictures an official split has; None where no source states it."""

    refs: int
    sentences: int | None
    images: int


#: (data set, who split it) -> split -> size. RefCOCO's and RefCOCO+'s "test" is testA and testB together.
OFFICIAL_SIZES: Mapping[tuple[str, str], Mapping[str, SplitSize]] = {
    ("refcoco", "unc"): {
        "train": SplitSize(42404, 120624, 16994),
        "val": SplitSize(3811, 10834, 1500),
        "testA": SplitSize(1975, 5657, 750),
        "testB": SplitSize(1810, 5095, 750),
        "test": SplitSize(3785, 10752, 1500),
    },
    ("refcoco+", "unc"): {
        "train": SplitSize(42278, None, 16992),
        "val": SplitSize(3805, 10758, 1500),
        "testA": SplitSize(1975, 5726, 750),
        "testB": SplitSize(1798, 4889, 750),
        "test": SplitSize(3773, 10615, 1500),
    },
    ("refcocog", "umd"): {
        "train": SplitSize(42226, None, 21899),
        "val": SplitSize(2573, 4896, 1300),
        "test": SplitSize(5023, 9602, 2600),
    },
    ("refcocog", "google"): {
        "train": SplitSize(44822, None, 24698),
        "val": SplitSize(5000, None, 4650),
    },
}

#: How pictures are opened: COCO annotates the pixels as they are stored, whatever the orientation tag says.
ORIENTATION: Orientation = "stored"

#: Who split a data set, the one that papers use first.
SPLITTERS: Mapping[str, tuple[str, ...]] = {
    "refcoco": ("unc", "google"),
    "refcoco+": ("unc",),
    "refcocog": ("umd", "google"),
}

SPLITS = ("train", "val", "test", "testA", "testB", "testC")

_ANNOTATION_FOLDERS = ("coco/{name}", "{name}")
_PICTURE_FOLDERS = ("coco/train2014", "train2014", "images/mscoco/images/train2014")


@dataclass(frozen=True)
class ReferItem:
    """One object of one picture and everything people called it.

    Attributes:
        image_id: COCO's id of the picture.
        image_path: Its file; not opened, so it may be missing or damaged.
        height, width: Of the picture in pixels, as ``instances.json`` states them.
        ref_id, ann_id: Ids of the ref and of its object.
        sentences: As they were typed (``raw``), in file order.
        cleaned: The same sentences as the refer API cleans them (``sent``: lower case, no punctuation). Of a sentence
            that has one of the two texts, it stands for the other; one that has neither is left out.
        segmentation: Of the object, in one of COCO's forms.
    """

    image_id: int
    image_path: Path
    height: int
    width: int
    ref_id: int
    ann_id: int
    sentences: tuple[str, ...]
    cleaned: tuple[str, ...]
    segmentation: Any


class ReferDataset(Sequence[ReferItem]):
    """The refs of one split, in file order.

    Args:
        root: Data root; None means ``FLMM_DATA``, or ``data`` if that is not set.
        name: ``refcoco``, ``refcoco+`` or ``refcocog``.
        split: ``train``, ``val``, ``test``, ``testA``, ``testB`` or ``testC``. A lettered split takes every ref whose
        split
            holds the letter (``testAB`` counts for both), ``test`` every one that holds "test", the others match
            exactly.
        by: Who split the data; None means the split that papers use (``unc``, ``unc``, ``umd``).

    Raises:
        UnknownArgument: A name that does not exist; the nearest one is offered.
        DataNotFound: A file or folder is missing; the message says which, where it comes from and how to get it.
        UnsafePickle: The refs file carries code; nothing was executed.
        BadAnnotation: A file is truncated or contradicts itself.
    """

    def __init__(self, root: str | os.PathLike[str] | None, name: str, split: str, by: str | None = None) -> None:
        self.root = data_root(root)
        self.name = _known("data set", name, SPLITTERS)
        self.split = _known("split", split, SPLITS)
        self.by = _known(f"splitter of {name}", by or SPLITTERS[name][0], SPLITTERS[name])
        folder = _annotation_folder(self.root, self.name)
        self.refs_path = _required(folder / f"refs({self.by}).p", self.name)
        self.instances_path = _required(folder / "instances.json", self.name)
        self.picture_folder = _picture_folder(self.root)
        key, sources = f"{self.name}-{self.by}-{self.split}", (self.refs_path, self.instances_path)
        prepared = items_of(self.root, key, (*sources, self.picture_folder), ReferItem, self._read)
        self._items: tuple[ReferItem, ...] = prepared.items
        #: How many refs the file has for each split name that it uses.
        self.split_counts: Mapping[str, int] = prepared.extra["splits"]
        #: Everything of the split that is ignored or looks odd.
        self.problems: tuple[Problem, ...] = tuple(Problem(*facts) for facts in prepared.extra["problems"])

    def _read(self) -> tuple[list[ReferItem], dict[str, Any]]:
        """The official files: items of the split, refs per split name, and what was odd."""
        refs = load_data_pickle(self.refs_path)
        if not isinstance(refs, list) or not all(
            isinstance(ref, dict) and isinstance(ref.get("split"), str) for ref in refs
        ):
            raise BadAnnotation(
                f"{self.refs_path} is not a list of refs; get `refs({self.by}).p` from its official source"
            )
        chosen = [ref for ref in refs if split_matches(ref["split"], self.split)]
        counts = Counter(ref["split"] for ref in refs)
        problems: list[Problem] = []
        items = list(_join(chosen, self.instances_path, self.refs_path, self.picture_folder, problems))
        problems += _odd_refs(items)
        return items, {"splits": dict(counts), "problems": [astuple(one) for one in problems]}

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: Any) -> Any:
        return self._items[index]

    def __iter__(self) -> Iterator[ReferItem]:
        return iter(self._items)

    @property
    def official_size(self) -> SplitSize | None:
        """The split's published size, None for a split that nobody published one for."""
        return OFFICIAL_SIZES.get((self.name, self.by), {}).get(self.split)

    @property
    def digest(self) -> str:
        """SHA-256 of both annotation files: tells two data roots apart that hold the same split."""
        both = hashlib.sha256()
        for path in (self.refs_path, self.instances_path):
            both.update(hashlib.sha256(path.read_bytes()).digest())
        return both.hexdigest()

    def rle(self, item: ReferItem) -> dict[str, Any]:
        """The object of `item` as a COCO run-length code, ``{"size": [H, W], "counts": str}``."""
        return segmentation_rle(item.segmentation, item.height, item.width, where=f"annotation {item.ann_id}")

    def mask(self, item: ReferItem) -> BoolMask:
        """The object of `item`, ``bool[H, W]`` in the image frame: the union of its parts."""
        return decode_rle(self.rle(item))


def data_root(root: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder that a root means: itself, or ``$FLMM_DATA``, or ``data``; a name in `bundled`: that data."""
    if root is not None and bundled.is_data_root(str(root)):
        return bundled.data_root(str(root))
    return Path(root if root is not None else os.environ.get(DATA_ROOT_VARIABLE) or DEFAULT_ROOT)


def split_matches(ref_split: str, asked: str) -> bool:
    """Whether a ref marked `ref_split` belongs to the split `asked`, by the refer API's rules.

    >>> [split_matches("testAB", asked) for asked in ("testA", "testB", "testC", "test", "val")]
    [True, True, False, True, False]
    """
    if asked in ("testA", "testB", "testC"):
        return asked[-1] in ref_split
    if asked == "test":
        return "test" in ref_split
    return ref_split == asked


def _join(
    refs: list[dict[str, Any]], instances_path: Path, refs_path: Path, pictures: Path, problems: list[Problem]
) -> Iterator[ReferItem]:
    """Refs with the picture and the object that each one names."""
    if not refs:
        return
    instances = read_json(instances_path)
    try:
        images = {whole(image["id"]): image for image in instances["images"]}
        objects = {whole(annotation["id"]): annotation for annotation in instances["annotations"]}
    except STRANGE as exc:
        raise BadAnnotation(f"{instances_path} is not a COCO file ({exc!r}); fetch it again") from exc
    for listed, kept in ((instances["images"], images), (instances["annotations"], objects)):
        for one in listed:
            if kept[whole(one["id"])] is not one and kept[whole(one["id"])] != one:
                raise BadAnnotation(
                    f"{instances_path} lists id {one['id']} twice with different content, so that nobody can tell "
                    "which one a ref means; fetch it again"
                )
    for ref in refs:
        try:
            image_id, ann_id, ref_id = whole(ref["image_id"]), whole(ref["ann_id"]), whole(ref["ref_id"])
            image, annotation = images[image_id], objects[ann_id]
            if whole(annotation["image_id"]) != image_id:
                raise ValueError(f"the annotation is of image {annotation['image_id']}")
            height, width = size_of(image)
            where = _named(ref_id, image_id, ann_id)
            sentences = list(_sentences(ref["sentences"], where, problems))
            yield ReferItem(
                image_id=image_id,
                # The refs' own file_name has the object's number in it and names no file.
                image_path=inside(pictures, image["file_name"]),
                height=height,
                width=width,
                ref_id=ref_id,
                ann_id=ann_id,
                sentences=tuple(typed for typed, _ in sentences),
                cleaned=tuple(cleaned for _, cleaned in sentences),
                segmentation=annotation["segmentation"],
            )
        except STRANGE as exc:
            raise BadAnnotation(
                f"ref {ref.get('ref_id')} of {refs_path} (image {ref.get('image_id')}, annotation {ref.get('ann_id')}) "
                f"has no match in {instances_path} or lacks a field ({exc!r}); both files must be of the same archive"
            ) from exc


def _sentences(listed: Sequence[Mapping[str, Any]], where: str, problems: list[Problem]) -> Iterator[tuple[str, str]]:
    """Each sentence of a ref as it was typed and as it was cleaned."""
    for place, sentence in enumerate(listed):
        texts = {}
        for key in ("raw", "sent"):
            try:
                texts[key] = text_of(sentence[key])
            except STRANGE:
                # Some releases have no `raw` at all; a `raw` that is no text is damage.
                if key == "sent" or key in sentence:
                    problems.append(Problem(f"`{key}` of a sentence is no text", f"{where}, sentence {place}"))
        if not texts:
            problems.append(Problem("sentence without a text, left out", f"{where}, sentence {place}", 1))
            continue
        typed, cleaned = texts.get("raw", texts.get("sent", "")), texts.get("sent", texts.get("raw", ""))
        if not (typed.strip() and cleaned.strip()) and len(listed) > 1:
            problems.append(Problem("sentence without words; counts as an error", f"{where}, sentence {place}"))
        yield typed, cleaned


def _named(ref_id: int, image_id: int, ann_id: int) -> str:
    return f"ref {ref_id} (image {image_id}, annotation {ann_id})"


def _odd_refs(items: Iterable[ReferItem]) -> Iterator[Problem]:
    """Refs that nobody described or that are listed twice, and objects that have no pixel."""
    seen: set[int] = set()
    for item in items:
        where = _named(item.ref_id, item.image_id, item.ann_id)
        if item.ref_id in seen:
            yield Problem("ref is listed twice; both count", where)
        seen.add(item.ref_id)
        if not any(sentence.strip() for sentence in item.sentences):
            yield Problem("ref without a sentence; counts as an error, and not at all per sentence", where)
        parts = item.segmentation if isinstance(item.segmentation, list | tuple) else ()
        short = sum(isinstance(part, list | tuple) and len(part) < SMALLEST_POLYGON for part in parts)
        if parts is item.segmentation and short == len(parts):
            yield Problem("object without a usable polygon; its target is empty", where)
        elif _outside(item):
            yield Problem("object without a pixel in its picture; its target is empty", where)
        elif short:
            yield Problem(f"polygon of fewer than {SMALLEST_POLYGON} numbers, ignored", where)


def _outside(item: ReferItem) -> bool:
    try:
        return not has_pixels(segmentation_rle(item.segmentation, item.height, item.width))
    except BadAnnotation:
        return False  # refused when its mask is asked for: the others can be used


def _known(what: str, name: str, known: Iterable[str]) -> str:
    options = list(known)
    if name in options:
        return name
    raise UnknownArgument(f"no {what} {name!r}{did_you_mean(name, options) or '.'} Known: {', '.join(options)}")


def _annotation_folder(root: Path, name: str) -> Path:
    candidates = [root / pattern.format(name=name) for pattern in _ANNOTATION_FOLDERS]
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise DataNotFound(f"no annotations of {name}: looked for {_listed(candidates)}. {_how_to_get(root, name)}")


def _picture_folder(root: Path) -> Path:
    candidates = [root / folder for folder in _PICTURE_FOLDERS]
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise DataNotFound(f"no pictures of COCO train2014: looked for {_listed(candidates)}. {_how_to_get(root, None)}")


def _required(path: Path, name: str) -> Path:
    if not path.is_file():
        raise DataNotFound(f"no file {path}. {_how_to_get(path.parent.parent, name)}")
    return path


def _listed(paths: Iterable[Path]) -> str:
    return " and ".join(str(path) for path in paths)


def _how_to_get(root: Path, name: str | None) -> str:
    """Where a missing part comes from and the command that puts it there."""
    if name is None:
        url, what = "http://images.cocodataset.org/zips/train2014.zip", "COCO's 2014 training pictures (13 GB)"
    else:
        url, what = (
            f"https://bvisionweb1.cs.unc.edu/licheng/referit/data/{name}.zip",
            f"the refer API's {name} annotations",
        )
    target = root if root.name == "coco" else root / "coco"
    archive = url.rsplit("/", 1)[1]
    return (
        f"It is part of {what}: mkdir -p '{target}' && cd '{target}' && curl -LO '{url}' && unzip '{archive}'; "
        f"or set {DATA_ROOT_VARIABLE} to the folder that already holds it"
    )
