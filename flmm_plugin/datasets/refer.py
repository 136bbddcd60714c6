"""Read RefCOCO, RefCOCO+ and RefCOCOg in the layout of the refer API: expressions, and the object each one means.

A *ref* is one object of one picture with several sentences. ``refs(<by>).p`` lists the refs of all splits;
``instances.json`` has the pictures' sizes and the objects' polygons, as in COCO. Masks are ``bool[H, W]`` in the
image frame.

Three layouts are found under a root (``FLMM_DATA``, default ``data/``)::

    <root>/coco/refcoco/...   <root>/coco/train2014/...                     F-LMM, mmdetection
    <root>/refcoco/...        <root>/train2014/...                          the same folders without ``coco``
    <root>/refcoco/...        <root>/images/mscoco/images/train2014/...     refer, LISA
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from flmm_plugin.data.registry import Archive, Part, Pictures
from flmm_plugin.data.root import data_root
from flmm_plugin.datasets.json_files import STRANGE, fields_of, inside, integer, read_json, size_of, text_of
from flmm_plugin.datasets.problems import Problem
from flmm_plugin.datasets.reader import SplitReader, known_name
from flmm_plugin.datasets.safe_pickle import load_data_pickle
from flmm_plugin.datasets.segmentations import SMALLEST_POLYGON, has_pixels, segmentation_rle
from flmm_plugin.errors import BadAnnotation
from flmm_plugin.images import Orientation
from flmm_plugin.records import BoolMask, decode_rle


class SplitSize(NamedTuple):
    """Numbers of refs, sentences and pictures of an official split; None where no source states it."""

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

TITLES: Mapping[str, str] = {"refcoco": "RefCOCO", "refcoco+": "RefCOCO+", "refcocog": "RefCOCOg"}

COCO_LICENCE = "pictures: Flickr terms of use; COCO annotations: CC BY 4.0"
COCO_ADDRESS = "http://images.cocodataset.org"

_ADDRESS = "https://bvisionweb1.cs.unc.edu/licheng/referit/data"
_KEPT_AT = {"refcoco": "20220413011718", "refcoco+": "20220413011656", "refcocog": "20220413012904"}
#: The pictures of all these data sets.
PICTURES = Part(
    "pictures of COCO train2014",
    ("coco/train2014", "train2014", "images/mscoco/images/train2014", "images/train2014"),
    COCO_LICENCE,
    Pictures(
        f"{COCO_ADDRESS}/train2014/{{name}}",
        Archive(
            (f"{COCO_ADDRESS}/zips/train2014.zip",),
            13510573713,
            "ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775",
            into="coco",
        ),
        count=82783,
        used=26000,
    ),
)


def parts(name: str, by: str) -> tuple[Part, Part, Part]:
    """Return what a data set needs: refs, objects, pictures."""
    copy = f"https://web.archive.org/web/{_KEPT_AT[name]}id_/{_ADDRESS}/{name}.zip"
    archive = Archive((f"{_ADDRESS}/{name}.zip", copy), into="coco")
    folders = (f"coco/{name}", name)
    refs = Part(
        f"annotations of {TITLES[name]}",
        tuple(f"{folder}/refs({by}).p" for folder in folders),
        "as its page says (research use)",
        archive,
    )
    objects = Part(
        f"objects of {TITLES[name]}", tuple(f"{folder}/instances.json" for folder in folders), COCO_LICENCE, archive
    )
    return refs, objects, PICTURES


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

    def __str__(self) -> str:
        return _named(self.ref_id, self.image_id, self.ann_id)


class ReferDataset(SplitReader[ReferItem]):
    """The refs of one split.

    Args:
        root: Data root; None means ``FLMM_DATA``, or ``data`` if that is not set.
        name: Name of the data set: ``refcoco``, ``refcoco+`` or ``refcocog``.
        split: ``train``, ``val``, ``test``, ``testA``, ``testB`` or ``testC``; see `split_matches`.
        by: Who split the data; None means the split that papers use (``unc``, ``unc``, ``umd``).
        need_pictures: Whether the folder of the pictures must be there.

    Attributes:
        split_counts: How many refs the file has for each split name that it uses.

    Raises:
        UnknownArgument: A name that does not exist; the nearest one is offered.
        DataNotFound: A file or folder is missing; the message says which, where it comes from and how to get it.
        UnsafePickle: The refs file carries code; nothing was executed.
        BadAnnotation: A file is truncated or contradicts itself.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None,
        name: str,
        split: str,
        by: str | None = None,
        *,
        need_pictures: bool = True,
    ) -> None:
        self.name = known_name("data set", name, SPLITTERS)
        self.split = known_name("split", split, SPLITS)
        self.by = known_name(f"splitter of {name}", by or SPLITTERS[name][0], SPLITTERS[name])
        folder = data_root(root)
        refs, objects, pictures = parts(self.name, self.by)
        self.refs_path = refs.path(folder, name)
        # Both files must be of the same archive: no other place than beside the refs will do.
        beside = self.refs_path.relative_to(folder).with_name("instances.json")
        self.instances_path = replace(objects, places=(str(beside),)).path(folder, name)
        self.picture_folder = pictures.path(folder, name) if need_pictures else pictures.place(folder)
        key, annotations = f"{self.name}-{self.by}-{self.split}", (self.refs_path, self.instances_path)
        super().__init__(folder, key, ReferItem, annotations, places=(self.picture_folder,))
        self.split_counts: Mapping[str, int] = self.facts["splits"]

    def _read(self, problems: list[Problem]) -> tuple[Iterable[ReferItem], dict[str, Any]]:
        refs = load_data_pickle(self.refs_path)
        if not isinstance(refs, list) or not all(
            isinstance(ref, dict) and isinstance(ref.get("split"), str) for ref in refs
        ):
            raise BadAnnotation(
                f"{self.refs_path} is not a list of refs; get `refs({self.by}).p` from its official source"
            )
        chosen = [ref for ref in refs if split_matches(ref["split"], self.split)]
        items = list(self._joined(chosen, problems))
        problems += _unusual_refs(items)
        return items, {"splits": dict(Counter(ref["split"] for ref in refs))}

    def _joined(self, refs: list[dict[str, Any]], problems: list[Problem]) -> Iterator[ReferItem]:
        """Refs with the picture and the object that each one names."""
        if not refs:
            return
        images, objects = read_instances(self.instances_path)
        for ref in refs:
            named = _named(ref.get("ref_id"), ref.get("image_id"), ref.get("ann_id"))
            with fields_of(
                f"{named} of {self.refs_path} has no match in {self.instances_path} or",
                "both files must be of the same archive",
            ):
                image_id, ann_id, ref_id = integer(ref["image_id"]), integer(ref["ann_id"]), integer(ref["ref_id"])
                image, annotation = images[image_id], objects[ann_id]
                if integer(annotation["image_id"]) != image_id:
                    raise ValueError(f"the annotation is of image {annotation['image_id']}")
                height, width = size_of(image)
                sentences = list(sentences_of(ref["sentences"], named, problems))
                yield ReferItem(
                    image_id=image_id,
                    # The refs' own file_name has the object's number in it and names no file.
                    image_path=inside(self.picture_folder, image["file_name"]),
                    height=height,
                    width=width,
                    ref_id=ref_id,
                    ann_id=ann_id,
                    sentences=tuple(typed for typed, _ in sentences),
                    cleaned=tuple(cleaned for _, cleaned in sentences),
                    segmentation=annotation["segmentation"],
                )

    @property
    def official_size(self) -> SplitSize | None:
        """The split's published size, None for a split that nobody published one for."""
        return OFFICIAL_SIZES.get((self.name, self.by), {}).get(self.split)

    def rle(self, item: ReferItem) -> dict[str, Any]:
        """Return the object of `item` as a COCO run-length code, ``{"size": [H, W], "counts": str}``."""
        return segmentation_rle(item.segmentation, item.height, item.width, where=f"annotation {item.ann_id}")

    def mask(self, item: ReferItem) -> BoolMask:
        """Return the object of `item`, ``bool[H, W]`` in the image frame: the union of its parts."""
        return decode_rle(self.rle(item))


