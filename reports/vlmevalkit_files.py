"""VLMEvalKit's result files: one small table of scores per model and data set.

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

from flmm_plugin import files
from flmm_plugin.errors import DataNotFound
from flmm_plugin.public import public
from flmm_plugin.reports.lmms_eval_files import OFFICIAL_DOCUMENTS, conditions, items_said, recorded_options, short_hash
from flmm_plugin.reports.provenance import Provenance, text
from flmm_plugin.reports.result_files import Run, TaskResult, named

_ENDING = re.compile(r"_(score|acc|metrics|rating)\.(csv|json)$")
_RUN_FOLDER = re.compile(r"^T\d{8}")
_AGAIN = "evaluate again with --mode eval"
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
        with named(folder, "folder of results of VLMEvalKit"):
            run = _run(folder, tasks)
        yield run


def _named(file: Path) -> tuple[Path, str] | None:
    """Model folder and data set of a score file; None for a file that is not named after its folder."""
    folder = file.parent.parent if _RUN_FOLDER.match(file.parent.name) else file.parent
    stem = _ENDING.sub("", file.name)
    prefix = f"{folder.name}_"
    return (folder, stem.removeprefix(prefix)) if stem.startswith(prefix) else None


def _run(folder: Path, files: Mapping[str, Path]) -> Run:
    model = folder.name
    tasks: dict[str, TaskResult] = {}
    record: Mapping[str, Any] = {}
    for data, file in sorted(files.items()):
        metrics = scores(file)
        if metrics:
            own = _beside(file, model, data, "_flmm.json")
            record = own or record
            n = _predictions(file, model, data)
            made_of = _beside(file, model, data, "_flmm_tasks.json")
            if made_of:
                tasks.update(_parts(metrics, made_of, _conditions(own, file)))
            else:
                provenance = replace(_conditions(own, file), n="" if n is None else str(n))
                tasks[data] = TaskResult(data, metrics, n, None, None, {}, provenance)
    said = public(recorded_options(record))
    return Run(
        path=folder,
        harness="VLMEvalKit",
        model=said.pop("name", model),
        weights=said.get("pretrained", model),
        flmm=bool(record) or model.lower().startswith("flmm"),
        options=said,
        tasks=tasks,
        date=max((file.parent.name for file in files.values() if _RUN_FOLDER.match(file.parent.name)), default=""),
    )


def _beside(file: Path, model: str, data: str, ending: str) -> Mapping[str, Any]:
    """What this package wrote beside a score file; nothing where it did not."""
    path = file.with_name(f"{model}_{data}{ending}")
    content = files.read_json(path, DataNotFound, _AGAIN) if path.is_file() else {}
    return content if isinstance(content, Mapping) else {}


def _conditions(record: Mapping[str, Any], file: Path) -> Provenance:
    kit = (record.get("versions") or {}).get("vlmeval")
    harness = f"VLMEvalKit (ms-vlmeval {kit})" if kit else "VLMEvalKit"
    return replace(conditions({}, {}, record, {}, file), harness=harness)


def _parts(
    metrics: Mapping[str, float], made_of: Mapping[str, Any], provenance: Provenance
) -> Iterator[tuple[str, TaskResult]]:
    """The tasks of a benchmark; a metric of one of several is named ``label.metric``."""
    for label, facts in made_of.items():
        task = str(facts["task"])
        start = f"{label}." if label else ""
        own = {name.removeprefix(start): value for name, value in metrics.items() if name.startswith(start)}
        if own:
            n = int(own["items"]) if "items" in own else None
            complete = bool(own["complete"]) if "complete" in own else None
            official = OFFICIAL_DOCUMENTS.get(task)
            data = short_hash(text(facts, "annotations"))
            stated = replace(provenance, n=items_said(n, official, complete), data=data)
            yield task, TaskResult(task, own, n, official, complete, {}, stated)


def scores(file: Path) -> dict[str, float]:
    """The numbers of one score file by column name; of several rows, the one that stands for the whole.

    Raises:
        DataNotFound: It is damaged.
    """
    with named(file, "score file of VLMEvalKit"):
        if file.suffix == ".json":
            content = files.read_json(file, DataNotFound, _AGAIN)
            return dict(_flat(content[0] if isinstance(content, list) and content else content))
        with file.open(encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines))
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
    except (TypeError, ValueError, OverflowError):
        return


def _predictions(file: Path, model: str, data: str) -> int | None:
    """Rows of the prediction file beside a score file, where it is a text file."""
    path = file.with_name(f"{model}_{data}.tsv")
    if not path.is_file():
        return None
    with path.open(encoding="utf-8", newline="") as lines:
        csv.field_size_limit(1 << 30)  # masks are long
        return max(0, sum(1 for _ in csv.reader(lines, delimiter="\t")) - 1)
