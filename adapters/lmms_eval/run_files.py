"""What a run of lmms-eval left on disk (``--output_path``, ``--log_samples``), read back as records."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flmm_plugin.errors import DataNotFound


@dataclass(frozen=True)
class Sample:
    """One document of a task: what was asked, what the model said, what the task holds to be right."""

    doc_id: int
    question: str
    answer: str
    target: str


@dataclass(frozen=True)
class Run:
    """One run: ``scores[task][metric]`` and, where samples were logged, ``samples[task]`` in document order."""

    model: str
    model_args: str
    scores: dict[str, dict[str, float]]
    samples: dict[str, tuple[Sample, ...]]
    seconds: float

    def answers(self, task: str) -> dict[int, Sample]:
        """The samples of a task by document.

        Raises:
            DataNotFound: The task has no logged samples.
        """
        if task not in self.samples:
            raise DataNotFound(f"no samples of {task!r} were logged by {self.model}: run with --log_samples")
        return {sample.doc_id: sample for sample in self.samples[task]}


@dataclass(frozen=True)
class Agreement:
    """Two models' answers to the same documents: how many are the same string, and the pairs that are not."""

    equal: int
    total: int
    differing: tuple[tuple[Sample, Sample], ...]


def read_run(output_path: Path) -> Run:
    """Read the newest run under ``output_path``.

    Raises:
        DataNotFound: Nothing was written there.
    """
    written = sorted(output_path.rglob("*_results.json"), key=lambda path: path.stat().st_mtime)
    if not written:
        raise DataNotFound(
            f"no *_results.json of lmms-eval under {output_path}: run it with --output_path {output_path}"
        )
    newest = written[-1]
    content = json.loads(newest.read_text(encoding="utf-8"))
    stem = newest.name.removesuffix("_results.json")
    prefix = f"{stem}_samples_"
    samples = {
        path.stem.removeprefix(prefix): tuple(
            sorted((_sample(json.loads(line)) for line in path.open(encoding="utf-8")), key=lambda s: s.doc_id)
        )
        for path in sorted(newest.parent.glob(f"{prefix}*.jsonl"))
    }
    config = content["config"]
    return Run(
        model=str(config["model"]),
        model_args=str(config["model_args"] or ""),
        scores={task: _scores(values) for task, values in content["results"].items()},
        samples=samples,
        seconds=float(content["total_evaluation_time_seconds"]),
    )


def compare_answers(ours: Run, theirs: Run, task: str) -> Agreement:
    """Hold two runs' raw answers to one task against each other, string by string.

    Raises:
        DataNotFound: One run has documents, or questions, that the other has not.
    """
    left, right = ours.answers(task), theirs.answers(task)
    if {i: s.question for i, s in left.items()} != {i: s.question for i, s in right.items()}:
        raise DataNotFound(
            f"the two runs of {task!r} were not asked the same ({len(left)} and {len(right)} documents): "
            "run both on the same data with the same --limit"
        )
    differing = tuple((left[i], right[i]) for i in sorted(left) if left[i].answer != right[i].answer)
    return Agreement(equal=len(left) - len(differing), total=len(left), differing=differing)


def _scores(values: dict[str, Any]) -> dict[str, float]:
    """Metric values alone: lmms-eval writes ``"metric,filter"`` keys beside aliases and standard errors."""
    return {
        key.partition(",")[0]: float(value)
        for key, value in values.items()
        if "," in key and "_stderr" not in key and isinstance(value, (int, float))
    }


def _sample(line: dict[str, Any]) -> Sample:
    # lmms-eval leaves the raw answer out where its filters changed nothing.
    answer = line["resps"] if "resps" in line else line["filtered_resps"]
    while isinstance(answer, list):  # nested once per repeat and per filter, depending on the version
        answer = answer[0]
    return Sample(int(line["doc_id"]), str(line["input"]), str(answer), str(line["target"]))
