"""Collect how each combination of a model and a data set ended; the kit's own exit status is always 0."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flmm_plugin.adapters.vlmevalkit.benchmarks import BENCHMARKS
from flmm_plugin.adapters.vlmevalkit.messages import is_failure
from flmm_plugin.errors import BadAnnotation
from flmm_plugin.suggestions import did_you_mean

#: The kit's reasons for leaving a combination out that are failures.
_FAILURES = ("invalid_dataset", "No infer result found", "Incomplete infer result", "evaluate_returned_none")

_outcomes: dict[tuple[str, str], dict[str, Any]] = {}


def watched(upsert_dataset_status: Callable[..., Any], *args: Any, **state: Any) -> Any:
    """Call the kit's own note of a combination's state, and take it down here too."""
    note(**state)
    return upsert_dataset_status(*args, **state)


def note(**state: Any) -> None:
    """Take down what the kit says of a combination."""
    if "model_name" not in state or "dataset_name" not in state:
        return
    key = (str(state["model_name"]), str(state["dataset_name"]))
    if state.get("status") == "pending":
        _outcomes.pop(key, None)
    one = _outcomes.setdefault(key, {"problem": "it did not come to an end"})
    if state.get("prediction_file"):
        one["prediction_file"] = str(state["prediction_file"])
    if state.get("status") == "done":
        reason = state.get("skip_reason")
        one["problem"] = str(state.get("error_message") or (reason if reason in _FAILURES else "") or "")
        one["note"] = str(reason or "")


def summary() -> tuple[list[str], int]:
    """Return a line for each combination of this process, and the exit status: 1 if one has no result."""
    lines = []
    failed = all_samples = all_bad = 0
    for (model, data), one in _outcomes.items():
        samples, bad = failed_samples(one.get("prediction_file"))
        all_samples += samples
        all_bad += bad
        problem = _problem(data, one, everything_failed=0 < bad == samples)
        failed += bool(problem)
        line = f"flmm: {model} x {data}: " + (f"FAILED: {problem}" if problem else one.get("note") or "done")
        if bad:
            line += f"; {bad} of {samples} samples FAILED, start the same line again to retry them"
        lines.append(line)
    counts = []
    if failed:
        counts.append(f"{failed} of {len(_outcomes)} combinations have no result")
    if all_bad:
        counts.append(f"{all_bad} of {all_samples} samples FAILED")
    if counts:
        lines.append(f"flmm: {'; '.join(counts)}")
    return lines, int(failed > 0)


def _problem(data: str, one: Mapping[str, Any], everything_failed: bool) -> str:
    """Return why a combination has no result, in one line; "" if it has one."""
    file, problem = one.get("prediction_file"), " ".join(str(one["problem"]).split())
    if problem == "invalid_dataset":
        return problem + did_you_mean(data, BENCHMARKS, 0.6)
    if not problem and file and not Path(file).is_file():
        return f"there is no result file {file}"
    return problem or ("no sample could be answered" if everything_failed else "")


def failed_samples(prediction_file: Any) -> tuple[int, int]:
    """Count the rows of a result file, and those that are marked as failed; 0, 0 without a readable file."""
    path = Path(str(prediction_file or ""))
    if not path.is_file():
        return 0, 0
    from flmm_plugin.adapters.vlmevalkit import predictions  # pandas, which the kit has loaded by then

    try:
        replies = predictions.read(path)[predictions.ANSWERS]
    except BadAnnotation:
        return 0, 0
    return len(replies), sum(map(is_failure, map(str, replies)))


def report() -> int:
    """Print how every combination of this process ended, and return the exit status, 0 or 1.

    Of several processes, the first one prints.
    """
    lines, status = summary()
    if os.environ.get("RANK", "0") == "0":
        for line in lines:
            print(line, file=sys.stderr)
    return status


def report_at_the_end() -> None:
    """See that this process ends with the status of its combinations, which the kit's own run.py does not.

    Call this before other modules register what is done at the end: theirs is done first then.
    """
    atexit.register(_end)


def _end() -> None:
    # An error that nobody caught has a status of its own, and an interrupt a line of its own.
    uncaught = getattr(sys, "last_value", None)
    if _outcomes and not isinstance(uncaught, KeyboardInterrupt) and report() and uncaught is None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
