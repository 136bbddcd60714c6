"""Compare the raw answers of two runs of lmms-eval, string by string."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flmm_plugin.errors import DataNotFound
from flmm_plugin.reports.lmms_eval_files import read_run
from flmm_plugin.reports.runs import Run, sample_lines


@dataclass(frozen=True)
class Sample:
    """One document of a task: what was asked, and what the model said."""

    question: str
    answer: str


@dataclass(frozen=True)
class Agreement:
    """Two models' answers to the same documents: how many are the same string, and the pairs that are not."""

    equal: int
    total: int
    differing: tuple[tuple[Sample, Sample], ...]


def newest_run(output_path: Path) -> Run:
    """Read the newest run under ``output_path``.

    Raises:
        DataNotFound: Nothing was written there.
    """
    written = sorted(output_path.rglob("*_results.json"), key=lambda path: path.stat().st_mtime)
    if not written:
        raise DataNotFound(
            f"no *_results.json of lmms-eval under {output_path}: run it with --output_path {output_path}"
        )
    return read_run(written[-1])


def answers(run: Run, task: str) -> dict[int, Sample]:
    """Return the logged samples of a task by document.

    Raises:
        DataNotFound: The task has no logged samples.
    """
    log = run.tasks[task].samples if task in run.tasks else None
    if log is None:
        raise DataNotFound(f"no samples of {task!r} were logged by {run.model}: run with --log_samples")
    return {int(line["doc_id"]): Sample(str(line["input"]), _answer(line)) for line in sample_lines(log)}


def compare_answers(ours: Run, theirs: Run, task: str) -> Agreement:
    """Compare two runs' raw answers to one task.

    Raises:
        DataNotFound: One run has documents, or questions, that the other has not.
    """
    left, right = answers(ours, task), answers(theirs, task)
    if {i: s.question for i, s in left.items()} != {i: s.question for i, s in right.items()}:
        raise DataNotFound(
            f"the two runs of {task!r} were not asked the same ({len(left)} and {len(right)} documents): "
            "run both on the same data with the same --limit"
        )
    differing = tuple((left[i], right[i]) for i in sorted(left) if left[i].answer != right[i].answer)
    return Agreement(equal=len(left) - len(differing), total=len(left), differing=differing)


def _answer(line: Mapping[str, Any]) -> str:
    # lmms-eval leaves the raw answer out where its filters changed nothing.
    answer = line["resps"] if "resps" in line else line["filtered_resps"]
    while isinstance(answer, list):  # nested once per repeat and per filter, depending on the version
        answer = answer[0]
    return str(answer)
