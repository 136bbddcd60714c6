"""VLMEvalKit's result files: one small table of scores per model and data set.

Layouts read, both kits (open-compass, 2026-08, and ms-vlmeval 0.0.20)::

    <work>/<model>/T20260818-120000/<model>_<data>_score.csv     the first kit; links to it lie in <work>/<model>/
    <work>/<model>/<model>_<data>_acc.csv                        the second kit

Endings differ by data set (``_score``, ``_acc``, ``_metrics``, ``.csv`` or ``.json``) and so do their columns; what can
be read as a number is kept under its column's name. The kit records no versions, dtype or kernel with a score: those
stay "not recorded". A percentage is written as a fraction by some data sets and as it is by others: a layout says for
its columns that a value of at most 1 is a fraction.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flmm_plugin.errors import DataNotFound
from flmm_plugin.reports.provenance import Provenance
from flmm_plugin.reports.result_files import Run, TaskResult

_ENDING = re.compile(r"_(score|acc|metrics|rating)\.(csv|json)$")
_RUN_FOLDER = re.compile(r"^T\d{8}")
#: Rows of a table of splits that stand for the whole, best first.
_WHOLE = ("overall", "none", "dev", "val", "test", "all")


def read(path: Path) -> Iterator[Run]:
    """One run per model folder under ``path`` (or of the one file that ``path`` is)."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    seen: dict[Path, dict[str, Path]] = {}
    known: set[Path] = set()
    for file in files:
        real = file.resolve()
        if not _ENDING.search(file.name) or real in known or _named(real) is None:
            continue
        known.add(real)
        folder, data = _named(real) or (real.parent, "")
        # A model folder may hold several dated runs; the newest file of a data set counts.
        older = seen.setdefault(folder, {}).get(data)
        if older is None or real.stat().st_mtime >= older.stat().st_mtime:
            seen[folder][data] = real
    for folder, tasks in sorted(seen.items()):
        yield _run(folder, tasks)


def _named(file: Path) -> tuple[Path, str] | None:
    """Model folder and data set of a score file; None for a file that is not named after its folder."""
    folder = file.parent.parent if _RUN_FOLDER.match(file.parent.name) else file.parent
    stem = _ENDING.sub("", file.name)
    prefix = f"{folder.name}_"
    return (folder, stem.removeprefix(prefix)) if stem.startswith(prefix) else None


def _run(folder: Path, files: Mapping[str, Path]) -> Run:
    model = folder.name
    tasks = {}
    for data, file in sorted(files.items()):
        metrics = scores(file)
        if metrics:
            n = _predictions(file, model, data)
            provenance = Provenance(harness="VLMEvalKit", n="" if n is None else str(n), file=file.name)
            tasks[data] = TaskResult(data, metrics, n, None, None, {}, provenance)
    return Run(
        path=folder,
        harness="VLMEvalKit",
        model=model,
        weights=model,
        flmm=model.lower().startswith("flmm"),
        options={},
        tasks=tasks,
        date=max((file.parent.name for file in files.values() if _RUN_FOLDER.match(file.parent.name)), default=""),
    )


def scores(file: Path) -> dict[str, float]:
    """The numbers of one score file by column name; of several rows, the one that stands for the whole.

    Raises:
        DataNotFound: It is damaged.
    """
    try:
        if file.suffix == ".json":
            content = json.loads(file.read_text(encoding="utf-8"))
            return dict(_flat(content[0] if isinstance(content, list) and content else content))
        with file.open(encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines))
    except (ValueError, csv.Error) as exc:
        raise DataNotFound(f"{file} cannot be read as a score file ({exc}); evaluate again with --mode eval") from exc
    return dict(_flat(_whole(rows))) if rows else {}


def _whole(rows: list[dict[str, str]]) -> dict[str, str]:
    for name in _WHOLE:
        for row in rows:
            if any(str(value).lower() == name for value in row.values()):
                return row
    return rows[0]


def _flat(content: Any, prefix: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(content, Mapping):
        for name, value in content.items():
            yield from _flat(value, f"{prefix}{name}." if isinstance(value, Mapping) else f"{prefix}{name}")
        return
    try:
        yield prefix, float(content)
    except (TypeError, ValueError):
        return


def _predictions(file: Path, model: str, data: str) -> int | None:
    """Rows of the prediction file beside a score file, where it is a text file."""
    path = file.with_name(f"{model}_{data}.tsv")
    if not path.is_file():
        return None
    with path.open(encoding="utf-8", newline="") as lines:
        csv.field_size_limit(1 << 30)  # masks are long
        return max(0, sum(1 for _ in csv.reader(lines, delimiter="\t")) - 1)
