"""Find the record of each benchmark: every ``benchmark.py`` in a folder of ``tasks/`` or of a package of others."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from loguru import logger

from flmm_plugin.data.registry import Benchmark, Hub, Part, Split
from flmm_plugin.errors import BadAnnotation, DataNotFound, UnknownArgument
from flmm_plugin.suggestions import did_you_mean
from flmm_plugin.tasks.own.benchmark import own_records
from flmm_plugin.tasks.task_files import TASKS_FOLDER, brought_packages, task_config

_OURS = "flmm_plugin.tasks."


def benchmarks() -> Mapping[str, Benchmark]:
    """Return all benchmarks by name, in the order of the paper's tables; data of one's own comes last."""
    return {**shipped(), **{one.name: one for one in own_records()}}


@functools.cache
def shipped() -> Mapping[str, Benchmark]:
    """Return the benchmarks that packages ship, by name."""
    found: list[Benchmark] = []
    for path in sorted(TASKS_FOLDER.glob("*/benchmark.py")):
        module = importlib.import_module(f"{_OURS}{path.parent.name}.benchmark")
        found += getattr(module, "BENCHMARKS", ())
    for package in brought_packages():
        try:
            found += importlib.import_module(f"{package}.benchmark").BENCHMARKS
        except Exception as exc:  # one package of somebody else must not take all benchmarks with it
            logger.warning(f"flmm: the benchmark of {package} cannot be used ({type(exc).__name__}: {exc})")
    return {one.name: one for one in sorted(found, key=lambda one: one.order)}


def benchmark_of(name: str) -> Benchmark:
    """Return a benchmark by name.

    Raises:
        UnknownArgument: No such benchmark; the nearest one is offered.
    """
    known = benchmarks()
    if name in known:
        return known[name]
    raise UnknownArgument(f"no benchmark {name!r}{did_you_mean(name, known) or '.'} Known: {', '.join(known)}, or all")


def benchmarks_of_folder(folder: str, tasks: Iterable[str] = ()) -> list[Benchmark]:
    """Return the benchmarks that the tasks in a folder read.

    Args:
        folder: Name of a folder of ``tasks/``.
        tasks: Only those of these tasks or groups, where the folder's tasks read several; none: all.
    """
    found = [one for one in benchmarks().values() if folder in one.folders]
    # The longest name first: `refcoco` is part of `refcocog`.
    named = {
        next((name for name in sorted((one.name for one in found), key=len, reverse=True) if name in task), None)
        for task in tasks
    }
    return [one for one in found if one.name in named] or found


def headline(task: str) -> tuple[str, ...]:
    """Return the metrics that stand for a task, the benchmark's own number first; the first that was printed counts.

    >>> headline("flmm_png"), headline("flmm_tiny_reasonseg"), headline("flmm_tiny_choice")
    (('AR',), ('gIoU',), ('acc',))
    """
    config = task_config(task)
    folder = str(config["process_results"]).split(".")[-3]
    listed = {entry["metric"] for entry in config["metric_list"]}
    return tuple(metric for metric in benchmarks_of_folder(folder)[0].headline if metric in listed)


def parquet_part(repo: str) -> Part:
    """Return a data set of the hub whose questions and pictures are in parquet files."""
    return Part(f"{repo} (parquet)", (repo,), "as its page says", Hub(repo, repo, ("data/*", "README.md")))


def read_parquet(root: Path, repo: str, expected: int) -> Split:
    """Count the rows of a data set's test split, from the files' footers.

    Args:
        root: Folder that holds the benchmarks' files.
        repo: Name of the data set on the hub.
        expected: Number of rows that the official split has.

    Raises:
        DataNotFound: There are no files.
        BadAnnotation: One of them is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = root / repo / "data"
    files = sorted(folder.glob("test-*.parquet"))
    if not files:
        raise DataNotFound(f"no test-*.parquet in {folder}; get it with: flmm data download, run in that root")
    try:
        rows = sum(int(pq.ParquetFile(file).metadata.num_rows) for file in files)
    except (OSError, pa.ArrowException) as exc:
        raise BadAnnotation(f"a parquet file in {folder} is damaged ({exc}); delete it and download again") from exc
    return Split("test", rows, expected, "questions")
