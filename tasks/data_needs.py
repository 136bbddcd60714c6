"""Say which data tasks, training recipes or benchmarks need under a data root, and what brings it.

Of pictures that their source offers one by one, only those count that the splits show. The annotations name them, so
they are fetched first.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flmm_plugin import bundled, files
from flmm_plugin.data.downloading import install
from flmm_plugin.data.pictures import install_pictures
from flmm_plugin.data.registry import Archive, Benchmark, Part, Pictures
from flmm_plugin.data.root import data_root
from flmm_plugin.errors import BadAnnotation, DataNotFound, FlmmError
from flmm_plugin.needs import Need
from flmm_plugin.tasks.benchmarks import benchmark_of, benchmarks_of_folder
from flmm_plugin.tasks.task_files import single_tasks, task_config, task_files

if TYPE_CHECKING:
    from flmm_plugin.training.recipe import TrainRecipe


@dataclass(frozen=True, eq=False)
class Use:
    """A split of a benchmark that somebody reads.

    Attributes:
        benchmark: Record that says which parts the split needs and how it is read.
        split: Name of the split or set.
        root: Data root that it is read from.
        user: Name of the task or recipe; "" if somebody asked for the split itself.
        limit: Read only so many pictures, the first ones; None: all.
    """

    benchmark: Benchmark
    split: str
    root: Path
    user: str = ""
    limit: int | None = None


def data_needs(tasks: Iterable[str], root: str | os.PathLike[str] | None = None) -> list[Need]:
    """Return what tasks and groups of this package read; names of others are passed over.

    Args:
        tasks: Names, as for ``lmms_eval --tasks``.
        root: Data root for the tasks that name none; None means ``FLMM_DATA``, or ``data``.
    """
    return needs_of(list(uses_of_tasks(tasks, root)))


def recipe_needs(recipe: TrainRecipe, name: str = "") -> list[Need]:
    """Return what a training recipe reads: its parts to learn from and those to validate on."""
    return needs_of(list(uses_of_recipe(recipe, name)))


def uses_of_tasks(tasks: Iterable[str], root: str | os.PathLike[str] | None = None) -> Iterator[Use]:
    """Yield the splits that tasks and groups of this package read; see `data_needs`."""
    for name in single_tasks(tasks):
        use = use_of(name, task_files()[name].parent.name, task_config(name), root)
        if use is not None:
            yield use


def use_of(name: str, folder: str, config: Mapping[str, Any], root: str | os.PathLike[str] | None = None) -> Use | None:
    """Return the split that a task reads; None if its data comes with a package or is fetched by its harness.

    Args:
        name: Name of the task, as lmms-eval knows it.
        folder: Folder of ``tasks/`` that it is in.
        config: Content of its YAML file.
        root: Data root if the task names none.
    """
    options = config.get("dataset_kwargs") or {}
    given = options.get("root", root)
    if folder == "tiny" or config.get("dataset_path") or (given is not None and bundled.is_data_root(str(given))):
        return None
    found = benchmarks_of_folder(folder, [str(options.get("name"))])
    named = {str(config.get("test_split")), str(options.get("name"))}
    for benchmark in found[:1]:
        for split in (*benchmark.splits, *benchmark.training):
            if split in named:
                return Use(split_by(benchmark, options.get("by")), split, data_root(given), name)
    return None


def uses_of_recipe(recipe: TrainRecipe, name: str = "") -> Iterator[Use]:
    """Yield the splits that a training recipe reads, those that come with a package left out."""
    for part in (*recipe.data.parts, *recipe.validation.parts):
        root = part.root or recipe.data.root
        if root is None or not bundled.is_data_root(root):
            # Of narratives without a phrase for such a part nobody knows how many there are.
            limit = None if part.singular else part.limit
            yield Use(split_by(benchmark_of(part.dataset), part.by), part.split, data_root(root), name, limit)


def split_by(benchmark: Benchmark, by: str | None) -> Benchmark:
    """Return the record of a data set as other people than usual split it."""
    if by is None:
        return benchmark
    from flmm_plugin.tasks.refcoco.benchmark import record_of

    return record_of(benchmark.name, by)


def needs_of(uses: Sequence[Use], *, archive: bool = False, optional: bool = False) -> list[Need]:
    """Return what splits need, annotations before pictures.

    Args:
        uses: Splits with the tasks or recipes that read them, of one data root or several.
        archive: Fetch whole archives of pictures even where a few of them are enough.
        optional: Also what makes a result better without being needed for it.
    """
    groups: dict[tuple[Path, str], list[tuple[Part, Use]]] = {}
    for use in uses:
        for part in use.benchmark.parts_of([use.split]):
            if optional or not part.optional:
                groups.setdefault((use.root, part.origin), []).append((part, use))
    found = []
    for (root, _), group in groups.items():
        parts = {part.what: part for part, _ in group}
        is_pictures = isinstance(group[0][0].source, Pictures)
        make = partial(_pictures_need, archive=archive) if is_pictures else _need
        found.append((is_pictures, make(list(parts.values()), [use for _, use in group], root)))
    return [need for _, need in sorted(found, key=lambda one: one[0])]


def _need(parts: Sequence[Part], uses: Sequence[Use], root: Path) -> Need:
    """Describe parts that come in one download."""
    gone = [part for part in parts if part.found(root) is None]
    first = (gone or parts)[0]
    size = first.size
    if isinstance(first.source, Archive) and size is not None:
        download = root / files.WORKPLACE / "downloads" / first.source.urls[0].rsplit("/", 1)[1]
        if download.is_file() and download.stat().st_size == size:
            size = 0
    return Need(
        "data",
        ", ".join(part.what for part in gone or parts),
        not gone,
        size,
        _space(first, size),
        first.origin,
        first.licence,
        first.how if first.source is None else _command(uses, root),
        None if first.source is None else partial(_bring, gone, root),
        _users(uses),
        root,
    )


def _pictures_need(parts: Sequence[Part], uses: Sequence[Use], root: Path, *, archive: bool) -> Need:
    """Describe the pictures that some splits show."""
    (part,) = parts
    source, folder = part.source, part.found(root)
    assert isinstance(source, Pictures)
    count, here, what = 0, True, part.what
    if folder is None or sum(1 for _ in os.scandir(folder)) < source.count:
        try:
            count = len(_missing_pictures(part, uses, root))
            here, what = count == 0, f"{count} {part.what}"
        except DataNotFound:
            count = min(source.used, sum(_shown(use, source) for use in uses))
            here, what = False, f"about {count} {part.what}"
        except FlmmError:
            here = folder is not None  # the run itself says what is wrong with the annotations
    whole = archive or source.worth_the_archive(count)
    size = source.archive.size if whole else source.size(count)
    return Need(
        "data",
        part.what if whole else what,
        here,
        size,
        _space(part, size) if whole else size,
        source.archive.urls[0] if whole else source.address,
        part.licence,
        _command(uses, root) + (" --archive" if archive else ""),
        partial(_bring_pictures, part, uses, root, archive),
        _users(uses),
        root,
    )


def _shown(use: Use, source: Pictures) -> int:
    """Return how many pictures a split shows, as far as that is known without its annotations."""
    stated = use.benchmark.pictures.get(use.split, source.count)
    return stated if use.limit is None else min(use.limit, stated)


def _missing_pictures(part: Part, uses: Sequence[Use], root: Path) -> list[Path]:
    """Return the places of the pictures that are not there.

    Raises:
        FlmmError: An annotation file that names them is not there or is damaged.
    """
    paths: dict[Path, None] = {}
    folder = part.place(root)
    for use in uses:
        shown = (path for path in use.benchmark.read(root, use.split).pictures if path.is_relative_to(folder))
        paths.update(dict.fromkeys(list(shown)[: use.limit]))
    there = {parent: _names(parent) for parent in {path.parent for path in paths}}
    return [path for path in paths if path.name not in there[path.parent]]


def _names(folder: Path) -> frozenset[str]:
    return frozenset(os.listdir(folder)) if folder.is_dir() else frozenset()


def _bring(parts: Sequence[Part], root: Path) -> None:
    for part in parts:
        if part.found(root) is not None:  # looked for now: one archive may have brought several parts
            continue
        assert part.source is not None
        assert not isinstance(part.source, Pictures)
        try:
            install(part.source, root)
            part.path(root, part.what)
        except (DataNotFound, BadAnnotation) as exc:
            by_hand = f". By hand: {part.how}" if part.how else ""
            raise type(exc)(f"{part.what}: {exc}{by_hand}") from exc


def _bring_pictures(part: Part, uses: Sequence[Use], root: Path, archive: bool) -> None:
    assert isinstance(part.source, Pictures)
    install_pictures(part.source, _missing_pictures(part, uses, root), root, archive=archive)


def _space(part: Part, size: int | None) -> int | None:
    """Return what an archive takes with its files beside it: pictures are as large in it as outside."""
    return None if size is None or part.size is None else size + part.size


def _command(uses: Sequence[Use], root: Path) -> str:
    """Write the command that brings what some splits need."""
    names = list(dict.fromkeys(use.benchmark.name for use in uses))
    splits = list(dict.fromkeys(use.split for use in uses))
    usual = all(set(splits) == set(use.benchmark.splits) for use in uses)
    words = ["flmm", "data", "download", *names, *([] if usual else ["--split", ",".join(splits)])]
    return shlex.join([*words, "--root", str(root)])


def _users(uses: Sequence[Use]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(use.user for use in uses if use.user))
