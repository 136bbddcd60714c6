"""``flmm reproduce``: run what a table of the paper needs, resumably, and write the table."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flmm_plugin import files
from flmm_plugin.cli.made_of import made_of, set_aside
from flmm_plugin.cli.model_options import add_no_fetch
from flmm_plugin.cli.output import note, write
from flmm_plugin.errors import DataNotFound, OutputFailed, UnknownArgument
from flmm_plugin.needs import OFFLINE_VARIABLE, Need, provide
from flmm_plugin.suggestions import did_you_mean

if TYPE_CHECKING:
    from flmm_plugin.reports.table_layouts import Layout

_EXAMPLES = """\
examples:
  flmm reproduce table1 --backbones deepseek-vl-1.3b,llava-1.5-7b             the paper's names, with its released heads
  flmm reproduce table1 --backbones all --no-fetch                            its ten LMMs: what is missing, how large
  flmm reproduce table1 --data /data --backbones flmm_llava:heads=runs/llava  heads of your own
  flmm reproduce tableA2 --data /data --backbones flmm_deepseekvl:heads=1.3b.safetensors flmm_llava:heads=7b.safetensors
  flmm reproduce table1 --backbones flmm_tiny --data tiny/data --tasks mme,flmm_refcoco_val --limit 20 --stock
  flmm reproduce table1 ... --dry-run                  the commands alone

