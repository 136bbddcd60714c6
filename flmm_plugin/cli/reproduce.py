"""``flmm reproduce``: run what a table of the paper needs, and render it. What is done is not done again."""

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
from typing import Any

from flmm_plugin import files
from flmm_plugin.cli.made_of import made_of, set_aside
from flmm_plugin.errors import DataNotFound, OutputFailed, UnknownArgument
from flmm_plugin.nearest import did_you_mean

_EXAMPLES = """\
examples:
  flmm reproduce table1 --data /data --backbones flmm_llava:pretrained=llava-hf/llava-1.5-7b-hf,heads=llava.safetensors
  flmm reproduce tableA2 --data /data --backbones flmm_deepseekvl:heads=1.3b.safetensors flmm_llava:heads=7b.safetensors
  flmm reproduce table1 --backbones flmm_tiny --data tiny/data --tasks mme,flmm_refcoco_val --limit 20 --stock
  flmm reproduce table1 ... --dry-run                  the commands alone

Every backbone gets one lmms_eval process over all tasks that it still lacks, with its answers kept sample by sample
(OUT/cache): a run that was killed goes on where it stopped, and tasks whose result file is there are not run again,
unless weights, heads, data or code are others than those that made it (a picture of the same size is not noticed).
If that process fails, each of its tasks is run alone, so that one missing data set costs one column. lmms-eval's own
adapters (--stock) hand over all answers at once: they get a process per task, and a kill costs them that task.
Judged benchmarks need a key (OPENAI_API_KEY, see lmms-eval) and are left out without one.
"""

_ROOM = 64 << 20  # bytes on the disk with which it is worth beginning

#: Forms of the written table, and the endings of their files.
FORMS = {"md": "md", "csv": "csv", "latex": "tex"}

#: Stock tasks whose score is a judge's; without a key they would print a wrong number, not none.
JUDGED = ("mmvet", "llava_in_the_wild")


@dataclass(frozen=True)
class Job:
    """One model of lmms-eval's and what it has to do.

    Attributes:
        model: For ``--model``.
        arguments: For ``--model_args``, "" for none.
        tasks: For ``--tasks``.
        folder: Where its results and logs go.
        options: Further words for the command line.
    """

    model: str
    arguments: str
    tasks: tuple[str, ...]
    folder: Path
    options: tuple[str, ...] = ()

    def pending(self) -> tuple[str, ...]:
        """Its tasks without a result."""
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
        metavar="MODEL[:ARGS]",
        help="models as `flmm list` names them, with what --model_args would say behind a colon",
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

    layouts = layouts_of([args.table])
    label, out = label_of(args), out_of(args)
    tasks = chosen_tasks(layouts, args.tasks)
    masks = frozenset(task for layout in layouts for task in layout.mask_tasks)
    jobs = planned(args, tasks, masks, out)
    if args.dry_run:
        for job in jobs:
            print(shlex.join(["lmms_eval", *command_of(job, job.tasks, args, out)]))
        return 0
    check_places(jobs, args, out, label)
    script()
    began = time.monotonic()
    lacking = []
    data = data_digests(data_root(args.data), benchmarks().values())
    for number, job in enumerate(jobs, start=1):
        print(f"\n[{number}/{len(jobs)}] {job.model} {job.arguments}".rstrip(), file=sys.stderr)
        set_aside(job.folder, {**made_of(job.model, job.arguments), **data})
        lacking += [f"{job.model}: {task}; its log is {job.folder / 'log.txt'}" for task in complete(job, args, out)]
    write_all(jobs, args, out, label)
    for one in lacking:
        print(f"no result: {one}", file=sys.stderr)
    print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
    return 1 if lacking else 0


def stopped(args: argparse.Namespace) -> str:
    """Say what is saved when somebody stops it."""
    return f"results and answers so far are kept in {out_of(args)}; the same line goes on with them"


def label_of(args: argparse.Namespace) -> str:
    """The table's name in names of files."""
    return re.sub(r"^table", "", args.table.strip().lower())


def out_of(args: argparse.Namespace) -> Path:
    """The work folder."""
    given: Path | None = args.out
    return given if given is not None else Path("reproduce") / f"table{label_of(args)}"


