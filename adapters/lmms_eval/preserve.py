"""``flmm preserve``: both arms on the same documents, held against each other; the verdict and where it comes from.

Every arm runs in a process of its own, so nothing that one leaves behind can reach another. Arms are kept under a name
that says all that went into them: the same line again goes on where it was killed, or only compares; another F-LMM
argument reuses the stock arm.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loguru import logger

from flmm_plugin import bundled
from flmm_plugin.adapters.lmms_eval.exit_status import check_tasks
from flmm_plugin.adapters.lmms_eval.preflight import Asked, check_model
from flmm_plugin.adapters.lmms_eval.preserve_stock import PLAIN
from flmm_plugin.adapters.lmms_eval.task_folder import named_tasks
from flmm_plugin.adapters.preserving.record import ArmSpec, arm_key, part_of, read_arm
from flmm_plugin.adapters.preserving.stock import shared
from flmm_plugin.errors import FlmmError
from flmm_plugin.files import make_folder, write
from flmm_plugin.reports.preservation import Arm, Check, Verdict, compare, decide

#: Settings that may change numbers without changing the model: where the arms differ in one, noise is measured.
SETTINGS = ("batch_size", "attn_implementation", "dtype", "device", "device_map")
#: Those that an arm records of the model that it loaded, and the argument that asks for each: an adapter may have
#: defaults of its own.
_RECORDED = {"kernel": "attn_implementation", "dtype": "dtype", "device": "device"}

_SEED = 90_000  # of the embedded world's held-out scenes, as in the demo


class ArmFailed(FlmmError):
    """An arm did not end well, so there is nothing to compare; the message names its log."""


@dataclass(frozen=True)
class Plan:
    """What to compare.

    Attributes:
        model: Name of the F-LMM model, as for lmms-eval's ``--model``.
        tasks: Names of tasks and groups.
        model_args: Of the F-LMM arm; what says which LMM it is and how it computes goes to the stock arm too.
        stock: ``auto``, ``plain`` or the name of an adapter of lmms-eval's.
        stock_args: Arguments of the stock arm alone; a setting among them makes the verdict a measured one.
        limit: Documents per task; None: all.
        batch_size: Of the F-LMM arm. The stock arm asks one by one, as stock adapters do.
        device: Where both run, unless their arguments say so.
        noise: Measure the stock model's own noise even if the settings are the same.
        ground_every: Grounding requests come after every so many batches of questions.
        force_simple, include_path: As of lmms-eval.
        scenes: Pictures of the embedded world to write for ``mme``, where no MME is in the working directory.
        seed: Of sampled answers.
        plant: Name of a fault to plant in the F-LMM arm, or empty.
        out: Work folder.
        fresh: Forget what earlier runs left in it.
    """

    model: str
    tasks: tuple[str, ...]
    out: Path
    model_args: Mapping[str, Any] = field(default_factory=dict)
    stock: str = "auto"
    stock_args: Mapping[str, Any] = field(default_factory=dict)
    limit: float | None = None
    batch_size: int = 1
    device: str = "cpu"
    noise: bool = False
    ground_every: int = 1
    force_simple: bool = False
    include_path: str | None = None
    scenes: int = 30
    seed: int = 0
    plant: str = ""
    fresh: bool = False


#: How an arm is run: in a process of its own, or (in tests) in this one.
Launch = Callable[[ArmSpec, Path], Arm]


def preserve(plan: Plan, launch: Launch | None = None) -> Verdict:
    """Run what is not there yet, compare, decide.

    Args:
        plan: What to compare.
        launch: How to run an arm; default: `in_a_process`.

    Raises:
        ArmFailed: An arm did not end well.
        UnknownArgument: A model, task, device or argument that does not exist.
        OutputFailed: The work folder cannot be written.
    """
    launch = launch or in_a_process
    _check(plan)
    out = plan.out.resolve()
    if plan.fresh:
        (out / "judge.jsonl").unlink(missing_ok=True)
    work = _world(plan, out) if plan.scenes else Path.cwd()
    common: dict[str, Any] = {
        "model": plan.model, "tasks": tuple(plan.tasks), "limit": plan.limit, "device": plan.device,
        "include_path": plan.include_path, "seed": plan.seed, "judge": str(out / "judge.jsonl"), "work": str(work),
    }  # fmt: skip
    # Of the F-LMM arm's arguments those that say which LMM it is and how it computes, and no others: other heads need
    # no other stock arm.
    same_lmm: dict[str, Any] = {"model_args": shared(plan.model_args), "ground_every": 0}

    def run(spec: ArmSpec, times: int = 0) -> tuple[Arm, Path]:
        folder = out / "arms" / f"{spec.role.split(',')[0].replace(' ', '-')}-{arm_key(spec, times, 'lmms-eval')}"
        if plan.fresh and folder.is_dir():
            for file in folder.iterdir():
                if file.is_file():
                    file.unlink()
        return read_arm(folder) or launch(spec, folder), folder

    stock_spec = ArmSpec(
        role="stock", stock=plan.stock, stock_args=plan.stock_args, force_simple=plan.force_simple, **same_lmm, **common
    )
    stock = run(stock_spec)
    # A stock adapter that only knows lmms-eval's plain prompts decides the form of the other arms.
    common["force_simple"] = bool(stock[0].provenance["simple"])
    ours = run(
        ArmSpec(
            role="F-LMM", model_args=dict(plan.model_args), batch_size=plan.batch_size, ground_every=plan.ground_every,
            plant=plan.plant, **common,
        )
    )  # fmt: skip
    arms = [stock, ours]
    checks = _against(stock, ours)
    noise: tuple[Check, ...] = ()
    same: tuple[Check, ...] = ()
    repeat: tuple[Check, ...] = ()
    base, base_spec = stock, stock_spec
    asked = other_settings(plan)
    if asked or loaded_otherwise(stock[0], ours[0]):
        # lmms-eval's stock adapters answer one by one, whatever they are told, and may have kernels of their own.
        for kind in (plan.stock, PLAIN) if asked and plan.batch_size == 1 else (PLAIN,):
            base_spec = ArmSpec(
                role="stock, settings of F-LMM", stock=kind, batch_size=plan.batch_size, **same_lmm, **common
            )
            base = run(base_spec)
            if not loaded_otherwise(base[0], ours[0]):
                break
        arms.append(base)
        noise, same = _against(stock, base), _against(base, ours)
    if plan.noise or any(check.differing for check in same):
        arms.append(run(dataclasses.replace(base_spec, role="stock again"), times=1))
        repeat = _against(base, arms[-1])
        noise = noise or repeat
    told = [arm for arm, _ in arms]
    return decide(told, checks, noise=noise, same=same, repeat=repeat, notes=notes(plan, told, work))


def _against(left: tuple[Arm, Path], right: tuple[Arm, Path]) -> tuple[Check, ...]:
    from flmm_plugin.adapters.preserving.watch import compare_logits  # torch: only once there is something

    return compare(left[0], right[0], compare_logits(left[1] / "logits.pt", right[1] / "logits.pt"))


def other_settings(plan: Plan) -> list[str]:
    """The settings in which the two arms differ."""
    ours = {"device": plan.device, **plan.model_args, "batch_size": plan.batch_size}
    stock = {**ours, "batch_size": 1, **plan.stock_args}
    return [name for name in SETTINGS if ours.get(name) != stock.get(name)]


def loaded_otherwise(stock: Arm, ours: Arm) -> list[str]:
    """The arguments by which the models that both arms loaded compute otherwise, whatever was asked for."""
    known = (name for name in _RECORDED if name in stock.settings and name in ours.settings)
    return [_RECORDED[name] for name in known if stock.settings[name] != ours.settings[name]]


def notes(plan: Plan, arms: list[Arm], work: Path) -> list[str]:
    """What a reader of the verdict should know."""
    stock, ours = arms[0], arms[1]
    said = [f"stock arm: {stock.adapter}"]
    if plan.plant:
        said.append(f"a fault was planted in the F-LMM arm: {plan.plant}")
    asked, failed = ours.grounded.get("asked", 0), ours.grounded.get("failed", 0)
    what = "grounding requests" if ours.provenance.get("heads") else "passes that read attention (no heads)"
    said.append(f"{asked} {what} ran between the questions" + (f", {failed} of them failed" if failed else ""))
    if other := list(dict.fromkeys([*other_settings(plan), *loaded_otherwise(stock, ours)])):
        said.append(f"the arms differ in {', '.join(other)}: the stock model was measured under both settings")
    if plan.limit is not None:
        said.append(part_of(plan.limit, "documents of each task"))
    if work.name == "world":
        said.append(f"mme is {plan.scenes} pictures of the embedded world, not the benchmark")
    for arm in arms:
        if arm.judge.get("failed"):
            said.append(
                f"{arm.role}: the judge failed on {arm.judge['failed']} of {arm.judge['asked']} requests; its metrics "
                "are not a judge's (set OPENAI_API_KEY, or API_TYPE and what that provider needs)"
            )
        if arm.provenance.get("seal"):
            said.append(f"{arm.role}: {arm.provenance['seal']}")
    if stock.judge.get("asked") or ours.judge.get("asked"):
        said.append(f"{ours.judge.get('reused', 0)} of {ours.judge.get('asked', 0)} judge answers were reused")
    return said


def in_a_process(spec: ArmSpec, folder: Path) -> Arm:
    """Run an arm in a process of its own, its progress bar on this terminal.

    Raises:
        ArmFailed: It did not end well.
    """
    write(folder / "spec.json", json.dumps(spec.as_json(), indent=1))
    env = dict(os.environ)
    if Path(spec.work).name == "world":  # written here a moment ago: no hub needs to be asked for it
        env |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(Path(spec.work) / "cache")}
    if spec.device == "cpu" and not {"device", "device_map"} & {*spec.model_args, *spec.stock_args}:
        env["CUDA_VISIBLE_DEVICES"] = ""
    command = [sys.executable, "-P", "-m", "flmm_plugin.adapters.lmms_eval.preserve_arm"]
    done = subprocess.run([*command, str(folder / "spec.json"), str(folder)], env=env, check=False)
    arm = read_arm(folder)
    if done.returncode != 0 or arm is None:
        log = folder / "log.txt"
        words = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:] if log.is_file() else []
        raise ArmFailed(
            f"the arm {spec.role!r} ended with {done.returncode}; all it said is in {log}, its last words: "
            + " | ".join(words)
        )
    return arm


def _check(plan: Plan) -> None:
    """Look at what was asked for before minutes of work."""
    asked = Asked(plan.model, plan.model_args, plan.tasks, None, device=plan.device, batch_size=plan.batch_size)
    check_model(asked)
    unknown = [name for name in plan.tasks if name not in named_tasks(plan.include_path)]
    if unknown:
        # Files may name tasks in ways that only lmms-eval reads.
        from lmms_eval.tasks import TaskManager

        logger.disable("lmms_eval")  # its index tells of every file that is no task
        check_tasks(TaskManager(model_name=plan.model, include_path=plan.include_path).all_tasks, unknown)
        logger.enable("lmms_eval")
    make_folder(plan.out)


def _world(plan: Plan, out: Path) -> Path:
    """Where lmms-eval looks for data: the caller's directory, or one with the embedded world's MME in it."""
    here = Path.cwd()
    if plan.model != "flmm_tiny" or "mme" not in plan.tasks or (here / "lmms-lab-encoder" / "MME").is_dir():
        return here
    work = out / f"{plan.scenes}-scenes" / "world"
    if not (work / "lmms-lab-encoder" / "MME").is_dir():
        part = work.with_name("world.part")
        shutil.copytree(bundled.data_root(bundled.MME_ROOT, scenes=plan.scenes, seed=_SEED), part, dirs_exist_ok=True)
        part.rename(work)
    return work