A name of the paper stands for the model, its checkpoint and its released heads. What is missing is fetched before
anything runs; with --no-fetch, or where a part can only be had by hand, one screen lists it.
Every backbone gets one lmms_eval process for all tasks that have no result yet. Its answers are kept sample by sample
(OUT/cache), so a run that was killed resumes. Tasks with a result file are not run again, unless weights, heads, data
or code have changed since (a changed picture of the same size is not noticed). If the process fails, each of its tasks
is run alone, so that one missing data set costs one column. lmms-eval's own adapters (--stock) hand over all answers at
once: they get a process per task, and a kill costs them that task.
Judged benchmarks need a key (OPENAI_API_KEY, see lmms-eval) and are left out without one.
"""

_MIN_FREE = 64 << 20  # bytes on the disk, below which nothing is begun

#: Formats of the written table, and the endings of their files.
FORMS = {"md": "md", "csv": "csv", "latex": "tex"}

#: Stock tasks that a judge scores; without a key they would print a wrong number, not none.
JUDGED = ("mmvet", "llava_in_the_wild")
#: Beginning of a released configuration's name -> model that its checkpoint is for.
_MODEL_OF = {
    "frozen_llava_1_5": "flmm_llava",
    "frozen_llava_next": "flmm_llava_next",
    "frozen_deepseek_vl": "flmm_deepseekvl",
    "frozen_mgm": "flmm_mgm",
    "frozen_hpt": "flmm_hpt",
}
_KEYS = ("OPENAI_API_KEY", "AZURE_OPENAI_API_KEY", "AZURE_API_KEY")


@dataclass(frozen=True)
class Job:
    """One model of lmms-eval and its tasks.

    Attributes:
        model: Name for ``lmms_eval --model``, such as ``flmm_llava``.
        arguments: Text for ``--model_args``, "" for none.
        tasks: Names of tasks, for ``--tasks``.
        folder: Where its results and logs go.
        options: Further words for the command line.
    """

    model: str
    arguments: str
    tasks: tuple[str, ...]
    folder: Path
    options: tuple[str, ...] = ()

    @property
    def ours(self) -> bool:
        """Return whether it is a model of this package, not a stock adapter."""
        return self.model.startswith("flmm_")

    def pending(self) -> tuple[str, ...]:
        """Return its tasks without a result."""
        done = finished_tasks(self.folder)
        return tuple(task for task in self.tasks if task not in done)


def add_subcommand(commands: Any) -> None:
    """Add ``reproduce`` to the parser of ``flmm``."""
    parser = commands.add_parser(
        "reproduce",
        help="run what a table of the paper needs, resumably, and render it",
        description="Run the lmms-eval tasks that fill a table of the paper, for one or several backbones; then write "
        "the table (md, csv, tex) and a page into OUT.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("table", metavar="TABLE", help="table1, table2, ..., tableA3 (or 1, 2, ..., A3)")
    parser.add_argument(
        "--backbones",
        nargs="+",
        required=True,
        metavar="NAME|MODEL[:ARGS]",
        help="LMMs of the paper (flmm heads list), with commas or spaces, or all; or models as `flmm list` names them, "
        "with what --model_args would say behind a colon",
    )
    parser.add_argument("--data", type=Path, metavar="ROOT", help="data root (default: FLMM_DATA, else data/)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="work folder (default: reproduce/<table>)")
    parser.add_argument("--tasks", metavar="TASK,...", help="these of the table's tasks alone")
    parser.add_argument("--stock", action="store_true", help="also the chat tasks through lmms-eval's own adapter")
    parser.add_argument("--limit", type=int, metavar="N", help="documents per task; marks every number as partial")
    parser.add_argument(
        "--batch-size", type=int, default=1, metavar="N", help="requests per pass (default: %(default)s)"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: lmms-eval's choice)")
    add_no_fetch(parser)
    parser.add_argument("--dry-run", action="store_true", help="print the commands and stop")
    parser.set_defaults(run=run, stopped=stopped)


def run(args: argparse.Namespace) -> int:
    """Run and render; 0 if every task has a result, 1 if some have none (the table is written all the same).

    Raises:
        UnknownArgument, DataNotFound, OutputFailed: Found before anything is run.
    """
    from flmm_plugin.data.checking import data_digests
    from flmm_plugin.data.root import data_root
    from flmm_plugin.reports.table_layouts import layouts_of
    from flmm_plugin.tasks.benchmarks import benchmarks

    layouts, out = layouts_of([args.table]), out_of(args)
    masks = frozenset(task for layout in layouts for task in layout.mask_tasks)
    jobs = planned(args, chosen_tasks(layouts, args.tasks), masks, out)
    jobs = without_foreign_code(jobs)
    if args.dry_run:
        for job in jobs:
            print(shlex.join(["lmms_eval", *command_of(job, job.tasks, args, out)]))
        return 0
    check_places(jobs, args, out)
    script()
    provide(needs_of(jobs, args.data), fetch=not args.no_fetch, again=lambda: needs_of(jobs, args.data))
    began = time.monotonic()
    lacking = []
    data = data_digests(data_root(args.data), benchmarks().values())
    for number, job in enumerate(jobs, start=1):
        note(f"\n[{number}/{len(jobs)}] {job.model} {job.arguments}".rstrip())
        set_aside(job.folder, {**made_of(job.model, job.arguments), **data})
        lacking += [f"{job.model}: {task}; its log is {job.folder / 'log.txt'}" for task in complete(job, args, out)]
    write_all(jobs, args, layouts, out)
    for one in lacking:
        note(f"no result: {one}")
    note(f"{time.monotonic() - began:.0f} s")
    return 1 if lacking else 0


def stopped(args: argparse.Namespace) -> str:
    """Say what is saved when somebody stops it."""
    return f"results and answers so far are kept in {out_of(args)}; the same line goes on with them"


def out_of(args: argparse.Namespace) -> Path:
    """Return the work folder."""
    given: Path | None = args.out
    return Path("reproduce") / f"table{_label(args)}" if given is None else given


def _label(args: argparse.Namespace) -> str:
    return re.sub(r"^table", "", args.table.strip().lower())


def check_places(jobs: Sequence[Job], args: argparse.Namespace, out: Path) -> None:
    """Check before hours of work that there is data, and that everything can be written.

    Raises:
        DataNotFound: There is no such data root.
        OutputFailed: A place takes no files, or the disk is full.
    """
    if args.data is not None and not args.data.is_dir():
        raise DataNotFound(f"there is no folder {args.data}; give --data the root of the data (flmm data list)")
    for folder in (out / "cache", *(job.folder for job in jobs)):
        files.make_folder(folder)
    for name in (*(f"table{_label(args)}.{ending}" for ending in FORMS.values()), "report.html"):
        files.check_file_place(out / name)
    if shutil.disk_usage(out).free < _MIN_FREE:
        raise OutputFailed(f"{out}: the disk is full, or almost; make room or name another place")


def chosen_tasks(layouts: Sequence[Layout], asked: str | None) -> tuple[str, ...]:
    """Return the tasks of the layouts, or those of them that were asked for; judged ones only with a key.

    Raises:
        UnknownArgument: A task that is none of the table's.
    """
    known = [task for layout in layouts for task in layout.tasks]
    names = [name.strip() for name in asked.split(",")] if asked else known
    for name in names:
        if name not in known:
            fills = ", ".join(dict.fromkeys(known))
            raise UnknownArgument(f"{name!r} fills no column of this table; its tasks: {fills}")
    judged = [] if any(os.environ.get(key) for key in _KEYS) else [task for task in names if task in JUDGED]
    if judged:
        note(f"left out, for want of a judge (set OPENAI_API_KEY): {', '.join(dict.fromkeys(judged))}")
    return tuple(dict.fromkeys(name for name in names if name not in judged))


def planned(args: argparse.Namespace, tasks: tuple[str, ...], masks: frozenset[str], out: Path) -> list[Job]:
    """Return one job per backbone, and with ``--stock`` one more for its chat tasks.

    Raises:
        UnknownArgument: A model that is none of this plugin's.
    """
    jobs = []
    for spec in specs_of(args.backbones):
        model, _, arguments = spec.partition(":")
        # Numbers over a part never count as those of the whole split: each limit has a folder of its own.
        part = f"-limit{args.limit}" if args.limit else ""
        jobs.append(Job(model, arguments, tasks, out / "runs" / (folder_name(spec) + part)))
        chat = tuple(task for task in tasks if task not in masks)
        stock = stock_of(model, arguments) if args.stock and chat else None
        if stock is not None:
            jobs.append(Job(*stock, chat, out / "runs" / (folder_name(f"stock {spec}") + part)))
    return jobs


def specs_of(given: Sequence[str]) -> list[str]:
    """Return backbones as ``MODEL:ARGS``; names of the paper become model and checkpoint.

    >>> specs_of(["deepseek-vl-1.3b,LLaVA-1.5-7B"])[0]
    'flmm_deepseekvl:pretrained=deepseek-community/deepseek-vl-1.3b-chat'

    Args:
        given: Words of the command line; ``all`` means the paper's ten LMMs.

    Raises:
        UnknownArgument: Neither a model of this plugin nor an LMM of the paper.
    """
    from flmm_plugin.adapters.lmms_eval.models import MODELS
    from flmm_plugin.heads.released import RELEASED, find_released

    found: dict[str, None] = {}
    # Arguments behind a colon have commas of their own.
    for name in (one for word in given for one in ([word] if ":" in word else word.split(","))):
        if name.partition(":")[0] in MODELS:
            found[name] = None
            continue
        released = find_released(name)
        if released is None and name != "all":
            known = [*MODELS, "all", *(alias for one in RELEASED for alias in one.names)]
            raise UnknownArgument(
                f"no model {name!r}{did_you_mean(name, known)} (MODEL:pretrained=...,heads=...). Known: "
                f"{', '.join(MODELS)}; of the paper: {', '.join(one.name for one in RELEASED)}, or all"
            )
        for one in RELEASED if released is None else (released,):
            model = next(model for start, model in _MODEL_OF.items() if one.configuration.startswith(start))
            found[f"{model}:pretrained={one.hub}"] = None
    return list(found)


def without_foreign_code(jobs: Sequence[Job]) -> list[Job]:
    """Leave out, with a note, what runs code of its repository that nobody has allowed by its commit.

    Raises:
        UnknownArgument: Nothing is left.
    """
    refused = [job for job in jobs if job.model == "flmm_hpt" and "trust_remote_code" not in job.arguments]
    if not refused:
        return list(jobs)
    left = [job for job in jobs if job not in refused]
    said = (
        f"left out: {', '.join(job.arguments or job.model for job in refused)}. HPT runs code of its repository. "
        "Read it at one commit, then add flmm_hpt:pretrained=...,trust_remote_code=true,revision=COMMIT"
    )
    if not left:
        raise UnknownArgument(said)
    note(said)
    return left


def needs_of(jobs: Sequence[Job], data: Path | None) -> list[Need]:
    """Return what all jobs need together: weights, heads, SAM and the data of their tasks, each thing once.

    The embedded model comes with its weights, and reads its own scenes where data are missing.

    Raises:
        UnknownArgument, HeadsMismatch: Arguments of a model that do not exist or contradict each other.
    """
    from flmm_plugin import bundled
    from flmm_plugin.adapters.answering.arguments import ModelArguments
    from flmm_plugin.adapters.answering.defaults import DEFAULTS
    from flmm_plugin.options import arguments_of

    waiting = []
    for job in (job for job in jobs if job.ours and job.pending()):
        arguments = arguments_of(job.arguments)
        if not bundled.is_model(ModelArguments.read(DEFAULTS[job.model], arguments).pretrained):
            waiting.append((job, arguments))
    if not waiting:
        return []
    from flmm_plugin.adapters.lmms_eval.preflight import Asked, survey
    from flmm_plugin.adapters.lmms_eval.task_folder import task_index

    manager = task_index(waiting[0][0].model)
    surveys = (survey(Asked(job.model, given, job.pending(), manager, root=data)) for job, given in waiting)
    return list({(need.kind, need.what): need for found in surveys for need in found.needs}.values())


def stock_of(model: str, arguments: str) -> tuple[str, str] | None:
    """Return name and arguments of a model's stock adapter; None, with a note, where lmms-eval has none that works.

    Raises:
        UnknownArgument: It is not said which checkpoint the model is.
    """
    from flmm_plugin.adapters.preservation.stock import PLAIN, adapter_for, stock_arguments

    given = dict(part.split("=", 1) for part in arguments.split(",") if "=" in part)
    chosen = stock_arguments(given, "flmm_tiny" if model == "flmm_tiny" else "")
    name, why = adapter_for(chosen)
    if name == PLAIN:
        note(f"no stock adapter for {model}: {why}; flmm preserve compares it with plain transformers")
        return None
    # lmms-eval's adapter needs a device map of its own, which transformers 5 refuses to be empty.
    device = chosen.setdefault("device", "cuda" if _cuda() else "cpu")
    chosen.setdefault("device_map", device)
    return name, ",".join(f"{key}={value}" for key, value in chosen.items())


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def complete(job: Job, args: argparse.Namespace, out: Path) -> tuple[str, ...]:
    """Run a job's pending tasks together, then those still pending alone; return those that have no result."""
    pending = job.pending()
    if not pending:
        note("  all results are there")
        return ()
    # A stock adapter's answers are kept only at the end of its process.
    batches = [pending] if job.ours else [(task,) for task in pending]
    failed = [status for status in (evaluate(job, tasks, args, out) for tasks in batches) if status]
    left = job.pending()
    if job.ours and len(pending) > 1 and left:
        for task in left:
            note(f"  {task} once more, alone")
            evaluate(job, (task,), args, out)
        return job.pending()
    if failed and not left:
        return (f"lmms_eval wrote results for {','.join(pending)} and ended with {failed[-1]}",)
    return left


