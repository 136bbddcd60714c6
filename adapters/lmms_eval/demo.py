"""The demo: the real harness, on real files, with and without the plugin, and one page to look at.

1. Held-out pictures of synthetic scenes are written in the official layouts of RefCOCO and MME.
2. ``lmms_eval --model flmm_tiny --tasks mme,refcoco_seg`` runs on them.
3. The same LMM runs ``mme`` once more through lmms-eval's own ``llava_hf`` adapter, which has nothing of this package
   in its path; every answer must be the same string.
4. ``flmm tiny evaluate`` measures chat, grounding and the controls on fresh scenes.
5. One HTML page shows pictures, masks, attention maps and both tables.

Started by ``make demo``, ``flmm demo`` or ``python -m flmm_plugin.adapters.lmms_eval.demo``. Everything happens in one
work folder, offline, on the CPU.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flmm_plugin import files, tiny
from flmm_plugin.adapters.lmms_eval.agreement import Agreement, compare_answers, newest_run
from flmm_plugin.command_line import Parser
from flmm_plugin.errors import FlmmError
from flmm_plugin.reports.runs import Run

SEED = 90_000
OURS = "flmm_tiny"
STOCK = "llava_hf"
CHAT_TASK = "mme"
MASK_TASKS = "refcoco_seg"


class DemoFailed(FlmmError):
    """A step of the demo did not end well; the message names the command and its log."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; 0 if every step worked and every chat answer is the same with and without the plugin."""
    parser = Parser(prog="flmm demo", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/demo"), help="work folder (default: %(default)s)")
    parser.add_argument("--pictures", type=int, default=30, help="pictures per split (default: %(default)s)")
    parser.add_argument(
        "--scenes", type=int, default=30, help="scenes that measure the controls (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=SEED, help="of the held-out scenes (default: %(default)s)")
    args = parser.parse_args(argv)
    try:
        return run_demo(args.out.resolve(), pictures=args.pictures, scenes=args.scenes, seed=args.seed)
    except FlmmError as exc:
        print(f"flmm demo: {type(exc).__name__}: {exc}", file=sys.stderr)
        return 1


def run_demo(out: Path, *, pictures: int, scenes: int, seed: int) -> int:
    """All five steps in the folder ``out``; what earlier runs of the demo left there is replaced."""
    checkpoint = tiny.tiny_path()
    _require_decord()
    began = time.monotonic()
    for folder in ("data", "lmms-lab-encoder", "results"):
        shutil.rmtree(out / folder, ignore_errors=True)
    files.make_folder(out / "logs")

    say(1, f"{pictures} held-out pictures of synthetic scenes per split are written into {out}")
    from flmm_plugin.tiny.layouts import write_refer
    from flmm_plugin.tiny.layouts_questions import write_mme

    write_refer(out / "data", scenes=pictures, seed=seed, names=("refcoco",))
    write_mme(out, scenes=pictures, seed=seed)

    say(2, "lmms-eval with the plugin")
    both = f"{CHAT_TASK},{MASK_TASKS}"
    ours = evaluate(out, "flmm", ["--model", OURS, "--tasks", both])

    say(3, f"the same LMM in lmms-eval's own {STOCK} adapter: nothing of this package in its path")
    stock_args = f"pretrained={checkpoint},device=cpu,device_map=cpu"
    stock = evaluate(out, "stock", ["--model", STOCK, "--model_args", stock_args, "--tasks", CHAT_TASK])
    agreement = compare_answers(ours, stock, CHAT_TASK)

    say(4, f"chat, grounding and controls on {scenes} fresh scenes")
    measured = run([script("flmm"), "tiny", "evaluate", "--scenes", str(scenes), "--seed", str(seed + 1), "--json"],
                   out, environment(out), out / "logs" / "controls.json")  # fmt: skip
    controls: dict[str, Any] = json.loads(measured)

    say(5, "one page to look at")
    from flmm_plugin.adapters.lmms_eval import demo_page

    table, masks = comparison(ours, stock, agreement), mask_table(ours)
    seconds = time.monotonic() - began
    page = demo_page.write(out, table=table, masks=masks, agreement=agreement, controls=controls, seconds=seconds)

    print(f"\n{as_text(masks)}\n\n{as_text(table)}\n")
    for first, second in agreement.differing[:5]:
        print(f"  differs: {first.question!r}\n    {OURS}: {first.answer!r}\n    {STOCK}: {second.answer!r}")
    print(f"page: {page}\n{time.monotonic() - began:.0f} s in all")
    if agreement.differing:
        print("chat is NOT what it is without the plugin: this is a bug, please report it", file=sys.stderr)
        return 1
    return 0


def evaluate(out: Path, name: str, arguments: Sequence[str]) -> Run:
    """One run of the installed ``lmms_eval`` command in the work folder, read back from what it wrote."""
    results = out / "results" / name
    command = [script("lmms_eval"), *arguments, "--log_samples", "--output_path", str(results)]
    run(command, out, environment(out), out / "logs" / f"{name}.txt")
    return newest_run(results)


def run(command: Sequence[str], folder: Path, env: Mapping[str, str], log: Path) -> str:
    """Run a command, its progress (stderr) passed through; standard output is kept in ``log`` and returned.

    Raises:
        DemoFailed: It did not exit with 0.
    """
    print("$ " + shlex.join([Path(command[0]).name, *command[1:]]), file=sys.stderr, flush=True)
    done = subprocess.run(command, cwd=folder, env=dict(env), stdout=subprocess.PIPE, text=True, check=False)
    files.write(log, done.stdout)
    if done.returncode != 0:
        print(done.stdout, file=sys.stderr)
        raise DemoFailed(
            f"`{shlex.join(command)}` exited with {done.returncode}; its last words are above, all in {log}"
        )
    return done.stdout


def environment(out: Path) -> dict[str, str]:
    """The caller's environment, made offline and CPU-only, with the written data as data root."""
    return {
        **os.environ,
        "FLMM_DATA": str(out / "data"),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(out / "cache"),
        "TOKENIZERS_PARALLELISM": "false",
        # Bit-identical answers are promised on one device; the stock run uses the CPU.
        "CUDA_VISIBLE_DEVICES": "",
    }


def script(name: str) -> str:
    """A console script of this environment, whether or not the environment is activated.

    Raises:
        DemoFailed: It is not installed.
    """
    here = Path(sysconfig.get_path("scripts")) / name
    found = str(here) if here.exists() else shutil.which(name)
    if found is None:
        raise DemoFailed(f"the command `{name}` is not installed beside {sys.executable}: pip install flmm-plugin")
    return found


def comparison(ours: Run, stock: Run, agreement: Agreement) -> list[list[str]]:
    """Return a table of both runs: a header, then one row per metric of the tasks that both did."""
    rows = [["task", "metric", f"{OURS} (with the plugin)", f"{STOCK} (lmms-eval's own)"]]
    for task, found in ours.tasks.items():
        others = stock.tasks[task].metrics if task in stock.tasks else {}
        for name, value in found.metrics.items():
            if name in others:
                rows.append([task, name, f"{value:.4g}", f"{others[name]:.4g}"])
    rows.append([CHAT_TASK, "answers that are the same string", f"{agreement.equal} of {agreement.total}", ""])
    return rows


def mask_table(ours: Run) -> list[list[str]]:
    """Return a header, then one row per split of masks, a metric in each column; empty where a split lacks it."""
    splits = {task: found.metrics for task, found in ours.tasks.items() if "cIoU" in found.metrics}
    names = list(dict.fromkeys(name for metrics in splits.values() for name in metrics))
    rows = [["split", *names]]
    for task, metrics in splits.items():
        rows.append([task, *(f"{metrics[name]:.4g}" if name in metrics else "" for name in names)])
    return rows


def as_text(table: list[list[str]]) -> str:
    """Columns padded with spaces."""
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in table)


def say(step: int, what: str) -> None:
    """Announce a step."""
    print(f"\n[{step}/5] {what}", file=sys.stderr, flush=True)


def _require_decord() -> None:
    """lmms-eval's llava_hf imports decord without requiring it: say so before minutes of work, not after."""
    from importlib.util import find_spec

    if find_spec("decord") is None:
        raise DemoFailed(f"lmms-eval's {STOCK} adapter imports `decord`: pip install 'flmm-plugin[demo]'")


if __name__ == "__main__":
    sys.exit(main())
