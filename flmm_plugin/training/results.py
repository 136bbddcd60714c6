"""What a run remembers on its way, and what came out of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from flmm_plugin.training.validation import Scores


@dataclass
class Progress:
    """What a run remembers beside its weights; plain data, in every checkpoint.

    Attributes:
        step: Steps done.
        unusable: Samples of the current epoch that could not be used, over all processes.
        best: Score of the best validation, None before the first.
        best_step: When that was.
        stale: Validations since then.
        bad_in_a_row: Steps without a usable gradient, up to now.
        seconds: That the run took so far, in all its parts.
    """

    step: int = 0
    unusable: int = 0
    best: float | None = None
    best_step: int = 0
    stale: int = 0
    bad_in_a_row: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class TrainedRun:
    """What came out of a run.

    Attributes:
        heads: File of the best heads.
        last: File of the heads after the last step.
        steps: Steps done.
        best_step: Step of the best heads.
        scores: Of the last validation; None without one.
        best_score: Of the best heads, by the recipe's metric.
        problems: Counts of what could not be used, by kind.
        seconds: That it took, in all its parts.
        stopped_early: Because nothing got better.
    """

    heads: Path
    last: Path
    steps: int
    best_step: int
    scores: Scores | None
    best_score: float | None
    problems: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    stopped_early: bool = False