def evaluate(job: Job, tasks: tuple[str, ...], args: argparse.Namespace, out: Path) -> int:
    """Run one lmms_eval process: its progress is shown, its output goes to a log; return its exit status."""
    command = [script(), *command_of(job, tasks, args, out)]
    note("  $ " + shlex.join(["lmms_eval", *command[1:]]))
    path = job.folder / "log.txt"
    with files.naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as log:
            log.write(f"\n$ {shlex.join(command)}\n")
            log.flush()
            return subprocess.run(command, env=environment(args), stdout=log, check=False).returncode


def command_of(job: Job, tasks: Sequence[str], args: argparse.Namespace, out: Path) -> list[str]:
    """Return the arguments of ``lmms_eval``."""
    words = ["--model", job.model, "--tasks", ",".join(tasks), "--batch_size", str(args.batch_size)]
    words += [*job.options, *(["--model_args", job.arguments] if job.arguments else [])]
    words += ["--limit", str(args.limit)] if args.limit else []
    words += ["--device", args.device] if args.device else []
    # Stock adapters name their caches by their arguments alone: those lie with the results that they belong to.
    cache = out / "cache" / job.folder.name if job.ours else job.folder / "cache"
    return [*words, "--use_cache", str(cache.resolve()), "--log_samples", "--output_path", str(job.folder.resolve())]


