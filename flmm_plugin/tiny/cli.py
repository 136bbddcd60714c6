"""``flmm tiny``: where the embedded LMM is, what it measures, and how it is made."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from flmm_plugin import files


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
    measure.add_argument("--seed", type=int, default=1, help="of the scenes (default: %(default)s)")
    measure.add_argument("--scenes", type=int, default=100, help="how many (default: %(default)s, some minutes)")
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
    baselines.add_argument("--seed", type=int, default=1, help="of the scenes (default: %(default)s)")
    baselines.add_argument("--scenes", type=int, default=100, help="how many (default: %(default)s, some minutes)")
    baselines.add_argument("--out", type=Path, metavar="FILE.csv", help="also write the table, with where it is from")
    baselines.set_defaults(run=_baselines)

    train = subparsers.add_parser(
        "train",
        help="remake the embedded LMM, its SAM, heads and controls from nothing",
        description="Train everything from nothing. Killed? Run the same line again: it goes on where it was. Nothing "
        "of the LMM's training sees a mask. On 2 CPU cores it takes hours.",
    )
    train.add_argument("--out", type=Path, required=True, help="work folder; holds all state for resuming")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--steps", type=int, help="chat steps (default: the final recipe's)")
    train.add_argument(
        "--quick", action="store_true", help="a few steps of everything: shows that it runs, not what it reaches"
    )
    train.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 (default: a GPU where there is one)")
    train.add_argument("--install", action="store_true", help="put the result into this installation's weights folder")
    train.set_defaults(run=_train)

    sam = subparsers.add_parser(
        "sam",
        help="remake the embedded world's SAM, which `flmm train flmm_tiny` starts from",
        description="Train the small SAM on scenes alone, or take it from the work folder of `flmm tiny train`, and "
        "write sam.safetensors. About a quarter of an hour on a CPU core; killed, it goes on where it was.",
    )
    sam.add_argument("--out", type=Path, required=True, help="work folder")
    sam.add_argument("--seed", type=int, default=0)
    sam.add_argument("--steps", type=int, default=800, help="(default: %(default)s)")
    sam.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 (default: a GPU where there is one)")
    sam.add_argument("--install", action="store_true", help="put it into this installation")
    sam.set_defaults(run=_sam)


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


def _train(args: argparse.Namespace) -> int:
    from dataclasses import replace

    from flmm_plugin.tiny import train_heads, train_lmm
    from flmm_plugin.tiny.train_sam import SamConfig

    config = train_lmm.TrainConfig(seed=args.seed)
    heads_config = train_heads.HeadsConfig(seed=args.seed, sam=SamConfig(seed=args.seed))
    if args.steps:
        config = replace(config, steps=args.steps)
    if args.quick:
        config = replace(config, tower_steps=3, tower_batch=8, steps=4, batch=2)
        heads_config = replace(heads_config, sam=SamConfig(steps=3), scenes=6, decoder_steps=3, joint_steps=2)
    device = _device(args.device)
    with files.held(args.out):
        folder = train_lmm.train(args.out, config, device)
        train_heads.train_from(args.out, heads_config, folder, device)
    if args.install:
        install(args.out)
    print(args.out, file=sys.stdout)
    return 0


def _sam(args: argparse.Namespace) -> int:
    from flmm_plugin.tiny.sam_file import make_sam
    from flmm_plugin.tiny.train_sam import SamConfig

    config = SamConfig(seed=args.seed, steps=args.steps)
    with files.held(args.out):
        print(make_sam(args.out, config, _device(args.device), install=args.install))
    return 0


def _device(name: str) -> str:
    import torch

    return name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def install(out: Path) -> Path:
    """Copy checkpoint, heads and controls of a training folder into this installation."""
    target = Path(__file__).parent / "weights"
    with files.naming(target):
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(out / "lmm", target / "lmm")
        for file in sorted(out.glob("*.safetensors")):  # heads and the heads of both controls
            shutil.copy(file, target / file.name)
    return target
