"""``flmm preserve --harness vlmevalkit``: both arms on the same questions of the kit, held against each other.

Every arm runs in a process of its own and is kept under a name that says all that went into it: the same line again
goes on where it was killed, or only compares.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flmm_plugin import files
from flmm_plugin.adapters.answering.arguments import ARGUMENTS_VARIABLE
from flmm_plugin.adapters.answering.defaults import DEFAULTS
from flmm_plugin.adapters.preserving.record import ArmSpec, arm_key, part_of, read_arm
from flmm_plugin.adapters.preserving.stock import shared
from flmm_plugin.adapters.vlmevalkit.benchmarks import BENCHMARKS
from flmm_plugin.errors import FlmmError, ToolNotFound, UnknownArgument
from flmm_plugin.reports.preservation import Arm, Check, Verdict, compare, decide

#: How an arm is run: in a process of its own, or (in tests) in this one.
Launch = Callable[[ArmSpec, Path], Arm]


class ArmFailed(FlmmError):
    """An arm did not end well, so there is nothing to compare; the message names its log."""


def preserve(ours: ArmSpec, out: Path, *, noise: bool = False, stock: str = "auto", stock_args: Any = None,
             fresh: bool = False, launch: Launch | None = None) -> Verdict:  # fmt: skip
    """Run what is not there yet, compare, decide.

    Args:
        ours: The F-LMM arm; its ``tasks`` are data sets of the kit.
        out: Work folder.
        noise: Measure the stock model's own noise too.
        stock: ``auto`` and ``plain`` are plain transformers as a model of the kit; else a model of the kit's by name.
        stock_args: Arguments of the stock arm alone.
        fresh: Forget what earlier runs left.
        launch: How to run an arm; default: `in_a_process`.

    Raises:
        ArmFailed: An arm did not end well.
        ToolNotFound: The kit is not here.
        UnknownArgument: A model or argument that does not exist here.
    """
    if launch is None and importlib.util.find_spec("vlmeval") is None:
        raise ToolNotFound("VLMEvalKit is not here: pip install 'flmm-plugin[vlmevalkit]' in an environment of its own")
    if ours.model not in DEFAULTS:
        raise UnknownArgument(f"there is no F-LMM model {ours.model!r}; there are {', '.join(DEFAULTS)}")
    if ours.batch_size != 1 or ours.force_simple or ours.include_path:
        raise UnknownArgument("VLMEvalKit asks one by one and has one form: no --batch_size, --force_simple, "
                              "--include_path with --harness vlmevalkit")  # fmt: skip
    masks = [name for name in ours.tasks if name in BENCHMARKS]
    if masks:
        raise UnknownArgument(
            f"{masks[0]} asks for masks, which no stock model gives; leave it out of --tasks: there is no chat in it "
            "to compare"
        )
    run = launch or in_a_process
    theirs = dataclasses.replace(
        ours, role="stock", stock=stock, stock_args=dict(stock_args or {}), model_args=shared(ours.model_args),
        ground_every=0, plant="",
    )  # fmt: skip

    def arm(spec: ArmSpec, times: int = 0) -> tuple[Arm, Path]:
        folder = out.resolve() / "arms" / f"kit-{spec.role.split(' ')[0]}-{arm_key(spec, times, 'ms-vlmeval')}"
        if fresh and folder.is_dir():
            for file in folder.iterdir():
                if file.is_file():
                    file.unlink()
        return read_arm(folder) or run(spec, folder), folder

    left, right = arm(theirs), arm(ours)
    arms = [left, right]
    repeat: tuple[Check, ...] = ()
    checks = _against(left, right)
    if noise or any(check.differing for check in checks):
        arms.append(arm(dataclasses.replace(theirs, role="stock again"), 1))
        repeat = _against(left, arms[-1])
    said = [f"VLMEvalKit {right[0].provenance.get('ms-vlmeval') or '(a clone)'}", f"stock arm: {left[0].adapter}"]
    if ours.plant:
        said.append(f"a fault was planted in the F-LMM arm: {ours.plant}")
    grounded = right[0].grounded
    said.append(f"{grounded['asked']} grounding requests ran between the questions, {grounded['failed']} failed")
    if ours.limit is not None:
        said.append(part_of(ours.limit, "rows of each data set"))
    return decide([one for one, _ in arms], checks, noise=repeat, repeat=repeat, notes=said)


def _against(left: tuple[Arm, Path], right: tuple[Arm, Path]) -> tuple[Check, ...]:
    from flmm_plugin.adapters.preserving.watch import compare_logits  # torch: only once there is something

    return compare(left[0], right[0], compare_logits(left[1] / "logits.pt", right[1] / "logits.pt"))


def in_a_process(spec: ArmSpec, folder: Path) -> Arm:
    """Run an arm in a process of its own; what it says goes to ``log.txt`` in its folder.

    Raises:
        ArmFailed: It did not end well.
    """
    files.write(folder / "spec.json", json.dumps(spec.as_json(), indent=1))
    env = {**os.environ, ARGUMENTS_VARIABLE: ""}
    if spec.device == "cpu" and "device_map" not in spec.model_args:
        env["CUDA_VISIBLE_DEVICES"] = ""
    log = folder / "log.txt"
    print(f"flmm preserve: {spec.role}: {', '.join(spec.tasks)} (log: {log})", file=sys.stderr)
    command = [sys.executable, "-P", "-m", "flmm_plugin.adapters.vlmevalkit.preserve_arm"]
    with log.open("a", encoding="utf-8") as said:
        done = subprocess.run(
            [*command, str(folder / "spec.json"), str(folder)], env=env, stdout=said, stderr=said, check=False
        )
    arm = read_arm(folder)
    if done.returncode != 0 or arm is None:
        words = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:]
        raise ArmFailed(
            f"the arm {spec.role!r} ended with {done.returncode}; all it said is in {log}, its last words: "
            + " | ".join(words)
        )
    return arm