def finished_tasks(folder: Path) -> frozenset[str]:
    """Return tasks with numbers in a result file under a folder, except those of which every document failed.

    Raises:
        DataNotFound: A result file is damaged; the message names it.
    """
    from flmm_plugin.reports.lmms_eval_files import read

    if not folder.is_dir():
        return frozenset()
    return frozenset(task for run_ in read(folder) for task in run_.tasks if not _all_failed(run_.path, task))


def _all_failed(results: Path, task: str) -> bool:
    content = json.loads(results.read_text(encoding="utf-8"))
    failed = ((content.get("flmm") or {}).get("failed") or {}).get(task, 0)
    counts = (content.get("n-samples") or {}).get(task) or {}
    return bool(failed) and failed >= counts.get("effective", failed + 1)


def environment(args: argparse.Namespace) -> Mapping[str, str]:
    """Return the caller's environment with the data root, and without leave to fetch where it was taken."""
    data = {"FLMM_DATA": str(args.data.resolve())} if args.data is not None else {}
    return {**os.environ, **data, **({OFFLINE_VARIABLE: "1"} if args.no_fetch else {})}


def script() -> str:
    """Return the path of the ``lmms_eval`` of this environment.

    Raises:
        DataNotFound: It is not installed.
    """
    path = Path(sysconfig.get_path("scripts")) / "lmms_eval"
    if not path.is_file():
        raise DataNotFound(f"there is no `lmms_eval` beside {sys.executable}; install flmm-plugin into it")
    return str(path)


