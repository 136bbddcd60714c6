"""Remember where somebody's own data lies: one small file per data set, in the cache.

A data set has splits; each is a COCO file and a folder of pictures, which stay where they are.
`flmm_plugin.datasets.own` reads them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flmm_plugin import files
from flmm_plugin.errors import BadAnnotation, UnknownArgument
from flmm_plugin.suggestions import did_you_mean

#: The split whose task is named by the data set alone.
DEFAULT_SPLIT = "test"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True)
class OwnSplit:
    """One split of somebody's own data.

    Attributes:
        annotations: COCO file with a phrase per annotation, absolute.
        pictures: Folder that the file's names are in, absolute.
    """

    annotations: Path
    pictures: Path


def own_folder() -> Path:
    """Return the folder of what is remembered: ``own`` in the cache."""
    return files.cache_folder() / "own"


def own_sets() -> dict[str, dict[str, OwnSplit]]:
    """Return the splits of every data set, by name.

    Raises:
        BadAnnotation: A file of the cache is damaged.
    """
    return {path.stem: _read(path) for path in sorted(own_folder().glob("*.json"))}


def own_split(name: str, split: str) -> OwnSplit:
    """Return where a split lies.

    Raises:
        UnknownArgument: There is no such data set, or no such split; what there is stands in the message.
    """
    known = own_sets()
    if name not in known:
        raise UnknownArgument(
            f"no data of your own is called {name!r}{did_you_mean(name, known) or '.'} There is: "
            f"{', '.join(known) or 'none'} (flmm data add NAME FILE --images DIR)"
        )
    if split not in known[name]:
        raise UnknownArgument(
            f"{name} has no split {split!r}, it has {', '.join(known[name])}; add it with: flmm data add {name} FILE "
            f"--images DIR --split {split}"
        )
    return known[name][split]


def own_task(name: str, split: str) -> str:
    """Return the name of the task that scores a split.

    >>> own_task("mine", "test"), own_task("mine", "val")
    ('flmm_own_mine', 'flmm_own_mine_val')
    """
    return f"flmm_own_{name}" if split == DEFAULT_SPLIT else f"flmm_own_{name}_{split}"


def add(name: str, split: str, own: OwnSplit) -> None:
    """Remember a split, in place of one of that name.

    Raises:
        UnknownArgument: A name with other characters than letters, digits, ``_`` and ``-``, or whose task is another's.
        OutputFailed: The cache cannot be written.
    """
    for what, word in (("data set", name), ("split", split)):
        if not _NAME.fullmatch(word):
            raise UnknownArgument(f"a {what} is named by letters, digits, _ and -, such as mine, not {word!r}")
    known = own_sets()
    taken = {own_task(one, part): (one, part) for one, parts in known.items() for part in parts}
    if taken.get(own_task(name, split), (name, split)) != (name, split):
        raise UnknownArgument(f"the task {own_task(name, split)} is that of other data of yours; take another name")
    _write(name, {**known.get(name, {}), split: own})


def remove(name: str, split: str | None = None) -> None:
    """Forget a data set, or one split of it; the files stay where they are.

    Raises:
        UnknownArgument: There is no such data set or split.
        OutputFailed: The cache cannot be written.
    """
    known = own_sets()
    own_split(name, split or next(iter(known.get(name, {})), DEFAULT_SPLIT))
    kept = {part: own for part, own in known[name].items() if split not in (None, part)}
    if kept:
        _write(name, kept)
        return
    place = _place(name)
    with files.naming(place):
        place.unlink(missing_ok=True)


def _place(name: str) -> Path:
    return own_folder() / f"{name}.json"


def _write(name: str, splits: Mapping[str, OwnSplit]) -> None:
    content = {
        split: {"annotations": str(own.annotations), "pictures": str(own.pictures)} for split, own in splits.items()
    }
    files.write(_place(name), json.dumps(content, indent=1))


def _read(path: Path) -> dict[str, OwnSplit]:
    fix = f"delete it and run `flmm data add {path.stem} FILE --images DIR` again"
    content = files.read_json(path, BadAnnotation, fix)
    try:
        return {str(split): OwnSplit(Path(one["annotations"]), Path(one["pictures"])) for split, one in content.items()}
    except (AttributeError, KeyError, TypeError) as exc:
        raise BadAnnotation(f"{path} is damaged ({exc!r}); {fix}") from exc
