"""Read somebody's own data: a COCO file with a phrase per annotation.

``images`` have ``id``, ``file_name``, ``height`` and ``width``; ``annotations`` have ``id``, ``image_id``,
``segmentation``, and the words in ``phrase`` or ``caption``. All annotations of a picture with the same words, whatever
their case, are the objects of one phrase. An empty ``segmentation`` says that nothing in the picture is meant. Masks
are ``bool[H, W]`` in the image frame.

What cannot be used is left out, phrase by phrase, and every such entry is listed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flmm_plugin.data.own import OwnSplit, own_folder, own_split
from flmm_plugin.datasets.json_files import STRANGE, coordinate, inside, integer, read_json, size_of, text_of
from flmm_plugin.datasets.phrases import PhraseItem
from flmm_plugin.datasets.problems import Problem
from flmm_plugin.datasets.reader import SplitReader
from flmm_plugin.datasets.segmentations import has_pixels, segmentation_rle
from flmm_plugin.errors import BadAnnotation, DataNotFound
from flmm_plugin.images import Orientation
from flmm_plugin.text_checks import has_words

#: How pictures are opened: as viewers and annotation tools show them.
ORIENTATION: Orientation = "upright"

#: Where an annotation has its words, the first one that it has.
PHRASE_KEYS = ("phrase", "caption")


@dataclass(frozen=True)
class _Picture:
    """One entry of ``images``."""

    number: int
    path: Path
    height: int
    width: int


@dataclass
class _Phrase:
    """Objects of annotations with the same words about the same picture."""

    picture: _Picture
    words: str
    ids: list[int] = field(default_factory=list)
    masks: list[dict[str, Any]] = field(default_factory=list)
    says_nothing: bool = False
    spoilt: bool = False  # one of its objects cannot be read, so its target is not known


class OwnDataset(SplitReader[PhraseItem]):
    """The phrases of one split, in the order of their first annotations.

    Args:
        name: Name that the data set was added under.
        split: Name that the split was added under, such as ``test``.
        own: Where it lies; None: as it was added.

    Raises:
        UnknownArgument: There is no such data set or split.
        DataNotFound: The file is not where it was.
        BadAnnotation: It is no COCO file.
    """

    def __init__(self, name: str, split: str, own: OwnSplit | None = None) -> None:
        self.name, self.split = name, split
        self.files = own_split(name, split) if own is None else own
        if not self.files.annotations.is_file():
            raise DataNotFound(
                f"there is no file {self.files.annotations}; put it back, or say where {name} is now: flmm data add "
                f"{name} FILE --images DIR --split {split}"
            )
        places = (self.files.pictures,)
        super().__init__(own_folder(), f"{name}-{split}", PhraseItem, (self.files.annotations,), places=places)

    def _read(self, problems: list[Problem]) -> tuple[Iterable[PhraseItem], dict[str, Any]]:
        content = read_json(self.files.annotations)
        lists = {key: content.get(key) if isinstance(content, dict) else None for key in ("images", "annotations")}
        for key, listed in lists.items():
            if not isinstance(listed, list):
                raise BadAnnotation(
                    f"{self.files.annotations} is no COCO file: it has no list `{key}`; docs/own-data.md shows one"
                )
        pictures = self._pictures(lists["images"] or (), problems)
        phrases = _phrases(lists["annotations"] or (), pictures, problems)
        items = list(_items(phrases, problems))
        shown = {item.image_id for item in items}
        problems += [
            Problem("picture without a phrase that can be used", f"{one.path.name} (image {one.number})")
            for one in pictures.values()
            if one.number not in shown
        ]
        return items, {}

    def _pictures(self, listed: Iterable[Any], problems: list[Problem]) -> dict[int, _Picture]:
        """Return the pictures by their ids."""
        found: dict[int, _Picture] = {}
        names: set[Path] = set()
        for place, one in enumerate(listed):
            try:
                height, width = size_of(one)
                picture = _Picture(integer(one["id"]), inside(self.files.pictures, one["file_name"]), height, width)
            except STRANGE as exc:
                problems.append(
                    Problem(f"picture left out, it needs id, file_name, height, width: {exc!r}", f"images[{place}]")
                )
                continue
            if picture.number in found:
                problems.append(
                    Problem("picture left out, its id is another's", f"images[{place}] (image {picture.number})")
                )
                continue
            if picture.path in names:
                problems.append(Problem("picture is listed twice", f"images[{place}] ({picture.path.name})"))
            found[picture.number] = picture
            names.add(picture.path)
        return found


def _phrases(listed: Iterable[Any], pictures: Mapping[int, _Picture], problems: list[Problem]) -> Iterable[_Phrase]:
    """Put annotations with the same words about the same picture together."""
    found: dict[tuple[int, str], _Phrase] = {}
    ids: set[int] = set()
    for place, one in enumerate(listed):
        where = f"annotations[{place}]"
        try:
            number, image_id = integer(one["id"]), integer(one["image_id"])
        except STRANGE as exc:
            problems.append(Problem(f"annotation left out, it needs id and image_id: {exc!r}", where, 1))
            continue
        where = f"annotation {number} (image {image_id})"
        if number in ids:
            problems.append(Problem("annotation left out, its id is another's", f"annotations[{place}], {where}", 1))
            continue
        ids.add(number)
        if image_id not in pictures:
            problems.append(Problem("annotation left out, its image_id is of no picture", where, 1))
            continue
        words = next((one[key] for key in PHRASE_KEYS if key in one), None)
        try:
            words = text_of(words).strip()
        except (TypeError, UnicodeError):
            problems.append(Problem(f"annotation left out, no text in {' or '.join(PHRASE_KEYS)}", where, 1))
            continue
        if not has_words(words):
            problems.append(Problem("annotation left out, its phrase is empty", where, 1))
            continue
        phrase = found.setdefault((image_id, words.lower()), _Phrase(pictures[image_id], words))
        _add_object(phrase, one, number, where, problems)
    return found.values()


def _add_object(
    phrase: _Phrase, annotation: Mapping[str, Any], number: int, where: str, problems: list[Problem]
) -> None:
    """Add what an annotation says to its phrase."""
    picture, where = phrase.picture, f"{where} {phrase.words!r}"
    problem = None if annotation.get("bbox") is None else _box_problem(annotation["bbox"], picture)
    if problem is not None:
        problems.append(Problem(problem, where))
    if "segmentation" not in annotation:
        problems.append(Problem("no segmentation; an empty list says that nothing is there", where))
        phrase.spoilt = True
    elif annotation["segmentation"] in (None, [], {}):
        phrase.says_nothing = True
    else:
        try:
            code = segmentation_rle(annotation["segmentation"], picture.height, picture.width, "bad mask")
        except BadAnnotation as exc:
            problems.append(Problem(str(exc), where))
            phrase.spoilt = True
            return
        if not has_pixels(code):
            problems.append(Problem("mask without a pixel in its picture", where))
            phrase.spoilt = True
        elif code in phrase.masks:
            problems.append(Problem("object is listed twice for its phrase, counts once", where))
        else:
            phrase.masks.append(code)
            phrase.ids.append(number)


def _box_problem(box: Any, picture: _Picture) -> str | None:
    """Return what is odd about a box ``[x, y, width, height]``; the mask is what counts."""
    try:
        x, y, width, height = (coordinate(side) for side in box)
    except STRANGE as exc:
        return f"box is not [x, y, width, height] in pixels: {exc}"
    outside = min(x, y) < -1 or x + width > picture.width + 1 or y + height > picture.height + 1
    return "box reaches out of its picture" if outside else None


def _items(phrases: Iterable[_Phrase], problems: list[Problem]) -> Iterator[PhraseItem]:
    """Yield the phrases whose target is known."""
    for one in phrases:
        picture, where = one.picture, f"{one.picture.path.name} (image {one.picture.number}) {one.words!r}"
        if one.spoilt:
            problems.append(Problem("phrase left out: an object of it cannot be used", where, 1))
        elif one.says_nothing and one.masks:
            problems.append(Problem("phrase left out: it is said to mean nothing, and something", where, 1))
        else:
            yield PhraseItem(
                picture.number, picture.path, picture.height, picture.width, one.words, tuple(one.ids),
                tuple(one.masks),
            )  # fmt: skip