def split_matches(ref_split: str, asked: str) -> bool:
    """Return whether a ref marked `ref_split` belongs to the split `asked`, by the refer API's rules.

    A lettered split takes every ref whose split holds the letter (``testAB`` counts for both), ``test`` every one that
    holds "test"; the others match exactly.

    >>> [split_matches("testAB", asked) for asked in ("testA", "testB", "testC", "test", "val")]
    [True, True, False, True, False]
    """
    if asked in ("testA", "testB", "testC"):
        return asked[-1] in ref_split
    if asked == "test":
        return "test" in ref_split
    return ref_split == asked


def read_instances(path: Path) -> tuple[dict[int, Any], dict[int, Any]]:
    """Read a COCO file: its pictures and its objects, each by its id.

    Raises:
        BadAnnotation: It is not of COCO's form, or an id stands for two different records.
    """
    instances = read_json(path)
    with fields_of(f"{path} is not a COCO file: it", "fetch it again"):
        return _by_id(instances["images"], path), _by_id(instances["annotations"], path)


def _by_id(listed: Sequence[Any], path: Path) -> dict[int, Any]:
    found: dict[int, Any] = {}
    for one in listed:
        if found.setdefault(integer(one["id"]), one) != one:
            raise BadAnnotation(
                f"{path} lists id {one['id']} twice with different content, so that nobody can tell which one a ref "
                "means; fetch it again"
            )
    return found


