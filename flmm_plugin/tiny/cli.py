"""``flmm tiny``: where the embedded LMM is, and what it measures."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from flmm_plugin import files
from flmm_plugin.errors import UnknownArgument


def add_subcommands(subparsers: Any) -> None:
    """Add all commands to the subparsers of ``flmm tiny``; each sets ``run(args) -> int``."""
    path = subparsers.add_parser(
        "path",
        help="print the folder of the embedded LMM",
        description="Print the folder of the embedded LMM: a plain transformers checkpoint that any stock adapter "
        "loads, e.g.: lmms-eval --model llava_hf --model_args "
        "pretrained=$(flmm tiny path),device=cpu,device_map=cpu --tasks mme",
    )
    path.set_defaults(run=_path)

    measure = subparsers.add_parser(
        "evaluate",
        help="measure chat, captions, grounding and all controls on fresh scenes",
        description="Measure the embedded LMM on fresh scenes of any seed. Progress goes to stderr, the result to "
        "stdout; any seed draws scenes that training never saw.",
    )
    measure.add_argument("--no-controls", action="store_true", help="leave out the two trained controls")
    measure.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    measure.add_argument("--lmm", type=Path, help="another checkpoint folder (default: the embedded one)")
    measure.add_argument("--heads", type=Path, help="other heads, with their controls beside them")
    measure.set_defaults(run=_evaluate)

    baselines = subparsers.add_parser(
        "baselines",
        help="the shipped heads beside methods that need no training",
        description="Do I need trained heads? Measures the shipped ones and heads=attention-argmax, "
        "attend-and-segment and localization-heads on the same fresh scenes.",
    )
    for parser in (measure, baselines):
        parser.add_argument("--seed", type=int, default=1, help="of the scenes (default: %(default)s)")
        parser.add_argument("--scenes", type=int, default=100, help="how many (default: %(default)s, some minutes)")
    baselines.add_argument("--out", type=Path, metavar="FILE.csv", help="also write the table, with where it is from")
    baselines.set_defaults(run=_baselines)

    for name in ("train", "sam"):
        # No character begins an option: whatever follows the name is taken, and the error names the new command.
        moved = subparsers.add_parser(name, add_help=False, prefix_chars="\0")
        moved.add_argument("words", nargs="*")
        moved.set_defaults(run=_moved, command=name)


def _path(args: argparse.Namespace) -> int:
    from flmm_plugin.tiny import tiny_path

    print(tiny_path())
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    from flmm_plugin.tiny.evaluate import evaluate

    result = evaluate(
        seed=args.seed, scenes=args.scenes, controls=not args.no_controls, lmm_path=args.lmm, heads_file=args.heads
    )
    print(json.dumps(result) if args.json else as_text(result))
    return 0


def _baselines(args: argparse.Namespace) -> int:
    from flmm_plugin.tiny import baselines

    if args.out is not None:
        files.check_file_place(args.out, parents=False)
    measured = baselines.measure_training_free(seed=args.seed, scenes=args.scenes)
    print(baselines.as_text(measured["rows"]))
    if args.out is not None:
        files.write(args.out, baselines.as_csv(measured))
    return 0


def as_text(result: dict[str, Any]) -> str:
    """The result as tables for a terminal."""
    lines = ["question kind    exact   chance     n"]
    lines += [f"{k:<14} {v['exact']:>7.3f} {v['chance']:>8.3f} {v['n']:>5}" for k, v in result["chat"].items()]
    c, k = result["captions"], result["keywords"]
    lines += ["", f"captions: precision {c['precision']:.3f}, recall {c['recall']:.3f} of (colour, shape), n {c['n']}"]
    lines += [f"keyword selector: precision {k['precision']:.3f}, recall {k['recall']:.3f}, F1 {k['f1']:.3f}", ""]
    columns = ("decoder_ciou", "refined_ciou", "caption_refined_ciou", "refer_refined_ciou", "question_refined_ciou")
    lines.append(f"{'cIoU':<34}" + "".join(f"{c.replace('_ciou', '').replace('_', ' '):>18}" for c in columns))
    for row in result["grounding"]:
        cells = "".join(f"{'-' if row[c] is None else format(row[c], '.3f'):>18}" for c in columns)
        lines.append(f"{row['method']:<34}{cells}")
    return "\n".join(lines)


def _moved(args: argparse.Namespace) -> int:
    raise UnknownArgument(
        f"the package no longer makes its model; in a checkout: python -m tools.tiny {args.command} --out DIR"
    )
