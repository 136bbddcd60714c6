"""``flmm score``: every metric of a run again from its logged samples, with confidence intervals."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flmm_plugin.cli.output import note, print_json
from flmm_plugin.errors import FlmmError, UnknownArgument

if TYPE_CHECKING:
    from flmm_plugin.tasks.controls import Controlled
    from flmm_plugin.tasks.rescoring import Options, Rescored, Score

_DESCRIPTION = """\
Score the samples that lmms_eval logged (--log_samples --output_path FOLDER) once more, without a model or a GPU: each
reply against the reference that was logged with it, by the very functions that the run used. Beside each metric stands
a confidence interval, from drawing documents (pictures) with replacement, and what the run printed. A log of
--predict_only has no reference: it is read from the data set (FLMM_DATA). Exit status 2 if a log cannot be scored.
"""

_EXAMPLES = """\
examples:
  flmm score results/                                            all samples of this package's tasks in a folder
  flmm score run_samples_flmm_gcg_val.jsonl --encoder words      mask recall by another comparison of phrases
  flmm score samples.jsonl --task flmm_refcoco_val --json        a file under another name; one JSON object
  flmm score results/ --resamples 0                              no intervals: quick
  flmm score results/ --controls                                 beside what replies that saw nothing would get
"""


def add_subcommand(commands: Any) -> None:
    """Add ``score`` to the parser of ``flmm``."""
    parser = commands.add_parser(
        "score",
        help="every metric again from logged samples, with confidence intervals",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    option = parser.add_argument
    option("samples", metavar="SAMPLES", nargs="+", type=Path, help="*_samples_TASK.jsonl files, or folders with some")
    option("--task", help="whose samples they are (default: as the file's name says)")
    option("--metrics", help="only these, e.g. cIoU,mIoU (default: all of the task)")
    option(
        "--from",
        dest="source",
        default="auto",
        choices=("auto", "predictions", "counts"),
        help="score replies anew, or sum up what was logged per document (default: replies where the log has all that "
        "they are compared with)",
    )
    option("--encoder", metavar="NAME", help="compare phrases by this model, or `words` (default: as in the run)")
    option("--resamples", type=_count, default=1000, help="draws for the intervals, 0 for none (default: %(default)s)")
    option("--level", type=_share, default=0.95, help="share of the draws within an interval (default: %(default)s)")
    option("--seed", type=int, default=0, help="of the draws (default: %(default)s)")
    option(
        "--controls",
        action="store_true",
        help="also score controls made of the same replies: whole picture, centre "
        "box, another phrase's masks, another picture's reply, always the same answer, the truth",
    )
    option("--json", action="store_true", help="one JSON object instead of tables")
    parser.set_defaults(run=_score)


def _score(args: argparse.Namespace) -> int:
    from loguru import logger

    # Some of lmms-eval's scores log what they found, which here would be once for every draw of an interval.
    logger.disable("lmms_eval")
    try:
        return _scored(args)
    finally:
        logger.enable("lmms_eval")


def _scored(args: argparse.Namespace) -> int:
    from flmm_plugin.tasks.controls import CONTROLS
    from flmm_plugin.tasks.rescoring import Options, rescore

    wanted = tuple(name.strip() for name in (args.metrics or "").split(",") if name.strip())
    options = Options(args.source, args.resamples, args.level, args.seed, args.encoder, wanted)
    logs = _logs(args, wanted)
    results: list[tuple[Rescored, Controlled | None]] = []
    problems: list[str] = []
    for path, metrics in logs:
        try:
            result = rescore(path, args.task, replace(options, metrics=metrics))
        except FlmmError as exc:
            if len(logs) == 1:
                raise
            problems.append(f"flmm: {type(exc).__name__}: {' '.join(str(exc).split())}")
            continue
        problems += [
            f"flmm: {path.name}: no {one.metric}: {one.problem}"
            for one in result.scores
            if one.metric in wanted and one.value is None
        ]
        results.append((result, _controls(path, args.task, metrics) if args.controls else None))
    if args.json:
        listed = [
            {**asdict(result), "path": str(result.path), **({"controls": table.values} if table is not None else {})}
            for result, table in results
        ]
        print_json({"options": asdict(options), "results": listed})
    else:
        texts = []
        for result, table in results:
            texts.append(as_text(result, options))
            if table is not None:
                texts.append(controls_as_text(table))
        if args.controls:
            texts.append("\n".join(f"{name}: {what}" for name, what in CONTROLS.items()))
        if texts:
            print("\n\n".join(texts))
    for problem in problems:
        note(problem)
    return 2 if problems else 0


def _logs(args: argparse.Namespace, wanted: tuple[str, ...]) -> list[tuple[Path, tuple[str, ...]]]:
    """The sample files to score, and the metrics wanted of each; of several, those that have none are left out."""
    from flmm_plugin.tasks.sample_log import find_samples, task_of
    from flmm_plugin.tasks.task_files import aggregations, task_files

    found = find_samples(args.samples)
    if args.task is None:
        # A folder also holds the samples of stock tasks; a file that was named is scored or refused.
        found = [path for path in found if path in args.samples or task_of(path) in task_files()]
        if not found:
            raise UnknownArgument(
                f"no samples of this package's tasks in {', '.join(map(str, args.samples))}; `flmm list` names them all"
            )
    logs = []
    for path in found:
        known = aggregations(args.task or task_of(path))
        metrics = tuple(metric for metric in wanted if metric in known)
        if metrics or not wanted or len(found) == 1:
            logs.append((path, metrics or wanted))
    if not logs:
        raise UnknownArgument(f"none of the {len(found)} tasks has a metric {' or '.join(wanted)}")
    return logs


def _controls(path: Path, task: str | None, metrics: tuple[str, ...]) -> Controlled | None:
    """The controls of a log; None, with a note, for one that was written without its references."""
    from flmm_plugin.tasks.controls import controlled

    try:
        return controlled(path, task, metrics)
    except UnknownArgument as exc:
        note(f"no controls: {exc}")
        return None


def as_text(result: Rescored, options: Options) -> str:
    """Return one file's scores as a table for a terminal."""
    how = {
        "predictions": "scored anew from the predictions",
        "counts": "summed up from logged counts",
        "data": "scored from the predictions against the data set (a log of --predict_only)",
    }[result.source]
    lines = [f"{result.task}: {result.documents} documents, {how} ({result.path})"]
    if result.changed:
        lines.append(
            f"  NOTE: {result.changed} of {result.documents} documents score otherwise than when they were logged: the "
            "scoring changed since"
        )
    interval = f"{100 * options.level:g} % interval" if options.resamples else ""
    rows = [("metric", "value", interval, "printed by the run")]
    rows += [
        (one.metric, _number(one.value), _interval(one), "" if one.printed is None else _number(one.printed))
        for one in result.scores
    ]
    lines += _table(rows)
    lines += [f"  {one.metric}: {one.problem}" for one in result.scores if one.problem]
    return "\n".join(lines)


def controls_as_text(table: Controlled) -> str:
    """Return a run beside its controls as a table for a terminal; a dash where a control leaves a metric as it is."""
    names = list(table.values)
    rows = [("metric", *names)]
    for metric in table.values[names[0]]:
        cells = (_number(table.values[name][metric]) if metric in table.values[name] else "-" for name in names)
        rows.append((metric, *cells))
    return "\n".join([f"{table.task}: controls", *_table(rows)])


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows under each other: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  "
        + row[0].ljust(widths[0])
        + "".join(f"  {cell.rjust(wide)}" for cell, wide in zip(row[1:], widths[1:], strict=True)).rstrip()
        for row in rows
    ]


def _number(value: float | None) -> str:
    if value is None:
        return "N/A"
    return str(value) if isinstance(value, int) else f"{value:.2f}"


def _interval(score: Score) -> str:
    return "" if score.interval is None else f"{score.interval.low:.2f} .. {score.interval.high:.2f}"


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of draws: 0, 1000, ...")
    return int(text)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share between 0 and 1, such as 0.95")
    return value
