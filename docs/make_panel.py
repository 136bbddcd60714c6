"""Remake the panel: every kind of task on the embedded model, the paper's tables with its rows, and all controls.

    python docs/make_panel.py                  runs (some minutes), then writes; run again to go on where it stopped
    python docs/make_panel.py --limit 2        two documents of each task: a look at how it works; writes nothing

Three runs of lmms-eval in a work folder, each resumed where it stopped: the embedded model with its heads on the group
``flmm_all_tiny`` and on all splits of RefCOCO, RefCOCO+ and RefCOCOg drawn in its world; lmms-eval's own adapter on the
chat tasks; and the same heads' recipe on an LMM of the same shape that was never trained. Then

    docs/results/panel/tables.md, tables.csv     tables 1-6 and A1-A3 beside the paper's rows, marked as the world's
    docs/results/panel/controls.csv              every main metric with its interval and its controls
    docs/results/panel/second_look.csv           right answers with and without a second look, by what is asked for

and the tables of docs/panel.md. Other weights, or another world, make a work folder of their own.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results" / "panel"

_SECOND_LOOK = ("exact", "anls", "box_acc@0.5")
#: Task -> the metrics that docs/panel.md shows; it is the group flmm_all_tiny.
MAIN: Mapping[str, tuple[str, ...]] = {
    "flmm_tiny_mme": ("mme_perception_score",),
    "flmm_tiny_choice": ("acc",),
    "flmm_tiny_pope_direct": ("pope_accuracy", "pope_f1_score"),
    "flmm_tiny_pope_v1": ("pope_accuracy", "pope_f1_score"),
    "flmm_tiny_pope_v2": ("pope_accuracy", "pope_f1_score"),
    "flmm_tiny_refcoco": ("cIoU", "mIoU", "P@0.5"),
    "flmm_tiny_png": ("AR", "AR_thing", "AR_stuff", "AR_singular", "AR_plural"),
    "flmm_tiny_keywords": ("F1", "phrase_F1"),
    "flmm_tiny_gcg": ("METEOR", "CIDEr", "AP50", "mIoU", "mask_recall"),
    "flmm_tiny_reasonseg": ("gIoU", "cIoU"),
    "flmm_tiny_viscot_direct": ("exact", "anls"),
    "flmm_tiny_viscot_v1": _SECOND_LOOK,
    "flmm_tiny_viscot_v2": _SECOND_LOOK,
}
#: Answered by log-likelihoods: there is no reply to rewrite, one of two words was picked.
WITHOUT_REPLY = ("flmm_tiny_choice",)
#: Tasks on the same questions without and with a second look, by what the columns of second_look.csv are called.
LOOKS: Mapping[str, tuple[str, str]] = {
    "direct": ("flmm_tiny_viscot_direct", "flmm_tiny_pope_direct"),
    "v1": ("flmm_tiny_viscot_v1", "flmm_tiny_pope_v1"),
    "v2": ("flmm_tiny_viscot_v2", "flmm_tiny_pope_v2"),
}
#: How a question of the world begins -> what it asks for.
ASKED_FOR = {
    "What color": "colour",
    "What shape": "shape",
    "What size": "size, against the picture",
    "Where": "place in the picture",
    "Is there": "whether there is one",
}
#: What the stock adapter can do; its log-likelihoods fail in transformers 5, which wants a picture for every prompt.
CHAT = ("flmm_tiny_mme", "flmm_tiny_pope_direct")
#: Tasks that an LMM which never learnt to speak can do: its words are given, its attention is read.
GIVEN_WORDS = ("flmm_tiny_refcoco", "flmm_tiny_png")
#: What docs/panel.md calls each control of `flmm_plugin.tasks.controls`.
HEADINGS: Mapping[str, str] = {
    "whole": "whole image",
    "centre": "centre box",
    "wrong_phrase": "wrong phrase",
    "other_picture": "another picture's reply",
    "constant": "constant answer",
}
UNTRAINED = "untrained LMM"


def main(argv: Sequence[str] | None = None) -> int:
    """Run what has no result yet, then write; 1 if a task has none."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--work", type=Path, default=ROOT / "build" / "panel", help="work folder (default: %(default)s)"
    )
    parser.add_argument("--limit", type=int, help="documents per task; nothing is written")
    args = parser.parse_args(argv)
    work = args.work.resolve() / made_of()
    folders = run_all(work, limit=args.limit)
    if folders is None or args.limit:
        return int(folders is None)
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name, text in written(folders).items():
        refuse_paths(name, text, (str(work), str(ROOT), str(Path.home())))
        (RESULTS / name).write_text(text, encoding="utf-8")
        print(f"wrote {RESULTS / name}", file=sys.stderr)
    from flmm_plugin.reports import tables

    return tables.main([str(ROOT / "docs" / "panel.md")])


