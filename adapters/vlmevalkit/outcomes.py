"""How each combination of a model and a data set ended; the kit's own exit status is 0 whatever happened."""

from __future__ import annotations

import atexit
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flmm_plugin import files
from flmm_plugin.adapters.vlmevalkit.benchmarks import BENCHMARKS
from flmm_plugin.adapters.vlmevalkit.messages import is_failure
from flmm_plugin.errors import BadAnnotation
from flmm_plugin.nearest import did_you_mean

#: A file that the outcomes are also written to, for the process that started this one.
OUTCOMES_VARIABLE = "FLMM_VLMEVAL_OUTCOMES"

#: The kit's reasons for leaving a combination out that are failures.
_FAILURES = ("invalid_dataset", "No infer result found", "Incomplete infer result", "evaluate_returned_none")

_outcomes: dict[tuple[str, str], dict[str, Any]] = {}


def watched(original: Callable[..., Any]) -> Callable[..., Any]:
    """The kit's own note of a combination's state, also taken here."""

    def upsert(*args: Any, **kwargs: Any) -> Any:
        note(kwargs)
        return original(*args, **kwargs)

    return upsert


def note(state: Mapping[str, Any]) -> None:
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
    written = os.environ.get(OUTCOMES_VARIABLE)
    if written and _is_first():
        listed = [[*key, one] for key, one in _outcomes.items()]
        files.write(Path(written), json.dumps(listed))


def collected(path: Path | None = None) -> dict[tuple[str, str], dict[str, Any]]:
    """The outcomes of this process, or those that another one wrote."""
    if path is None:
        return dict(_outcomes)
    content = path.read_text(encoding="utf-8") if path.is_file() else ""
    return {(model, data): one for model, data, one in json.loads(content or "[]")}


def summary(found: Mapping[tuple[str, str], Mapping[str, Any]]) -> tuple[list[str], int]:
    """Write the lines for a reader, and the exit status: 1 if a combination has no result."""
    lines, failed, samples, lost = [], 0, 0, 0
    for (model, data), one in found.items():
        file = one.get("prediction_file")
        answers, bad = failed_samples(file)
        samples, lost = samples + answers, lost + bad
        problem = str(one["problem"])
        if problem == "invalid_dataset":
            problem += did_you_mean(data, BENCHMARKS, 0.6)
        if not problem and file and not Path(file).is_file():
            problem = f"there is no result file {file}"
        if not problem and bad and bad == answers:
            problem = "no sample could be answered"
        said = f"flmm: {model} x {data}: "
        if problem:
            failed += 1
            said += f"FAILED: {' '.join(problem.split())}"
        else:
            said += one.get("note") or "done"
        if bad:
            said += f"; {bad} of {answers} samples FAILED, start the same line again to retry them"
        lines.append(said)
    last = [f"{failed} of {len(found)} combinations have no result"] * (failed > 0)
    last += [f"{lost} of {samples} samples FAILED"] * (lost > 0)
    return [*lines, *(["flmm: " + "; ".join(last)] if last else [])], int(failed > 0)


def failed_samples(prediction_file: Any) -> tuple[int, int]:
    """Rows of a result file, and how many of them are marked as failed; 0, 0 without a readable file of the kit's."""
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
    """Say how every combination of this process ended, in the first of several processes.

    Returns:
        Exit status, 0 or 1.
    """
    lines, status = summary(collected())
    if _is_first() and not os.environ.get(OUTCOMES_VARIABLE):
        for line in lines:
            print(line, file=sys.stderr)
    return status


def report_at_the_end() -> None:
    """See that this process ends with the status of its combinations, which the kit's own run.py does not.

    To be called before other modules ask to be called at the end: what they ask for is done first.
    """
    atexit.register(_end)


def _is_first() -> bool:
    """Tell whether this process is the one of several that speaks."""
    return int(os.environ.get("RANK", "0")) == 0


def _end() -> None:
    # An error that nobody caught has a status of its own, and an interrupt a line of its own.
    uncaught = getattr(sys, "last_value", None)
    if _outcomes and not isinstance(uncaught, KeyboardInterrupt) and report() and uncaught is None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