def folder_name(spec: str) -> str:
    """Return a folder's name for a model and its arguments; different ones have different names.

    >>> folder_name("flmm_llava:pretrained=a/b")
    'flmm_llava_pretrained-a_b-8f90'
    """
    readable = re.sub(r"[^\w.+-]+", "_", spec.replace("=", "-"))[:80]
    return f"{readable}-{hashlib.sha256(spec.encode()).hexdigest()[:4]}" if ":" in spec else readable


def write_all(jobs: Sequence[Job], args: argparse.Namespace, layouts: Sequence[Layout], out: Path) -> None:
    """Write the table in every format, and the page."""
    from flmm_plugin.reports.comparison import compare
    from flmm_plugin.reports.explorer import write_explorer
    from flmm_plugin.reports.rendering import render
    from flmm_plugin.reports.result_files import read_results
    from flmm_plugin.reports.sample_files import read_samples

    runs = read_results([job.folder for job in jobs if finished_tasks(job.folder)])
    tables = [compare(layout, runs) for layout in layouts]
    for form, ending in FORMS.items():
        write(out / f"table{_label(args)}.{ending}", render(tables, form))
    facts = write_explorer(out / "report.html", tables, read_samples(runs), title=f"Table {_label(args)}, reproduced")
    note(f"wrote {facts.path}: {facts.samples} samples")