def made_of() -> str:
    """Tells the embedded weights (LMM and heads) and the code that writes their world apart."""
    from flmm_plugin import tiny
    from flmm_plugin.tiny.panel import panel_root

    whole = hashlib.sha256(panel_root().name.encode())
    for path in (tiny.tiny_path() / "model.safetensors", tiny.heads_path()):
        whole.update(path.read_bytes())
    return whole.hexdigest()[:12]


def run_all(work: Path, *, limit: int | None) -> dict[str, Path] | None:
    """The three runs; their folders by name, None if a task has no result."""
    from flmm_plugin.cli.reproduce import Job, complete, stock_of
    from flmm_plugin.reports.table_layouts import LAYOUTS
    from flmm_plugin.tiny.layouts import write_refer
    from flmm_plugin.tiny.panel import SCENES, SEED

    work.mkdir(parents=True, exist_ok=True)
    data = write_refer(work / "data", scenes=SCENES, seed=SEED, names=("refcoco", "refcoco+", "refcocog"))
    folder = work / ("runs" if limit is None else f"runs-limit{limit}")
    jobs = {"flmm": Job("flmm_tiny", "", (*MAIN, *LAYOUTS["A2"].tasks), folder / "flmm_tiny")}
    stock = stock_of("flmm_tiny", "")
    if stock is not None:
        # Tasks of a class of their own come in lmms-eval's plain form alone.
        jobs["stock"] = Job(*stock, CHAT, folder / "stock", ("--force_simple",))
    jobs[UNTRAINED] = Job("flmm_tiny", untrained(work), GIVEN_WORDS, folder / "untrained")
    # One by one: lmms-eval's adapter of this form takes no batches, and both runs are to be run alike.
    settings = argparse.Namespace(batch_size=1, limit=limit, device=None, data=data, no_fetch=True)
    lacking = [f"{name}: {task}" for name, job in jobs.items() for task in complete(job, settings, folder)]
    for one in lacking:
        print(f"no result: {one}; its log is under {folder}", file=sys.stderr)
    return None if lacking else {name: job.folder for name, job in jobs.items()}


def untrained(work: Path) -> str:
    """``--model_args`` of an LMM that was never trained, with the heads that were trained on it."""
    from flmm_plugin import tiny
    from flmm_plugin.tiny.untrained import write_untrained

    place = work / "flmm_tiny"  # heads remember the name of the model that they were trained for
    if not (place / "model.safetensors").is_file():
        write_untrained(place)
    return f"pretrained={place},heads={tiny.heads_path().parent / 'control_random.safetensors'}"


def written(folders: Mapping[str, Path]) -> dict[str, str]:
    """The files to commit, by name."""
    from flmm_plugin.reports.comparison import compare
    from flmm_plugin.reports.rendering import render
    from flmm_plugin.reports.result_files import read_results
    from flmm_plugin.reports.table_layouts import LAYOUTS

    runs = read_results([folder for name, folder in folders.items() if name != UNTRAINED])
    compared = [compare(layout, runs) for layout in LAYOUTS.values()]
    lead = (
        "# The paper's tables with the embedded model's rows\n\nMade by `make panel`; do not edit. The embedded model "
        "knows a drawn world alone: its rows are there to show what is measured and how, and stand beside no "
        "published number.\n\n"
    )
    return {
        "tables.md": lead + render(compared, "md"),
        "tables.csv": render(compared, "csv"),
        "controls.csv": controls_csv(folders),
        "second_look.csv": second_look_csv(folders),
    }


