"""Compute every metric of a run again from the samples that lmms-eval logged: no model, no GPU, no data set.

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

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from tqdm import tqdm

from flmm_plugin.datasets.json_files import STRANGE
from flmm_plugin.errors import BadAnnotation, ToolNotFound, UnknownArgument
from flmm_plugin.tasks import predict_only
from flmm_plugin.tasks.metrics.bootstrap import LEVEL, RESAMPLES, Interval, statistic_of
from flmm_plugin.tasks.sample_log import (
    Record,
    printed_numbers,
    read_samples,
    reply_of,
    results_beside,
    task_in_name,
    task_of,
)
from flmm_plugin.tasks.task_files import aggregations, module_of, task_config, task_files

Source = Literal["auto", "predictions", "counts"]


@dataclass(frozen=True)
class Options:
    """Settings of a scoring.

    Attributes:
        source: ``predictions``, ``counts``, or ``auto``: predictions where the log allows it.
        resamples: Draws for an interval; 0: no intervals.
        level: Share of the draws that an interval holds, between 0 and 1.
        seed: Seed of the random draws, default 0.
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
        metric: Name of the metric, as printed.
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
        path: The samples file of the run.
        task: Name of the task that was run.
        documents: Number of lines in the log.
        source: What the numbers come from; ``data``: predictions, against the data set's reference.
        changed: Documents whose reply scores otherwise than when it was logged; 0 from counts.
        scores: One per metric, in the task's order.
    """

    path: Path
    task: str
    documents: int
    source: Literal["predictions", "counts", "data"]
    changed: int
    scores: tuple[Score, ...]


class Log:
    """One samples file, read.

    Args:
        path: Written by lmms-eval with ``--log_samples``.
        task: Name of the task that was run; None: as the file's name says.

    Attributes:
        lines: Its samples in document order; those of ``--predict_only`` scored from the data set.
        from_data: Whether they were scored so.

    Raises:
        DataNotFound: The file has no samples, or needs a data set that is not here.
        BadAnnotation: The name says that it is of another task; or a line is cut, or of a document that another line
            has already.
        UnknownArgument: There is no such task.
    """

    def __init__(self, path: Path, task: str | None = None) -> None:
        self.path = path
        self.task = task or task_of(path)
        self._scorer = _scorer_of(self.task)
        named = task_in_name(path)
        if named not in (None, self.task) and named in task_files():
            raise BadAnnotation(f"{path} is a log of {named} by its name, not of {self.task}; leave --task out")
        self.lines: Sequence[Record] = read_samples(path)
        self.from_data = all(map(predict_only.is_unscored, self.lines))
        if self.from_data:
            metadata = results_beside(path).get("configs", {}).get(self.task, {}).get("metadata") or {}
            annotations = str(metadata.get("annotations", ""))
            self.lines = predict_only.scored(self.lines, path, self.task, annotations, quiet())

    @property
    def has_references(self) -> bool:
        """True if replies can be scored anew: every line has what its reply was compared with."""
        return self._scorer is not None and all("reference" in line for line in self.lines)

    def score(self, line: Record, reply: str | None = None) -> Record:
        """Return what a logged document contributes to each metric, scored anew.

        Args:
            line: A sample, one of `lines`.
            reply: Another reply than the logged one; what somebody else said of that one (the scorer's ``KEPT``: a
                judge's verdicts) is then left out.

        Raises:
            BadAnnotation: The line lacks what its task needs.
        """
        assert self._scorer is not None, "ask has_references first"
        kept = getattr(self._scorer, "KEPT", ()) if reply is None else ()
        try:
            said = reply_of(line["filtered_resps"]) if reply is None else reply
            record = self._scorer.score_reply(self._scorer.logged_document(line), said)
            return {**{key: line[key] for key in kept if key in line}, **record}
        except BadAnnotation as exc:
            raise BadAnnotation(f"{self.path}: the reference of document {line['doc_id']} is damaged: {exc}") from exc
        except STRANGE as exc:
            raise BadAnnotation(
                f"{self.path}: document {line['doc_id']} lacks what {self.task} needs ({exc!r}); is it a log of that "
                "task, whole, and of this version? --from counts sums up what was logged"
            ) from exc


def _scorer_of(task: str) -> ModuleType | None:
    """Return the module that scores a task's replies, if it can score a logged sample again."""
    module = module_of(task_config(task).get("process_results"))  # None: scored by lmms-eval's own functions
    return module if hasattr(module, "score_reply") and hasattr(module, "logged_document") else None


def rescore(path: Path, task: str | None = None, options: Options | None = None) -> Rescored:
    """Score one samples file.

    Args:
        path: Written by lmms-eval with ``--log_samples``.
        task: Name of the task that was run; None: as the file's name says.
        options: Settings of the scoring; None: the defaults.

    Raises:
        DataNotFound, BadAnnotation: As `Log`; or a metric cannot be computed from what the lines hold.
        UnknownArgument: No such task or metric, or predictions asked for where the log lacks a reference.
    """
    how = options or Options()
    known = aggregations(task or task_of(path))
    unknown = [metric for metric in how.metrics if metric not in known]
    if unknown:
        raise UnknownArgument(f"{task or task_of(path)} has no metric {', '.join(unknown)}; it has {', '.join(known)}")
    log = Log(path, task)
    functions = {metric: function for metric, function in known.items() if not how.metrics or metric in how.metrics}
    source = _source(log, how)
    records = log.lines
    changed = 0
    if source == "predictions":
        records = [log.score(line) for line in tqdm(log.lines, desc=log.task, unit="doc", disable=quiet())]
        changed = sum(_differs(new, old, functions) for new, old in zip(records, log.lines, strict=True))
    printed = printed_numbers(path, log.task)
    scores = []
    for metric, aggregate in tqdm(functions.items(), desc="metrics", disable=quiet()):
        if any(metric in record for record in records):
            try:
                scores.append(score(metric, aggregate, records, how, printed.get(metric)))
            except (*STRANGE, AssertionError) as exc:
                raise BadAnnotation(
                    f"{path}: {metric} of {log.task} cannot be had from these documents ({exc!r}); is the log whole?"
                ) from exc
    missing = [metric for metric in how.metrics if metric not in {score.metric for score in scores}]
    if missing or not scores:
        listed = ", ".join(missing or functions)
        if any(metric in record for metric in known for record in records):
            raise BadAnnotation(f"{path}: the run logged no {listed}, for which it lacked something (a judge, boxes)")
        raise BadAnnotation(f"{path}: no line has {listed}; is it a log of {log.task}?")
    return Rescored(path, log.task, len(log.lines), source, changed, tuple(scores))


def _source(log: Log, how: Options) -> Literal["predictions", "counts", "data"]:
    """Choose what the numbers of a log come from."""
    if log.from_data:
        if how.source == "counts":
            raise UnknownArgument(
                f"{log.path.name} was written with --predict_only and has no counts; leave --from counts out"
            )
        return "data"
    if how.source == "predictions" and not log.has_references:
        raise UnknownArgument(
            f"{log.path.name} has no whole reference to score predictions of {log.task} against; use --from counts"
        )
    return "predictions" if log.has_references and how.source != "counts" else "counts"


def _differs(new: Record, old: Record, metrics: Mapping[str, Any]) -> bool:
    """Tell whether a document contributes something else now; both sides as JSON has them."""
    return any(
        json.loads(json.dumps(new[metric])) != old[metric] for metric in metrics if metric in new and metric in old
    )


def score(
    metric: str,
    aggregate: Callable[[Any], Any],
    records: Sequence[Record],
    how: Options,
    printed: float | int | None = None,
) -> Score:
    """Compute one metric from what the documents contribute to it.

    Args:
        metric: Name of the metric, as printed.
        aggregate: The task's function for it.
        records: What each document contributes, by metric.
        how: Options for the interval and the encoder.
        printed: Value that the run itself printed.
    """
    samples = [record[metric] for record in records if metric in record]
    if how.encoder is not None:
        samples = [
            {**sample, "encoder": how.encoder} if isinstance(sample, Mapping) and "encoder" in sample else sample
            for sample in samples
        ]
    try:
        value = aggregate(samples)
        interval = None
        if how.resamples and isinstance(value, float):
            statistic = statistic_of(aggregate)
            interval = statistic.interval(samples, resamples=how.resamples, level=how.level, seed=how.seed)
    except ToolNotFound as exc:
        return Score(metric, None, None, printed, str(exc))
    if value is None:
        return Score(metric, None, interval, printed, "the task gives none for these samples")
    if not isinstance(value, int | float):
        return Score(metric, None, None, None, "not a number; the run's results file has it")
    return Score(metric, value, interval, printed)


def quiet() -> bool:
    """Return whether nobody watches, so that no progress bar is drawn."""
    return not sys.stderr.isatty()
