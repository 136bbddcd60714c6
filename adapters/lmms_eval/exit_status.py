"""End an evaluation of lmms-eval with status 0 only if everything that was asked for is there.

lmms-eval catches whatever an evaluation raises, prints it and ends with 0; results that it cannot write are a warning.
So three of its functions are wrapped, once: `evaluator.simple_evaluate` (looks at everything first, and ends the
process with a status when it raises) and the two methods of `EvaluationTracker` that write files. This holds for the
``lmms_eval`` command with every model, and for ``python -m lmms_eval``, ``accelerate launch -m lmms_eval`` and
``torchrun -m lmms_eval`` with the models of this package. In Python, errors are raised as ever.

A rank that fails ends at once: its launcher, or the broken connection, then ends the others, which would wait for it.
"""

from __future__ import annotations

import atexit
import contextlib
import inspect
import json
import os
import sqlite3
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flmm_plugin.adapters.answering.defaults import answers_with_masks
from flmm_plugin.adapters.patching import wrap_once
from flmm_plugin.errors import FlmmError, OutputFailed, UnknownArgument
from flmm_plugin.exit_codes import FAILED, INTERRUPTED, TERMINATED, Terminated, named, say, terminable
from flmm_plugin.suggestions import did_you_mean

NAME = "lmms_eval"
#: Words for ``--tasks`` that ask for a list, not for a run.
LISTS = ("list", "list_groups", "list_tags", "list_subtasks")


@dataclass
class Run:
    """Record of what this process was asked for and has delivered.

    Attributes:
        every_model: Whether other models' failures count too: in the ``lmms_eval`` command.
        open: Whether an evaluation was begun and has not ended well.
        failed: Whether something that was asked for is not there.
        lines: What to say at the end.
        unanswered: How many documents of each task have no answer, over all ranks.
    """

    every_model: bool = False
    open: bool = False
    failed: bool = False
    lines: list[str] = field(default_factory=list)
    unanswered: dict[str, int] = field(default_factory=dict)

    def fail(self, line: str) -> None:
        """Note something that was asked for and is not there."""
        self.failed = True
        self.lines.append(line)

    def close(self) -> int:
        """Say what there is to say; the exit status, 0 if all was delivered."""
        if self.open and not self.failed:
            self.fail("the evaluation did not end well; what it said is above")
        for line in self.lines:
            say(NAME, line)
        return 1 if self.failed else 0


#: Of this process.
run = Run()


def begin(model: Any) -> None:
    """Owe a result from here on: lmms-eval makes its index of tasks.

    Args:
        model: Name or object that the index is for; None in listings.
    """
    _wrap()
    lists = any(word.rpartition("=")[2] in LISTS for word in sys.argv)
    if lists or not (_is_command() and (run.every_model or answers_with_masks(model))):
        return
    if not run.every_model and not run.open:
        atexit.register(_at_exit)
    run.open = True


def match_or_end(manager: Any, names: list[str], found: list[str]) -> None:
    """End the command where a task does not exist, with the nearest names.

    Args:
        manager: lmms-eval's `TaskManager`, whose index of tasks is already made.
        names: Words of ``--tasks``, patterns (``*``) among them.
        found: Existing tasks and groups that they mean.
    """
    if not run.open:
        return
    try:
        check_tasks(manager.all_tasks, [name for name in names if name not in found and not os.path.isfile(name)])
    except UnknownArgument as exc:
        _end(exc)


def check_tasks(known: Any, names: list[str]) -> None:
    """Refuse tasks that do not exist.

    Args:
        known: Names of tasks and groups.
        names: Asked for; patterns (``*``) are let through.

    Raises:
        UnknownArgument: Names that do not exist, with the nearest that do.
    """
    unknown = [name for name in names if "*" not in name and name not in known]
    if unknown:
        said = ", ".join(f"{name!r}{did_you_mean(name, known)}" for name in unknown)
        where = "flmm data add NAME FILE" if any(name.startswith("flmm_own_") for name in unknown) else "flmm list"
        raise UnknownArgument(f"there is no task {said.rstrip('?')}{'?' if said.endswith('?') else ''} ({where})")