def check_places(jobs: Sequence[Job], args: argparse.Namespace, out: Path, label: str) -> None:
    """See that there is data, and that everything can be written, before hours of work.

    Raises:
        DataNotFound: There is no such data root.
        OutputFailed: A place takes no files, or the disk is full.
    """
    if args.data is not None and not args.data.is_dir():
        raise DataNotFound(f"there is no folder {args.data}; give --data the root of the data (flmm data list)")
    for folder in (out / "cache", *(job.folder for job in jobs)):
        files.make_folder(folder)
    for name in (*(f"table{label}.{ending}" for ending in FORMS.values()), "report.html"):
        files.check_file_place(out / name)
    if shutil.disk_usage(out).free < _ROOM:
        raise OutputFailed(f"{out}: the disk is full, or almost; make room or name another place")


def chosen_tasks(layouts: Sequence[Any], asked: str | None) -> tuple[str, ...]:
    """The tasks of the layouts, or those of them that were asked for; judged ones only with a key.

    Raises:
        UnknownArgument: A task that is none of the table's.
    """
    needed = tuple(dict.fromkeys(task for layout in layouts for task in layout.tasks))
    if asked:
        names = tuple(dict.fromkeys(name.strip() for name in asked.split(",")))
        for name in names:
            if name not in needed:
                raise UnknownArgument(f"{name!r} fills no column of this table; its tasks: {', '.join(needed)}")
        needed = names
    if not any(os.environ.get(key) for key in ("OPENAI_API_KEY", "AZURE_OPENAI_API_KEY", "AZURE_API_KEY")):
        left = [task for task in needed if task in JUDGED]
        if left:
            print(f"left out, for want of a judge (set OPENAI_API_KEY): {', '.join(left)}", file=sys.stderr)
        needed = tuple(task for task in needed if task not in JUDGED)
    return needed


def planned(args: argparse.Namespace, tasks: tuple[str, ...], masks: frozenset[str], out: Path) -> list[Job]:
    """One job per backbone, and with ``--stock`` one more for its chat tasks.

    Raises:
        UnknownArgument: A model that is none of this plugin's.
    """
    from flmm_plugin.adapters.lmms_eval.models import MODELS

    jobs = []
    for spec in args.backbones:
        model, _, arguments = spec.partition(":")
        if model not in MODELS:
            raise UnknownArgument(
                f"no model {model!r}{did_you_mean(model, MODELS)} (MODEL:pretrained=...,heads=...). Known: "
                f"{', '.join(MODELS)}"
            )
        # Numbers over a part never count as the whole: each limit has a folder of its own.
        part = f"-limit{args.limit}" if args.limit else ""
        jobs.append(Job(model, arguments, tasks, out / "runs" / (folder_name(spec) + part)))
        chat = tuple(task for task in tasks if task not in masks)
        stock = stock_of(model, arguments) if args.stock and chat else None
        if stock is not None:
            jobs.append(Job(*stock, chat, out / "runs" / (folder_name(f"stock {spec}") + part)))
    return jobs


def stock_of(model: str, arguments: str) -> tuple[str, str] | None:
    """Name and arguments of the stock adapter of a model; None, with a word, where lmms-eval has none that works.

    Raises:
        UnknownArgument: It is not said which checkpoint the model is.
    """
    from flmm_plugin.adapters.preservation.stock import PLAIN, adapter_for, stock_arguments

    given = dict(part.split("=", 1) for part in arguments.split(",") if "=" in part)
    told = stock_arguments(given, "flmm_tiny" if model == "flmm_tiny" else "")
    name, why = adapter_for(told)
    if name == PLAIN:
        print(
            f"no stock adapter for {model}: {why}; flmm preserve compares it with plain transformers", file=sys.stderr
        )
        return None
    # lmms-eval's adapter needs a device map of its own, which transformers 5 refuses to be empty.
    device = told.setdefault("device", "cuda" if _cuda() else "cpu")
    told.setdefault("device_map", device)
    return name, ",".join(f"{key}={value}" for key, value in told.items())


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def complete(job: Job, args: argparse.Namespace, out: Path) -> tuple[str, ...]:
    """Run a job's pending tasks together, then those still pending alone; returns those that have no result."""
    pending = job.pending()
    if not pending:
        print("  all results are there", file=sys.stderr)
        return ()
    # lmms-eval keeps a stock adapter's answers when it has given all of a process.
    together = job.model.startswith("flmm_")
    status = 0
    for tasks in [pending] if together else [(task,) for task in pending]:
        status = evaluate(job, tasks, args, out) or status
    left = job.pending()
    if together and len(pending) > 1:
        for task in left:
            print(f"  {task} once more, alone", file=sys.stderr)
            evaluate(job, (task,), args, out)
        status = 0 if left else status
    if status and not job.pending():
        return (f"lmms_eval wrote results for {','.join(pending)} and ended with {status}",)
    return job.pending()


