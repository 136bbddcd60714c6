"""Read VLMEvalKit's result files: one small table of scores per model and data set.

Layouts read, both kits (open-compass, 2026-08, and ms-vlmeval 0.0.20)::

    <work>/<model>/T20260818-120000/<model>_<data>_score.csv     the first kit; links to it lie in <work>/<model>/
    <work>/<model>/<model>_<data>_acc.csv                        the second kit

Endings differ by data set (``_score``, ``_acc``, ``_metrics``, ``.csv`` or ``.json``) and so do their columns; what can
be read as a number is kept under its column's name. A benchmark of this package is read as the tasks that it is made of
(``<model>_<data>_flmm_tasks.json``), under their names and in their units. The kit records no versions, dtype or kernel
with a score: those stay "not recorded", but for this package's models, which leave a record
(``<model>_<data>_flmm.json``). A percentage is written as a fraction by some data sets and as it is by others: a layout
says for its columns that a value of at most 1 is a fraction.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from flmm_plugin.errors import DataNotFound
from flmm_plugin.files import read_json
from flmm_plugin.redaction import public
from flmm_plugin.reports.lmms_eval_files import OFFICIAL_DOCUMENTS
from flmm_plugin.reports.runs import (
    Provenance,
    Run,
    TaskResult,
    items_scored,
    named,
    plugin_conditions,
    plugin_options,
    short_hash,
    text,
)

_ENDING = re.compile(r"_(score|acc|metrics|rating)\.(csv|json)$")
_RUN_FOLDER = re.compile(r"^T\d{8}")
_AGAIN = "evaluate again with --mode eval"
#: Rows of a table of splits that stand for the whole, best first.
_WHOLE = ("overall", "none", "dev", "val", "test", "all")


def read(path: Path) -> Iterator[Run]:
    """Read one run per model folder under ``path`` (or the run of the one file that ``path`` is)."""
    found = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    newest: dict[Path, dict[str, Path]] = {}
    for file in dict.fromkeys(file.resolve() for file in found if _ENDING.search(file.name)):
        folder = file.parent.parent if _RUN_FOLDER.match(file.parent.name) else file.parent
        stem, prefix = _ENDING.sub("", file.name), f"{folder.name}_"
        if not stem.startswith(prefix):
            continue
        # A model folder may hold several dated runs; the newest file of a data set counts.
        of_folder = newest.setdefault(folder, {})
        older = of_folder.get(stem.removeprefix(prefix))
        if older is None or file.stat().st_mtime >= older.stat().st_mtime:
            of_folder[stem.removeprefix(prefix)] = file
    for folder, by_data in sorted(newest.items()):
        with named(folder, "folder of results of VLMEvalKit"):
            run = _run(folder, by_data)
        yield run


def _run(folder: Path, by_data: Mapping[str, Path]) -> Run:
    """Return a run of the score files in one model folder, by name of their data sets."""
    tasks: dict[str, TaskResult] = {}
    record: Mapping[str, Any] = {}
    for data, file in sorted(by_data.items()):
        metrics = scores(file)
        if not metrics:
            continue
        prefix = f"{folder.name}_{data}"
        own = _written_by_plugin(file.with_name(f"{prefix}_flmm.json"))
        record = own or record
        provenance = _conditions(own, file)
        parts = _written_by_plugin(file.with_name(f"{prefix}_flmm_tasks.json"))
        if parts:
            tasks.update(_parts(metrics, parts, provenance))
        else:
            n = _count_predictions(file.with_name(f"{prefix}.tsv"))
            provenance = replace(provenance, n=items_scored(n, None, None))
            tasks[data] = TaskResult(data, metrics, n, None, None, {}, provenance)
    options = public(plugin_options(record))
    return Run(
        path=folder,
        harness="VLMEvalKit",
        model=options.pop("name", folder.name),
        weights=options.get("pretrained", folder.name),
        flmm=bool(record) or folder.name.lower().startswith("flmm"),
        options=options,
        tasks=tasks,
        date=max((file.parent.name for file in by_data.values() if _RUN_FOLDER.match(file.parent.name)), default=""),
    )


def _written_by_plugin(path: Path) -> Mapping[str, Any]:
    """Read a file that this package writes beside a score file; nothing where there is none."""
    content = read_json(path, DataNotFound, _AGAIN) if path.is_file() else {}
    return content if isinstance(content, Mapping) else {}


def _conditions(record: Mapping[str, Any], file: Path) -> Provenance:
    kit = (record.get("versions") or {}).get("vlmeval")
    harness = f"VLMEvalKit (ms-vlmeval {kit})" if kit else "VLMEvalKit"
    return Provenance(**plugin_conditions(record), harness=harness, file=file.name)


def _parts(
    metrics: Mapping[str, float], parts: Mapping[str, Any], provenance: Provenance
) -> Iterator[tuple[str, TaskResult]]:
    """Return the tasks that a benchmark is made of; a metric of one of several is named ``label.metric``."""
    for label, facts in parts.items():
        task = str(facts["task"])
        start = f"{label}." if label else ""
        own = {name.removeprefix(start): value for name, value in metrics.items() if name.startswith(start)}
        if own:
            n = int(own["items"]) if "items" in own else None
            complete = bool(own["complete"]) if "complete" in own else None
            official = OFFICIAL_DOCUMENTS.get(task)
            data = short_hash(text(facts, "annotations"))
            of_task = replace(provenance, n=items_scored(n, official, complete), data=data)
            yield task, TaskResult(task, own, n, official, complete, {}, of_task)


def scores(file: Path) -> dict[str, float]:
    """Read the numbers of one score file by column name; of several rows, the one that stands for the whole.

    Raises:
        DataNotFound: It is damaged.
    """
    with named(file, "score file of VLMEvalKit"):
        if file.suffix == ".json":
            content = read_json(file, DataNotFound, _AGAIN)
            return dict(_numbers(content[0] if isinstance(content, list) and content else content))
        with file.open(encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines))
        return dict(_numbers(_whole(rows))) if rows else {}


def _whole(rows: list[dict[str, str]]) -> dict[str, str]:
    for name in _WHOLE:
        for row in rows:
            if any(str(value).lower() == name for value in row.values()):
                return row
    return rows[0]


def _numbers(content: Any, prefix: str = "") -> Iterator[tuple[str, float]]:
    """Return every number in nested mappings, named by the keys that lead to it."""
    if isinstance(content, Mapping):
        for name, value in content.items():
            yield from _numbers(value, f"{prefix}{name}." if isinstance(value, Mapping) else f"{prefix}{name}")
        return
    try:
        yield prefix, float(content)
    except (TypeError, ValueError, OverflowError):
        return


def _count_predictions(path: Path) -> int | None:
    """Count the rows of a prediction file; None where it is no text file."""
    if not path.is_file():
        return None
    with path.open(encoding="utf-8", newline="") as lines:
        csv.field_size_limit(1 << 30)  # masks are long
        return max(0, sum(1 for _ in csv.reader(lines, delimiter="\t")) - 1)