def stopped(use_cache: str | None) -> str:
    """Say what is saved of an evaluation that somebody stops, and how to go on."""
    if use_cache:
        return f"the answers so far are kept in {use_cache}; the same line goes on with them"
    return "its answers are not kept; with --use_cache FOLDER they would be, and the same line would go on"


def _wrap() -> None:
    """Wrap what has to be wrapped, once; where lmms-eval has it no longer, its own way of ending stays."""
    evaluator: Any = sys.modules.get("lmms_eval.evaluator")
    if not hasattr(evaluator, "simple_evaluate"):
        return
    wrap_once(evaluator, "simple_evaluate", _simple_evaluate)
    tracker = getattr(evaluator, "EvaluationTracker", None)
    for name, around in (
        ("save_results_aggregated", _save_results_aggregated),
        ("save_results_samples", _save_results_samples),
    ):
        if hasattr(tracker, name):
            wrap_once(tracker, name, around)


def _simple_evaluate(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    given = inspect.signature(inspect.unwrap(original)).bind_partial(*args, **kwargs).arguments
    model: Any = given.get("model")
    cli: Any = given.get("cli_args")
    owed = run.open and cli is not None
    if not owed and not (isinstance(model, str) and answers_with_masks(model)):
        return original(*args, **kwargs)
    try:
        with terminable() if owed else contextlib.nullcontext():
            if isinstance(model, str):
                _prepare(given)
            result = original(**given)
    except BaseException as exc:
        if not owed or isinstance(exc, SystemExit | GeneratorExit):
            raise
        if run.every_model and cli.config and isinstance(exc, Exception) and "RANK" not in os.environ:
            run.fail(f"one of the evaluations of {cli.config} failed: {named(exc)}")
            raise  # lmms-eval prints it and goes on with the next
        _end(exc, given.get("use_cache"))
    if owed:
        run.open = False
        _count_failures(result)
    return result


def _prepare(given: dict[str, Any]) -> None:
    """Look at everything before anything is loaded.

    Args:
        given: Arguments of `simple_evaluate`, with a name as model; changed in place.
    """
    from lmms_eval.models import list_available_models
    from lmms_eval.tasks import TaskManager
    from lmms_eval.utils import simple_parse_args_string

    from flmm_plugin.adapters.answering.chat import GIVEN, given_by_hand
    from flmm_plugin.adapters.answering.defaults import DEFAULTS
    from flmm_plugin.adapters.lmms_eval.preflight import Asked, check

    model = given["model"]
    if model not in (known := list_available_models()):
        raise UnknownArgument(f"there is no model {model!r}{did_you_mean(model, known)} (flmm list, lmms-eval models)")
    if model not in DEFAULTS:  # not this package's: lmms-eval's own checks have to do
        return
    cli, arguments = given.get("cli_args"), given.get("model_args") or {}
    manager = given.get("task_manager") or TaskManager(model_name=model)
    given["task_manager"] = manager
    options = given.get("gen_kwargs") or ""
    parsed = simple_parse_args_string(options) if isinstance(options, str) else dict(options)
    changes = check(
        Asked(
            model=model,
            model_args=simple_parse_args_string(arguments) if isinstance(arguments, str) else arguments,
            tasks=list(given.get("tasks") or ()),
            manager=manager,
            device=given.get("device"),
            batch_size=given.get("batch_size"),
            num_fewshot=given.get("num_fewshot"),
            use_cache=given.get("use_cache"),
            gen_kwargs=parsed,
            output_path=getattr(cli, "output_path", None),
        )
    )
    by_hand = given_by_hand(parsed)
    if by_hand and isinstance(options, str):
        given["gen_kwargs"] = f"{options},{GIVEN}={by_hand}"
    manager.flmm_changes = changes
    from_scenes = [name for name, change in changes.items() if "task_alias" in change]
    if from_scenes and _is_first():
        line = (
            f"{', '.join(from_scenes)}: no data of it is here, so the embedded model's own world of shapes is read; no "
            "number is the benchmark's (flmm data list)"
        )
        say(NAME, line)
        run.lines += [line] if run.open else []


def _end(exc: BaseException, use_cache: str | None = None) -> None:
    """Say why, and end the process."""
    run.open = False
    run.lines.clear()
    if isinstance(exc, KeyboardInterrupt):
        ended = isinstance(exc, Terminated)
        say(NAME, f"{'terminated' if ended else 'stopped by Ctrl-C'}; {stopped(use_cache)}")
        raise SystemExit(TERMINATED if ended else INTERRUPTED) from None
    if isinstance(exc, sqlite3.OperationalError) and use_cache:  # lmms-eval's answer cache is a database
        exc = OutputFailed(f"cannot write {use_cache} ({exc}): make room or name another place")
    if isinstance(exc, FlmmError):
        say(NAME, named(exc))
        raise SystemExit(FAILED) from None
    traceback.print_exception(exc)
    say(NAME, f"failed: {named(exc)}")
    raise SystemExit(1) from None


def _count_failures(result: Mapping[str, Any] | None) -> None:
    """Note how many documents of each task have no answer; a task of which nothing could be answered is not there."""
    sizes = (result or {}).get("n-samples", {})
    failed = run.unanswered if result is not None else {}
    for task, count in failed.items():
        total = int(sizes.get(task, {}).get("effective", 0))
        if count >= total:
            run.fail(
                f"{task}: NONE of its {count} samples could be answered; the log says why, its numbers say nothing"
            )
        else:
            run.lines.append(f"{task}: {count} of {total} samples have no answer and earn nothing; the log says why")


def _save_results_aggregated(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    done = original(self, *args, **kwargs)
    if self.output_path:
        _report(_problem_of_results(_written_to(self, "results.json")))
    return done


def _save_results_samples(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    done = original(self, *args, **kwargs)
    if self.output_path:
        given = inspect.signature(inspect.unwrap(original)).bind(self, *args, **kwargs).arguments
        path = _written_to(self, f"samples_{given['task_name']}.jsonl")
        _report(_problem_of_samples(path, len(given["samples"])))
    return done


def _written_to(tracker: Any, name: str) -> Path:
    folder = Path(tracker.output_path, str(tracker.general_config_tracker.model_name_sanitized))
    return folder / f"{getattr(tracker, 'date_id', '')}_{name}"


def _report(problem: str) -> None:
    """Note a problem with a written file; in somebody's own Python, raise it."""
    if problem:
        line = f"{problem}: the disk may be full or the folder gone"
        if not _is_command():
            raise OutputFailed(line)
        run.fail(f"{OutputFailed.__name__}: {line}")


def _problem_of_results(path: Path) -> str:
    """Say what is wrong with a results file; "" if nothing is."""
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        return f"the results were not written to {path} ({type(exc).__name__})"
    return ""


def _problem_of_samples(path: Path, count: int) -> str:
    """Say what is wrong with the log of a task's samples; "" if nothing is."""
    if not count:  # lmms-eval writes no file for a split with nothing in it
        return ""
    try:
        content = path.read_bytes()
    except OSError as exc:
        return f"the samples were not written to {path} ({type(exc).__name__})"
    if content.count(b"\n") < count or not content.endswith(b"\n"):
        return f"the samples in {path} are incomplete"
    return ""


def _is_first() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _is_command() -> bool:
    """Tell lmms-eval's command from somebody's Python."""
    return run.every_model or (
        "lmms_eval.__main__" in sys.modules
        and (Path(sys.argv[0]).name == "lmms-eval" or Path(sys.argv[0]).parts[-2:] == ("lmms_eval", "__main__.py"))
    )


def _at_exit() -> None:
    """The end of a process that only lmms-eval's own command runs: a status is forced where it would be 0."""
    status = run.close()
    if status:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
