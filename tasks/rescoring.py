"""Every metric of a run again, from the samples that lmms-eval logged: no model, no GPU, no data set.

A line of the log (``--log_samples``) has the reply, what it was compared with (``reference``) and what the document
contributed to each metric. Two ways lead from there to the numbers:

- from the *predictions*: each reply is scored anew against the reference, by the scoring code of this version;
- from the *counts*: what was logged for each document is summed up again. This is the way for tasks whose log has no
  whole reference (a judge's verdicts, boxes of unopened pictures).

A log of ``--predict_only`` has neither reference nor counts: its reference is read from the *data* set once more.

Either way the printed number comes from the same functions that the run used. Intervals come from drawing documents
again and again (`flmm_plugin.tasks.metrics.bootstrap`).
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from tqdm import tqdm

from flmm_plugin.datasets.json_files import STRANGE
from flmm_plugin.errors import BadAnnotation, DataNotFound, ToolNotFound, UnknownArgument
from flmm_plugin.tasks import sample_scores, unscored
from flmm_plugin.tasks.metrics.bootstrap import LEVEL, RESAMPLES, Interval, Ratio, Statistic, plain
from flmm_plugin.tasks.task_files import aggregations, task_config, task_files

Source = Literal["auto", "predictions", "counts"]
Record = Mapping[str, Any]

_FILE = re.compile(r"^(?P<run>.*)_samples_(?P<task>.+)\.jsonl$")


@dataclass(frozen=True)
class Options:
    """How to score.

    Attributes:
        source: ``predictions``, ``counts``, or ``auto``: predictions where the log allows it.
        resamples: Draws for an interval; 0: no intervals.
        level: Share of the draws that an interval holds.
        seed: Of the draws.
        encoder: A sentence encoder to take instead of the logged one, for metrics that compare phrases.
        metrics: Only these; none: all of the task.
    """

    source: Source = "auto"
    resamples: int = RESAMPLES
    level: float = LEVEL
    seed: int = 0
    encoder: str | None = None
    metrics: tuple[str, ...] = ()


@dataclass(frozen=True)
class Score:
    """One metric.

    Attributes:
        metric: Its name.
        value: None if it could not be computed; `problem` says why.
        interval: None for counts, and where none was asked for.
        printed: What the run printed, None if its results file is not beside the samples or lacks it.
        problem: Why there is no value, "" if there is one.
    """

    metric: str
    value: float | int | None
    interval: Interval | None
    printed: float | int | None
    problem: str = ""


@dataclass(frozen=True)
class Rescored:
    """All metrics of one samples file.

    Attributes:
        path: The file.
        task: Of which task.
        documents: How many lines it has.
        source: What the numbers come from; ``data``: predictions, against the data set's reference.
        changed: Documents whose reply scores otherwise than when it was logged; 0 from counts.
        scores: In the task's order.
    """

    path: Path
    task: str
    documents: int
    source: Literal["predictions", "counts", "data"]
    changed: int
    scores: tuple[Score, ...]


def find_samples(places: Sequence[Path]) -> list[Path]:
    """Sample files among files and folders, those in folders found at any depth.

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


def task_of(path: Path) -> str:
    """The task that a samples file is of, by its name.

    Raises:
        UnknownArgument: The name does not say it.
    """
    match = _FILE.match(path.name)
    if match is None:
        raise UnknownArgument(
            f"{path.name} does not say its task (as in 20260101_000000_samples_TASK.jsonl); use --task"
        )
    return match["task"]