def controls_csv(folders: Mapping[str, Path]) -> str:
    """One row per main metric: the run with its interval, then every control; empty where one does not touch it."""
    from loguru import logger

    from flmm_plugin.reports.lmms_eval_files import read
    from flmm_plugin.tasks.controls import controlled
    from flmm_plugin.tasks.rescoring import Options, rescore
    from flmm_plugin.tasks.sample_log import find_samples, task_of

    logger.disable("lmms_eval")  # its scores say what they found, for every draw of an interval
    never: dict[str, Mapping[str, float]] = {}
    for run in read(folders[UNTRAINED]):
        never |= {name: task.metrics for name, task in run.tasks.items()}
    logs = {task_of(path): path for path in find_samples([folders["flmm"]])}
    out = io.StringIO()
    out.write("# make panel: the embedded model on its own world, and controls of the same logs\n")
    for line in provenance(folders["flmm"]):
        out.write(f"# {line}\n")
    table = csv.writer(out, lineterminator="\n")
    table.writerow(
        ["task", "metric", "documents", "run", "95 % interval", *HEADINGS.values(), UNTRAINED, "truth itself"]
    )
    for task, metrics in MAIN.items():
        rescored = rescore(logs[task], options=Options(metrics=metrics))
        scores = {one.metric: one for one in rescored.scores}
        values: Mapping[str, Mapping[str, float | None]] = (
            picked_controls(logs[task], *metrics)
            if task in WITHOUT_REPLY
            else controlled(logs[task], metrics=metrics).values
        )
        for metric in metrics:
            interval = scores[metric].interval
            said = "" if interval is None else f"{cell(interval.low)} to {cell(interval.high)}"
            value = scores[metric].value
            row = [task, metric, rescored.documents, cell(value), said]
            row += [cell(values.get(name, {}).get(metric)) for name in HEADINGS]
            # A control that changes nothing gives what the run got.
            truth = values["truth"].get(metric, value) if "truth" in values else None
            row += [cell(never.get(task, {}).get(metric)), cell(truth)]
            table.writerow(row)
    return out.getvalue()


def picked_controls(log: Path, metric: str) -> dict[str, dict[str, float | None]]:
    """Controls of a task that picks one of two words: of the picks, as `tasks.controls` makes them of replies."""
    from flmm_plugin.tasks.controls import logged
    from flmm_plugin.tasks.sample_log import read_samples

    lines = list(read_samples(log))
    wanted = [str(line["target"]) for line in lines]
    picks = [
        {
            "doc_id": line["doc_id"],
            "filtered_resps": line[metric]["picked"],
            "reference": {"image_path": line["input_media"][0]},
        }
        for line in lines
    ]
    documents = logged(picks)
    usual = Counter(wanted).most_common(1)[0][0]
    replies = {
        "other_picture": [documents[one.other].reply for one in documents],
        "constant": [usual] * len(lines),
        "truth": wanted,
    }
    return {name: {metric: share(map(str.__eq__, said, wanted))} for name, said in replies.items()}


def second_look_csv(folders: Mapping[str, Path]) -> str:
    """Percent of right answers by what is asked for, without and with a second look."""
    from flmm_plugin.tasks.sample_log import find_samples, read_samples, task_of

    logs = {task_of(path): path for path in find_samples([folders["flmm"]])}
    right: dict[str, dict[str, list[bool]]] = {kind: {look: [] for look in LOOKS} for kind in ASKED_FOR.values()}
    for look, tasks in LOOKS.items():
        for line in (line for task in tasks for line in read_samples(logs[task])):
            question = line["reference"]["question"]
            kind = next(kind for begins, kind in ASKED_FOR.items() if question.startswith(begins))
            score = line["exact"] if "exact" in line else line["pope_accuracy"]
            right[kind][look].append(bool(score["score"]))
    out = io.StringIO()
    out.write("# make panel: answers of the embedded model from the whole picture, and from the cut alone\n")
    for line in provenance(folders["flmm"]):
        out.write(f"# {line}\n")
    table = csv.writer(out, lineterminator="\n")
    table.writerow(["asked for", "questions", *(f"right, {look}" for look in LOOKS)])
    for kind, looks in right.items():
        table.writerow([kind, len(looks["direct"]), *(cell(share(found)) for found in looks.values())])
    return out.getvalue()


def share(right: Iterable[bool]) -> float | None:
    """Percent of what is true; None of nothing."""
    listed = list(right)
    return 100 * sum(listed) / len(listed) if listed else None


def provenance(folder: Path) -> list[str]:
    """What made the numbers, from the newest result file."""
    from flmm_plugin.reports.lmms_eval_files import read

    *_, newest = read(folder)
    first: Any = next(iter(newest.tasks.values())).provenance
    skipped = ("n", "data", "judge", "file")  # of single tasks, or of this machine
    return [f"{name.replace('_', ' ')}: {value}" for name, value in first.items() if value and name not in skipped]


def cell(value: float | None) -> str:
    """Two decimals; empty for what does not exist."""
    return "" if value is None else f"{value:.2f}"


def refuse_paths(name: str, text: str, places: Sequence[str]) -> None:
    """Committed files say nothing of the machine they were made on.

    Raises:
        SystemExit: This one would.
    """
    for place in places:
        if len(place) > 1 and place in text:
            raise SystemExit(f"{name} would name {place}; nothing was written into it")


if __name__ == "__main__":
    sys.exit(main())
