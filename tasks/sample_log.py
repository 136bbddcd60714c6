"""Write and read lmms-eval's sample log (``--log_samples``): one JSON line per document.

lmms-eval writes the whole of what a task returns for a document into the log, and lists each of its items among the
task's results, those that no metric sums as well: a row without a number. So what only the log should keep is held in
`DocumentScores` without being an item.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flmm_plugin.errors import BadAnnotation, DataNotFound, UnknownArgument

Record = Mapping[str, Any]

LOGGED_ALONE = frozenset({"reference"})

_FILE = re.compile(r"^(?P<run>.*)_samples_(?P<task>.+)\.jsonl$")


class DocumentScores(dict[str, Any]):
    """Scores of one document by metric, and beside them what only the sample log keeps (`LOGGED_ALONE`).

    Copies (``dict(scores)``, ``log.update(scores)``, ``{**scores}``) hold everything; `items` leaves the latter out.

    >>> scores = DocumentScores({"cIoU": 1, "reference": {"phrases": []}})
    >>> list(scores.items()), sorted(dict(scores))
    ([('cIoU', 1)], ['cIoU', 'reference'])
    """

    def items(self) -> Any:
        """Return the metrics alone, as a view."""
        return {name: self[name] for name in self if name not in LOGGED_ALONE}.items()


def reference_of(doc: Record, *fields: str) -> dict[str, Any]:
    """Return what the log keeps of a document to score its reply again: the picture, its size, and some fields."""
    return {
        **{name: doc.get(name) for name in fields},
        "size": [doc["height"], doc["width"]],
        "image_path": doc.get("image_path"),
    }


def referred_document(sample: Record, *fields: str) -> dict[str, Any]:
    """Return the document of a logged sample as far as `reference_of` kept it."""
    reference = sample["reference"]
    height, width = reference["size"]
    return {
        **{name: reference[name] for name in fields},
        "image_path": reference["image_path"],
        "height": height,
        "width": width,
        "expected_items": sample["complete"]["expected"],
    }


def reply_of(results: Any) -> str:
    """Return the first reply of what lmms-eval hands over or logs, however deep it is nested; "" for what is no text.

    >>> reply_of(["a"]), reply_of([["a", "b"]]), reply_of([None]), reply_of([])
    ('a', 'a', '', '')
    """
    while isinstance(results, list):
        results = results[0] if results else ""
    return results if isinstance(results, str) else ""


def find_samples(places: Sequence[Path]) -> list[Path]:
    """Return the sample files among files and folders, those in folders found at any depth.

    Raises:
        DataNotFound: A place does not exist, or a folder holds none.
    """
    found: list[Path] = []
    for place in places:
        if place.is_file():
            found.append(place)
            continue
        inside = sorted(path for path in place.rglob("*.jsonl") if _FILE.match(path.name)) if place.is_dir() else []
        if not inside:
            raise DataNotFound(
                f"no samples at {place}: give a *_samples_TASK.jsonl file, or a folder with some, as lmms_eval writes "
                "them with --log_samples --output_path FOLDER"
            )
        found += inside
    return found


def task_in_name(path: Path) -> str | None:
    """Return the task that a sample file's name says, None if it says none."""
    match = _FILE.match(path.name)
    return match["task"] if match else None


def task_of(path: Path) -> str:
    """Return the task that a sample file is of, by its name.

    Raises:
        UnknownArgument: The name does not say it.
    """
    task = task_in_name(path)
    if task is None:
        raise UnknownArgument(
            f"{path.name} does not say its task (as in 20260101_000000_samples_TASK.jsonl); use --task"
        )
    return task


def read_samples(path: Path) -> list[Record]:
    """Read the lines of a sample file, in document order.

    Raises:
        DataNotFound: There are none.
        BadAnnotation: A line is no JSON object, has no document number, or repeats one.
    """
    found: dict[int, Record] = {}
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                sample = _parsed(line, number, path)
                doc_id = int(sample["doc_id"])
                if doc_id in found:
                    raise BadAnnotation(
                        f"{path}, line {number}: document {doc_id} is there twice; two runs were written into one "
                        "file, keep one of them"
                    )
                found[doc_id] = sample
    except OSError as exc:
        raise DataNotFound(f"{path} cannot be read ({exc})") from exc
    except UnicodeDecodeError as exc:
        raise BadAnnotation(f"{path} is not UTF-8 ({exc}); lmms-eval writes UTF-8, get the unconverted file") from exc
    if not found:
        raise DataNotFound(f"{path} has no samples: the run ended before it wrote any")
    return [found[doc_id] for doc_id in sorted(found)]


def _parsed(line: str, number: int, path: Path) -> dict[str, Any]:
    try:
        sample = json.loads(line)
    except (ValueError, RecursionError) as exc:
        raise BadAnnotation(
            f"{path}, line {number} is cut or not JSON ({exc}); the run was killed while writing: run it again "
            "(answers come from lmms-eval's --use_cache), or delete that line to score what is left"
        ) from exc
    if not isinstance(sample, dict) or type(sample.get("doc_id")) is not int:
        raise BadAnnotation(f"{path}, line {number} is no sample of lmms-eval: it has no doc_id")
    return sample


def results_beside(path: Path) -> dict[str, Any]:
    """Return the content of the results file of a log's run; nothing if there is none that can be read."""
    match = _FILE.match(path.name)
    if match is None:
        return {}
    try:
        content = json.loads(path.with_name(f"{match['run']}_results.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def printed_numbers(path: Path, task: str) -> dict[str, float | int]:
    """Return what the run of a log printed for a task, by metric; nothing if its results file is not beside it."""
    content = results_beside(path).get("results", {}).get(task) or {}
    return {
        key.partition(",")[0]: value
        for key, value in content.items()
        if "," in key and "_stderr" not in key and isinstance(value, int | float)
    }