def evaluate(job: Job, tasks: tuple[str, ...], args: argparse.Namespace, out: Path) -> int:
    """One lmms_eval process; its progress goes to the terminal, its output to a log; returns its exit status."""
    command = [script(), *command_of(job, tasks, args, out)]
    print("  $ " + shlex.join(["lmms_eval", *command[1:]]), file=sys.stderr, flush=True)
    path = job.folder / "log.txt"
    with files.naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as log:
            log.write(f"\n$ {shlex.join(command)}\n")
            log.flush()
            return subprocess.run(command, env=environment(args.data), stdout=log, check=False).returncode


def command_of(job: Job, tasks: Sequence[str], args: argparse.Namespace, out: Path) -> list[str]:
    """The arguments of ``lmms_eval``."""
    words = ["--model", job.model, "--tasks", ",".join(tasks), "--batch_size", str(args.batch_size)]
    words += [*job.options, *(["--model_args", job.arguments] if job.arguments else [])]
    words += ["--limit", str(args.limit)] if args.limit else []
    words += ["--device", args.device] if args.device else []
    words += ["--use_cache", str(cache_of(job, out).resolve())]
    return [*words, "--log_samples", "--output_path", str(job.folder.resolve())]


def cache_of(job: Job, out: Path) -> Path:
    """Where a job's answers are kept.

    Those of lmms-eval's own adapters have names made of arguments alone, so they lie with the results that they are of.
    """
    return out / "cache" / job.folder.name if job.model.startswith("flmm_") else job.folder / "cache"


def finished_tasks(folder: Path) -> frozenset[str]:
    """Tasks with numbers in a result file under a folder; one of which every document failed is not finished.

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


def environment(data: Path | None) -> Mapping[str, str]:
    """The caller's environment with the data root."""
    return {**os.environ, **({"FLMM_DATA": str(data.resolve())} if data is not None else {})}


def script() -> str:
    """The ``lmms_eval`` of this environment.

    Raises:
        DataNotFound: It is not installed.
    """
    path = Path(sysconfig.get_path("scripts")) / "lmms_eval"
    if not path.is_file():
        raise DataNotFound(f"there is no `lmms_eval` beside {sys.executable}; install flmm-plugin into it")
    return str(path)


def folder_name(spec: str) -> str:
    """A folder's name for a model and its arguments; different ones never share one.

    >>> folder_name("flmm_llava:pretrained=a/b")
    'flmm_llava_pretrained-a_b-b8ca'
    """
    readable = re.sub(r"[^\w.+-]+", "_", spec.replace("=", "-"))[:80]
    return f"{readable}-{hashlib.sha256(spec.encode()).hexdigest()[:4]}" if ":" in spec else readable


def write_all(jobs: Sequence[Job], args: argparse.Namespace, out: Path, label: str) -> None:
    """The table in every format, and the page."""
    from flmm_plugin.reports.comparison import compare
    from flmm_plugin.reports.explorer import write_explorer
    from flmm_plugin.reports.rendering import render
    from flmm_plugin.reports.result_files import read_results
    from flmm_plugin.reports.sample_files import read_samples
    from flmm_plugin.reports.table_layouts import layouts_of

    runs = read_results([job.folder for job in jobs if finished_tasks(job.folder)])
    tables = [compare(layout, runs) for layout in layouts_of([args.table])]
    for form, ending in FORMS.items():
        print(f"wrote {files.write(out / f'table{label}.{ending}', render(tables, form))}", file=sys.stderr)
    facts = write_explorer(out / "report.html", tables, read_samples(runs), title=f"Table {label}, reproduced")
    print(f"wrote {facts.path}: {facts.samples} samples", file=sys.stderr)
