"""Plan a proof: run the stock model and F-LMM on the same documents, compare the records, decide.

Every run has a process of its own, so nothing that one leaves behind can reach another. Runs are kept under a name that
says all that went into them: the same line again goes on where it was killed, or only compares; another F-LMM argument
reuses the stock run.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loguru import logger

from flmm_plugin import bundled
from flmm_plugin.adapters.answering.arguments import ARGUMENTS_VARIABLE
from flmm_plugin.adapters.answering.defaults import DEFAULTS
from flmm_plugin.adapters.lmms_eval.exit_status import check_tasks
from flmm_plugin.adapters.lmms_eval.preflight import Asked, check, check_model
from flmm_plugin.adapters.lmms_eval.task_folder import named_tasks
from flmm_plugin.adapters.preservation.record import HARNESSES, RunSpec, Settings, read_run, run_key
from flmm_plugin.adapters.preservation.stock import PLAIN, shared
from flmm_plugin.adapters.preservation.verdict import Check, RunRecord, Verdict, compare, decide
from flmm_plugin.errors import FlmmError, ToolNotFound, UnknownArgument
from flmm_plugin.files import make_folder, write

#: Settings that may change numbers without changing the model: where two runs differ in one, noise is measured.
SETTINGS = ("batch_size", "attn_implementation", "dtype", "device", "device_map")
#: Settings that a run records of the model that it loaded, and the argument that asks for each: an adapter may have
#: defaults of its own.
_RECORDED = {"kernel": "attn_implementation", "dtype": "dtype", "device": "device"}

_SEED = 90_000  # of the embedded model's held-out scenes, as in the demo

#: Runs a specification in a folder: in a process of its own, or (in tests) in this one.
Launch = Callable[[RunSpec, Path], RunRecord]


class RunFailed(FlmmError):
    """A run did not end well, so there is nothing to compare; the message names its log."""


@dataclass(frozen=True, kw_only=True)
class Plan(Settings):
    """A proof to be made.

    Attributes:
        out: Work folder, where all runs are kept.
        noise: Measure the stock model's own noise even if the settings are the same.
        scenes: Synthetic scenes to write for ``mme`` of `flmm_tiny`, where no MME is in the working directory.
        fresh: Forget what earlier runs left in the work folder.
    """

    out: Path
    stock: str = "auto"
    noise: bool = False
    scenes: int = 30
    fresh: bool = False


def prove(plan: Plan, launch: Launch | None = None) -> Verdict:
    """Run what is not there yet, compare, decide.

    Args:
        plan: Models, tasks and settings of the proof.
        launch: Carries out a run; default: `in_a_process`.

    Raises:
        RunFailed: A run did not end well.
        NotReady: Data, checkpoint or heads are not on this machine.
        ToolNotFound: VLMEvalKit is not installed here.
        UnknownArgument: A model, task, device or argument that does not exist or cannot be compared.
        OutputFailed: The work folder cannot be written.
    """
    _check_names(plan)
    out = plan.out.resolve()
    if plan.fresh:
        (out / "judge.jsonl").unlink(missing_ok=True)
    work = _working_directory(plan, out)
    check_data = functools.cache(lambda: _check_data(plan, work))

    def run(spec: RunSpec, times: int = 0) -> tuple[RunRecord, Path]:
        folder = out / "arms" / f"{spec.role.split(',')[0].replace(' ', '-')}-{run_key(spec, times)}"
        if plan.fresh:
            shutil.rmtree(folder, ignore_errors=True)
        finished = read_run(folder)
        if finished is None:
            check_data()
            finished = (launch or in_a_process)(spec, folder)
        return finished, folder

    settings = {one.name: getattr(plan, one.name) for one in dataclasses.fields(Settings)}
    ours_spec = RunSpec(**{**settings, "stock": ""}, role="F-LMM", judge=str(out / "judge.jsonl"), work=str(work))
    # Of the F-LMM run's arguments those that say which LMM it is and how it computes, and no others: other heads need
    # no other stock run.
    base_spec = dataclasses.replace(
        ours_spec, role="stock", stock=plan.stock, model_args=shared(plan.model_args), batch_size=1, ground_every=0,
        plant="",
    )  # fmt: skip
    stock = base = run(base_spec)
    # A stock adapter that only knows lmms-eval's plain prompts decides the form of the other runs.
    simple = bool(stock[0].provenance["simple"])
    ours = run(dataclasses.replace(ours_spec, force_simple=simple, stock_args={}))
    runs = [stock, ours]
    checks = suspicious = _compared(stock, ours)
    noise: tuple[Check, ...] = ()
    same: tuple[Check, ...] = ()
    repeat: tuple[Check, ...] = ()
    if HARNESSES[plan.harness].takes_settings:
        asked = other_settings(plan)
        if asked or loaded_otherwise(stock[0], ours[0]):
            # lmms-eval's stock adapters answer one by one, whatever the batch size, and may have kernels of their own.
            for kind in (plan.stock, PLAIN) if asked and plan.batch_size == 1 else (PLAIN,):
                base_spec = dataclasses.replace(
                    base_spec, role="stock, settings of F-LMM", stock=kind, stock_args={}, force_simple=simple,
                    batch_size=plan.batch_size,
                )  # fmt: skip
                base = run(base_spec)
                if not loaded_otherwise(base[0], ours[0]):
                    break
            runs.append(base)
            noise, same = _compared(stock, base), _compared(base, ours)
        suspicious = same
    if plan.noise or any(check.differing for check in suspicious):
        again = run(dataclasses.replace(base_spec, role="stock again"), times=1)
        runs.append(again)
        repeat = _compared(base, again)
        noise = noise or repeat
    records = [record for record, _ in runs]
    return decide(records, checks, noise=noise, same=same, repeat=repeat, notes=notes(plan, records, work))


def _compared(left: tuple[RunRecord, Path], right: tuple[RunRecord, Path]) -> tuple[Check, ...]:
    from flmm_plugin.adapters.preservation.watch import compare_logits  # torch: only once there is something

    return compare(left[0], right[0], compare_logits(left[1] / "logits.pt", right[1] / "logits.pt"))


def other_settings(plan: Plan) -> list[str]:
    """Return the settings in which the stock run and the F-LMM run differ by their arguments."""
    ours = {"device": plan.device, **plan.model_args, "batch_size": plan.batch_size}
    stock = {**ours, "batch_size": 1, **plan.stock_args}
    return [name for name in SETTINGS if ours.get(name) != stock.get(name)]


def loaded_otherwise(stock: RunRecord, ours: RunRecord) -> list[str]:
    """Return the settings in which the two loaded models differ, whatever was asked for."""
    known = (name for name in _RECORDED if name in stock.settings and name in ours.settings)
    return [_RECORDED[name] for name in known if stock.settings[name] != ours.settings[name]]


def notes(plan: Plan, runs: list[RunRecord], work: Path) -> list[str]:
    """Return remarks that a reader of the verdict needs."""
    stock, ours = runs[0], runs[1]
    said = [f"stock run: {stock.adapter}"]
    if plan.harness == "vlmevalkit":
        said.insert(0, f"VLMEvalKit {ours.provenance.get('ms-vlmeval') or '(a clone)'}")
    if plan.plant:
        said.append(f"a fault was planted in the F-LMM run: {plan.plant}")
    asked, failed = ours.grounded.get("asked", 0), ours.grounded.get("failed", 0)
    what = "grounding requests" if ours.provenance.get("heads") else "passes that read attention (no heads)"
    said.append(f"{asked} {what} ran between the questions" + (f", {failed} of them failed" if failed else ""))
    if other := list(dict.fromkeys([*other_settings(plan), *loaded_otherwise(stock, ours)])):
        said.append(f"the runs differ in {', '.join(other)}: the stock model was measured under both settings")
    if plan.limit is not None:
        said.append(part_of(plan.limit, HARNESSES[plan.harness].unit))
    if work.name == "world":
        said.append(f"mme is {plan.scenes} synthetic scenes of the embedded model, not the benchmark")
    for run in runs:
        if run.judge.get("failed"):
            said.append(
                f"{run.role}: the judge failed on {run.judge['failed']} of {run.judge['asked']} requests; its metrics "
                "are not a judge's (set OPENAI_API_KEY, or API_TYPE and what that provider needs)"
            )
        if run.provenance.get("seal"):
            said.append(f"{run.role}: {run.provenance['seal']}")
    if stock.judge.get("asked") or ours.judge.get("asked"):
        said.append(f"{ours.judge.get('reused', 0)} of {ours.judge.get('asked', 0)} judge answers were reused")
    return said


def part_of(limit: float, unit: str) -> str:
    """Put a limit into words; below 1 it is a share, as in lmms-eval.

    >>> part_of(0.005, "rows")
    'the first 0.5 % of the rows'
    """
    return f"the first {limit:g} {unit}" if limit >= 1 else f"the first {100 * limit:g} % of the {unit}"


def in_a_process(spec: RunSpec, folder: Path) -> RunRecord:
    """Carry out a run in a process of its own, its progress bar on this terminal.

    Raises:
        RunFailed: It did not end well.
    """
    write(folder / "spec.json", json.dumps(dataclasses.asdict(spec), indent=1))
    env = {**os.environ, ARGUMENTS_VARIABLE: ""}
    if Path(spec.work).name == "world":  # written here a moment ago: no hub needs to be asked for it
        env |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(Path(spec.work) / "cache")}
    if spec.device == "cpu" and not {"device", "device_map"} & {*spec.model_args, *spec.stock_args}:
        env["CUDA_VISIBLE_DEVICES"] = ""
    log = folder / "log.txt"
    print(f"flmm preserve: {spec.role}: {', '.join(spec.tasks)} (log: {log})", file=sys.stderr)
    command = [sys.executable, "-P", "-m", "flmm_plugin.adapters.preservation.run"]
    done = subprocess.run([*command, str(folder / "spec.json"), str(folder)], env=env, check=False)
    run = read_run(folder)
    if done.returncode != 0 or run is None:
        words = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:] if log.is_file() else []
        raise RunFailed(
            f"the {spec.role} run ended with {done.returncode}; all its output is in {log}, the last lines: "
            + " | ".join(words)
        )
    return run


def _check_names(plan: Plan) -> None:
    """Check names and arguments before minutes of work."""
    if plan.harness == "vlmevalkit":
        _check_names_for_vlmevalkit(plan)
    else:
        check_model(_asked(plan, plan.tasks, None))
        unknown = [name for name in plan.tasks if name not in named_tasks(plan.include_path)]
        if unknown:  # files may name tasks in ways that only lmms-eval reads
            check_tasks(_index(plan.model, plan.include_path).all_tasks, unknown)
    make_folder(plan.out)


def _check_names_for_vlmevalkit(plan: Plan) -> None:
    from flmm_plugin.adapters.vlmevalkit.benchmarks import BENCHMARKS

    if importlib.util.find_spec("vlmeval") is None:
        raise ToolNotFound("VLMEvalKit is not here: pip install 'flmm-plugin[vlmevalkit]' in an environment of its own")
    if plan.model not in DEFAULTS:
        raise UnknownArgument(f"there is no F-LMM model {plan.model!r}; there are {', '.join(DEFAULTS)}")
    if plan.batch_size != 1 or plan.force_simple or plan.include_path:
        raise UnknownArgument(
            "VLMEvalKit asks one by one and has one form: no --batch_size, --force_simple, --include_path with "
            "--harness vlmevalkit"
        )
    if masks := [name for name in plan.tasks if name in BENCHMARKS]:
        raise UnknownArgument(
            f"{masks[0]} asks for masks, which no stock model gives; leave it out of --tasks: there is no chat in it "
            "to compare"
        )


def _check_data(plan: Plan, work: Path) -> None:
    """Check that checkpoint, heads and data are on this machine, before anything is loaded."""
    if plan.harness == "lmms_eval":
        elsewhere = [name for name in plan.tasks if name != "mme" or work.name != "world"]
        check(_asked(plan, elsewhere, _index(plan.model, plan.include_path)))


def _asked(plan: Plan, tasks: Sequence[str], index: Any) -> Asked:
    return Asked(plan.model, plan.model_args, tasks, index, device=plan.device, batch_size=plan.batch_size)


@functools.cache
def _index(model: str, include_path: str | None) -> Any:
    """Return lmms-eval's index of tasks."""
    from lmms_eval.tasks import TaskManager

    logger.disable("lmms_eval")  # it names every file that is no task
    try:
        return TaskManager(model_name=model, include_path=include_path)
    finally:
        logger.enable("lmms_eval")


def _working_directory(plan: Plan, out: Path) -> Path:
    """Return the folder where the harness looks for data: the caller's, or one with synthetic scenes as MME in it."""
    here = Path.cwd()
    if plan.harness != "lmms_eval" or plan.model != bundled.EMBEDDED or "mme" not in plan.tasks or not plan.scenes:
        return here
    if (here / "lmms-lab-encoder" / "MME").is_dir():
        return here
    work = out / f"{plan.scenes}-scenes" / "world"
    if not (work / "lmms-lab-encoder" / "MME").is_dir():
        part = work.with_name("world.part")
        shutil.copytree(bundled.data_root(bundled.MME_ROOT, scenes=plan.scenes, seed=_SEED), part, dirs_exist_ok=True)
        part.rename(work)
    return work