def rescore(path: Path, task: str | None = None, options: Options | None = None) -> Rescored:
    """Score one samples file.

    Args:
        path: Written by lmms-eval with ``--log_samples``.
        task: Whose; None: as the file's name says.
        options: How; None: the defaults.

    Raises:
        DataNotFound: The file has no samples, or needs a data set that is not here.
        BadAnnotation: A line is cut, not of this task, or of a document that another line has already.
        UnknownArgument: No such task or metric, or predictions asked for where the log lacks a reference.
    """
    how, name = options or Options(), task or task_of(path)
    known = aggregations(name)
    functions = _chosen(name, known, how.metrics)
    lines, from_data = documents_of(path, name)
    scorer = scorer_of(name)
    anew = scorer is not None and all("reference" in line for line in lines)
    if how.source == "predictions" and not anew and not from_data:
        raise UnknownArgument(
            f"{path.name} has no whole reference to score predictions of {name} against; use --from counts"
        )
    if how.source == "counts" and from_data:
        raise UnknownArgument(f"{path.name} was written with --predict_only and has no counts; leave --from counts out")
    records, changed = lines, 0
    source: Literal["predictions", "counts", "data"] = "data" if from_data else "counts"
    if scorer is not None and anew and not from_data and how.source != "counts":
        source = "predictions"
        records = [score_line(scorer, line, path, name) for line in tqdm(lines, desc=name, unit="doc", disable=quiet())]
        changed = sum(_differs(new, old, functions) for new, old in zip(records, lines, strict=True))
    printed = _printed(path, name)
    scores = []
    for metric, aggregate in tqdm(functions.items(), desc="metrics", disable=quiet()):
        if any(metric in record for record in records):
            try:
                scores.append(score(metric, aggregate, records, how, printed.get(metric)))
            except (*STRANGE, AssertionError) as exc:
                raise BadAnnotation(
                    f"{path}: {metric} of {name} cannot be had from these documents ({exc!r}); is the log whole?"
                ) from exc
    missing = [metric for metric in how.metrics if metric not in {score.metric for score in scores}]
    if missing or not scores:
        listed = ", ".join(missing or functions)
        if any(metric in record for metric in known for record in records):
            raise BadAnnotation(f"{path}: the run logged no {listed}, for which it lacked something (a judge, boxes)")
        raise BadAnnotation(f"{path}: no line has {listed}; is it a log of {name}?")
    return Rescored(path, name, len(lines), source, changed, tuple(scores))


def documents_of(path: Path, task: str) -> tuple[list[Record], bool]:
    """The lines of a log, and whether they were scored here because ``--predict_only`` had not.

    Raises:
        DataNotFound, UnknownArgument: As `rescore`.
        BadAnnotation: The file's name says that it is of another task; or as `read_samples`.
    """
    match = _FILE.match(path.name)
    if match is not None and match["task"] != task and match["task"] in task_files():
        raise BadAnnotation(f"{path} is a log of {match['task']} by its name, not of {task}; leave --task out")
    lines = list(read_samples(path))
    if not all(map(unscored.is_unscored, lines)):
        return lines, False
    metadata = _results(path).get("configs", {}).get(task, {}).get("metadata") or {}
    return unscored.scored(lines, path, task, str(metadata.get("annotations", "")), quiet()), True


def read_samples(path: Path) -> Iterator[Record]:
    """The lines of a samples file, in document order.

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
    return iter([found[doc_id] for doc_id in sorted(found)])


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


def reply_of(sample: Record) -> str:
    """The model's reply in a logged sample; lmms-eval nests it once per repeat and filter, by version."""
    return sample_scores.reply_of(sample["filtered_resps"])


def _chosen(
    task: str, functions: dict[str, Callable[[Any], Any]], wanted: Sequence[str]
) -> dict[str, Callable[[Any], Any]]:
    unknown = [metric for metric in wanted if metric not in functions]
    if unknown:
        raise UnknownArgument(f"{task} has no metric {', '.join(unknown)}; it has {', '.join(functions)}")
    return {metric: function for metric, function in functions.items() if not wanted or metric in wanted}


