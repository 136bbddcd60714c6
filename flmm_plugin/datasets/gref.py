"""Read gRefCOCO: expressions that mean one object, several, or none, in the layout that ReLA reads.

``grefs(unc).json`` is a list of refs as in RefCOCO, but ``ann_id`` is a list; ``[-1]`` says that nothing in the picture
is meant. ``instances.json`` has the pictures' sizes and the objects' polygons. Masks are ``bool[H, W]`` in the image
frame.

Layouts under a root (``FLMM_DATA``, default ``data/``)::

    <root>/coco/grefcoco/...   <root>/coco/train2014/...        beside RefCOCO
    <root>/grefcoco/...        <root>/images/train2014/...      ReLA
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from flmm_plugin.data.registry import Archive, Part
from flmm_plugin.data.root import data_root
from flmm_plugin.datasets.json_files import fields_of, inside, integer, read_json, size_of
from flmm_plugin.datasets.phrases import PhraseItem
from flmm_plugin.datasets.problems import Problem
from flmm_plugin.datasets.reader import SplitReader, known_name
from flmm_plugin.datasets.refer import PICTURES, read_instances, sentences_of
from flmm_plugin.errors import BadAnnotation

NAME = "grefcoco"


class SplitSize(NamedTuple):
    """Numbers of expressions and pictures of an official split, and of expressions that mean nothing."""

    expressions: int
    images: int
    no_target: int


#: Counted from the official file by others; ``train`` is stated by nobody. The papers' numbers are of older files.
OFFICIAL_SIZES: Mapping[str, SplitSize] = {
    "val": SplitSize(14229, 1500, 8905),
    "testA": SplitSize(19200, 750, 4448),
    "testB": SplitSize(16063, 750, 4673),
}

SPLITS = ("train", "val", "testA", "testB")

#: What ``ann_id`` is where nothing is meant.
NOTHING = -1

_ADDRESS = "https://huggingface.co/datasets/FudanCVL/gRefCOCO/resolve/81eede59b3ac070049f597d023c0ff08d1fb80e9"
_FOLDERS = (f"coco/{NAME}", NAME)


def _part(what: str, name: str, sha256: str) -> Part:
    source = Archive((f"{_ADDRESS}/{name}",), sha256=sha256, file=f"{_FOLDERS[0]}/{name}")
    return Part(what, tuple(f"{folder}/{name}" for folder in _FOLDERS), "CC BY-NC-SA 4.0 (its project page)", source)


_REFS = _part(
    "expressions of gRefCOCO", "grefs(unc).json", "cc37c5ff95373c78a6a3f98b4c7bc67fde387ea8514752a1392db64223eb3366"
)
_OBJECTS = _part(
    "objects of gRefCOCO", "instances.json", "7f86adb7f4c39db19c7f02a3cc604d17f8016e4c4e8312652d0acc4eae3a2cbd"
)
#: What gRefCOCO needs: expressions, objects, and the pictures of RefCOCO.
PARTS = (_REFS, _OBJECTS, PICTURES)


class GrefDataset(SplitReader[PhraseItem]):
    """The expressions of one split, each with its objects.

    Args:
        root: Data root; None means ``FLMM_DATA``, or ``data`` if that is not set.
        split: ``train``, ``val``, ``testA`` or ``testB``.
        need_pictures: Whether the folder of the pictures must be there.

    Attributes:
        split_counts: How many refs the file has for each split name that it uses.

    Raises:
        UnknownArgument: There is no such split; the nearest one is offered.
        DataNotFound: A file or folder is missing; the message says which, where it comes from and how to get it.
        BadAnnotation: A file is truncated or contradicts itself.
    """

    def __init__(self, root: str | os.PathLike[str] | None, split: str, *, need_pictures: bool = True) -> None:
        self.split = known_name("split of gRefCOCO", split, SPLITS)
        folder = data_root(root)
        self.refs_path, self.instances_path = _REFS.path(folder, NAME), _OBJECTS.path(folder, NAME)
        self.picture_folder = PICTURES.path(folder, NAME) if need_pictures else PICTURES.place(folder)
        annotations = (self.refs_path, self.instances_path)
        super().__init__(folder, f"{NAME}-{split}", PhraseItem, annotations, places=(self.picture_folder,))
        self.split_counts: Mapping[str, int] = self.facts["splits"]

    def _read(self, problems: list[Problem]) -> tuple[Iterable[PhraseItem], dict[str, Any]]:
        refs = read_json(self.refs_path)
        if not isinstance(refs, list) or not all(
            isinstance(ref, dict) and isinstance(ref.get("split"), str) for ref in refs
        ):
            raise BadAnnotation(f"{self.refs_path} is not a list of refs; get it from its official source")
        chosen = [ref for ref in refs if ref["split"] == self.split]
        return self._joined(chosen, problems), {"splits": dict(Counter(ref["split"] for ref in refs))}

    def _joined(self, refs: Sequence[Mapping[str, Any]], problems: list[Problem]) -> Iterator[PhraseItem]:
        """Yield one item per sentence, with the objects that its ref names."""
        if not refs:
            return
        images, objects = read_instances(self.instances_path)
        for ref in refs:
            named = f"ref {ref.get('ref_id')} (image {ref.get('image_id')}, annotations {ref.get('ann_id')})"
            with fields_of(
                f"{named} of {self.refs_path} has no match in {self.instances_path} or",
                "both files must be of the same release",
            ):
                image = images[integer(ref["image_id"])]
                height, width = size_of(image)
                # The refs' own file_name has a number behind the picture's.
                path = inside(self.picture_folder, image["file_name"])
                listed = ref["ann_id"] if isinstance(ref["ann_id"], list) else [ref["ann_id"]]
                ids = tuple(integer(one) for one in listed)
                meant = () if ids == (NOTHING,) else tuple(objects[one] for one in ids)
                if not ids or any(integer(one["image_id"]) != integer(ref["image_id"]) for one in meant):
                    raise ValueError("no annotation, or one of another image")
                single = [one for one in meant if not one.get("iscrowd")]
                if len(single) < len(meant):
                    problems.append(Problem("crowd annotation, no part of the target", named))
                segmentations = tuple(one["segmentation"] for one in single)
                for typed, _ in sentences_of(ref["sentences"], named, problems):
                    yield PhraseItem(
                        integer(ref["image_id"]), path, height, width, typed, ids if meant else (), segmentations
                    )

    @property
    def official_size(self) -> SplitSize | None:
        """The split's size as others counted it, None for ``train``."""
        return OFFICIAL_SIZES.get(self.split)
