"""Define data of one's own as a benchmark: its records, one per data set that was added, and documents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from flmm_plugin.data.own import OwnSplit, own_sets, own_task
from flmm_plugin.data.registry import Benchmark, Part, Split
from flmm_plugin.datasets.own import ORIENTATION, OwnDataset
from flmm_plugin.errors import BadImage
from flmm_plugin.images import image_size
from flmm_plugin.tasks.documents import Documents
from flmm_plugin.tasks.phrases import phrase_documents, phrases_prompt

#: What ``dataset_kwargs`` may have.
SETTINGS = ("name", "unit")


def own_records() -> tuple[Benchmark, ...]:
    """Return the records of all data sets that were added."""
    return tuple(_record(name, splits) for name, splits in own_sets().items())


def _record(name: str, splits: Mapping[str, OwnSplit]) -> Benchmark:
    tasks = {split: own_task(name, split) for split in splits}
    return Benchmark(
        name=name,
        title=f"your own: {', '.join(splits)}",
        tasks=tuple(tasks.values()),
        paper="",
        parts=tuple(part for split, own in splits.items() for part in _parts(name, split, own)),
        splits=tuple(splits),
        read=partial(_read, name),
        headline=("gIoU",),
        folders=("own",),
        kit={f"OWN_{name}": tasks if len(tasks) > 1 else {"": next(iter(tasks.values()))}},
        order=1000,
    )


def _parts(name: str, split: str, own: OwnSplit) -> tuple[Part, ...]:
    how = f"put it back, or say where it is: flmm data add {name} FILE --images DIR --split {split}"
    return (
        Part(f"annotations of {name} {split}", (str(own.annotations),), "your own", how=how, splits=(split,)),
        Part(f"pictures of {name} {split}", (str(own.pictures),), "your own", how=how, splits=(split,)),
    )


def _read(name: str, root: Path, split: str) -> Split:
    """Describe a split, every odd entry and every picture of another size than is stated included."""
    dataset = OwnDataset(name, split)
    found = dataset.summary(split, "phrases", None)
    stated = {item.image_path: (item.height, item.width) for item in dataset}
    sizes = [_size_note(path, size) for path, size in stated.items()]
    return replace(found, notes=(*map(str, dataset.problems), *(one for one in sizes if one)))


def _size_note(path: Path, stated: tuple[int, int]) -> str:
    """Say that a picture has another size than is stated; "" if not, or if it cannot be opened, which others say."""
    try:
        size = image_size(path, ORIENTATION)
    except BadImage:
        return ""
    if size == stated:
        return ""
    return (
        f"{path.name}: {size[0]} x {size[1]} pixels (height x width), the file says {stated[0]} x {stated[1]}; its "
        "phrases count as errors"
    )


def read_documents(split: str, settings: Mapping[str, Any]) -> Documents:
    """Read the documents of a split; see `flmm_plugin.tasks.phrases.phrase_documents`.

    Args:
        split: Name that the split was added under.
        settings: A task's ``dataset_kwargs``: ``name``, and optionally ``unit`` (default ``picture``).

    Raises:
        UnknownArgument, DataNotFound, BadAnnotation: There is no such unit; from the reader.
    """
    dataset = OwnDataset(settings["name"], split)
    unit = settings.get("unit", "picture")
    return phrase_documents(dataset, unit, orientation=ORIENTATION, expected=len(dataset))


def prompt_of(doc: Mapping[str, Any]) -> str:
    """Return what is asked, for models that read a prompt; ``flmm_*`` models read the phrases themselves."""
    return phrases_prompt(doc)