def scorer_of(task: str) -> ModuleType | None:
    """The module ``scoring`` beside what scores a task's replies, if it can score a logged sample again."""
    package = str(task_config(task).get("process_results", "")).rpartition(".")[0].rpartition(".")[0]
    if not package.startswith("flmm_plugin."):
        return None  # a stock task on this package's data, scored by lmms-eval's own functions
    name = f"{package}.scoring"
    if importlib.util.find_spec(name) is None:
        return None
    module = importlib.import_module(name)
    return module if hasattr(module, "score_reply") and hasattr(module, "logged_document") else None


def score_line(scorer: ModuleType, line: Record, path: Path, task: str, reply: str | None = None) -> Record:
    """What a logged document contributes to each metric, scored anew.

    Args:
        scorer: Of `scorer_of`.
        line: Of the log.
        path: The log, to be named in errors.
        task: Whose.
        reply: Another reply than the logged one; what somebody else said of that one (``scorer.KEPT``: a judge's
            verdicts) is then left out.

    Raises:
        BadAnnotation: The line lacks what its task needs.
    """
    try:
        kept = {key: line[key] for key in getattr(scorer, "KEPT", ()) if key in line and reply is None}
        said = reply_of(line) if reply is None else reply
        record: Record = {**kept, **scorer.score_reply(scorer.logged_document(line), said)}
    except BadAnnotation as exc:
        raise BadAnnotation(f"{path}: the reference of document {line['doc_id']} is damaged: {exc}") from exc
    except STRANGE as exc:
        raise BadAnnotation(
            f"{path}: document {line['doc_id']} lacks what {task} needs ({exc!r}); is it a log of that task, whole, "
            "and of this version? --from counts sums up what was logged"
        ) from exc
    return record


def _differs(new: Record, old: Record, metrics: Mapping[str, Any]) -> bool:
    """Whether a document contributes something else now; both sides as JSON has them."""
    return any(
        json.loads(json.dumps(new[metric])) != old[metric] for metric in metrics if metric in new and metric in old
    )


def score(
    metric: str, aggregate: Callable[[Any], Any], lines: Sequence[Record], how: Options, printed: float | int | None
) -> Score:
    """One metric from what the documents contribute to it."""
    samples = [line[metric] for line in lines if metric in line]
    if how.encoder is not None:
        samples = [
            {**sample, "encoder": how.encoder} if isinstance(sample, Mapping) and "encoder" in sample else sample
            for sample in samples
        ]
    try:
        value = aggregate(samples)
        interval = None
        if how.resamples and isinstance(value, float):
            interval = _statistic(metric, aggregate).interval(
                samples, resamples=how.resamples, level=how.level, seed=how.seed
            )
    except ToolNotFound as exc:
        return Score(metric, None, None, printed, str(exc))
    if value is not None and not isinstance(value, int | float):
        return Score(metric, None, None, None, "not a number; the run's results file has it")
    return Score(metric, value, interval, printed, "" if value is not None else "the task gives none for these samples")


def _statistic(metric: str, aggregate: Callable[[Any], Any]) -> Statistic | Ratio:
    known: Mapping[str, Statistic | Ratio] = getattr(inspect.getmodule(aggregate), "STATISTICS", {})
    return known.get(metric) or plain(aggregate)


def _printed(path: Path, task: str) -> dict[str, float | int]:
    """What the run printed, from the results file beside its samples; nothing if there is none."""
    content = _results(path).get("results", {}).get(task) or {}
    return {
        key.partition(",")[0]: value
        for key, value in content.items()
        if "," in key and "_stderr" not in key and isinstance(value, int | float)
    }


def _results(path: Path) -> dict[str, Any]:
    """The results file beside a log; nothing if there is none, or none that can be read."""
    match = _FILE.match(path.name)
    results = path.with_name(f"{match['run']}_results.json") if match else path
    try:
        content = json.loads(results.read_text(encoding="utf-8")) if match else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def quiet() -> bool:
    """Whether nobody watches, so that no bar is drawn."""
    return not sys.stderr.isatty()