def sentences_of(listed: Sequence[Mapping[str, Any]], where: str, problems: list[Problem]) -> Iterator[tuple[str, str]]:
    """Yield each sentence of a ref as it was typed and as it was cleaned."""
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
        typed = texts.get("raw", texts.get("sent", ""))
        cleaned = texts.get("sent", texts.get("raw", ""))
        if not (typed.strip() and cleaned.strip()) and len(listed) > 1:
            problems.append(Problem("sentence without words; counts as an error", f"{where}, sentence {place}"))
        yield typed, cleaned


def _named(ref_id: Any, image_id: Any, ann_id: Any) -> str:
    return f"ref {ref_id} (image {image_id}, annotation {ann_id})"


def _unusual_refs(items: Iterable[ReferItem]) -> Iterator[Problem]:
    """Refs that nobody described or that are listed twice, and objects that have no pixel."""
    seen: set[int] = set()
    for item in items:
        if item.ref_id in seen:
            yield Problem("ref is listed twice; both count", str(item))
        seen.add(item.ref_id)
        if not any(sentence.strip() for sentence in item.sentences):
            yield Problem("ref without a sentence; counts as an error, and not at all per sentence", str(item))
        parts = item.segmentation if isinstance(item.segmentation, list | tuple) else ()
        short = sum(isinstance(part, list | tuple) and len(part) < SMALLEST_POLYGON for part in parts)
        if parts is item.segmentation and short == len(parts):
            yield Problem("object without a usable polygon; its target is empty", str(item))
        elif _is_outside(item):
            yield Problem("object without a pixel in its picture; its target is empty", str(item))
        elif short:
            yield Problem(f"polygon of fewer than {SMALLEST_POLYGON} numbers, ignored", str(item))


def _is_outside(item: ReferItem) -> bool:
    try:
        return not has_pixels(segmentation_rle(item.segmentation, item.height, item.width))
    except BadAnnotation:
        return False  # refused when its mask is asked for: the others can be used
