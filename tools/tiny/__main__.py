"""Commands that make the embedded model: ``python -m tools.tiny train|sam --out DIR``."""

from __future__ import annotations

import argparse
import shutil
import sys
from dataclasses import replace
from pathlib import Path

from flmm_plugin import files, tiny
from flmm_plugin.command_line import Parser
from flmm_plugin.exit_codes import status_of
from tools.tiny import train_heads, train_lmm
from tools.tiny.sam_file import make_sam
from tools.tiny.train_sam import SamConfig


def build_parser() -> Parser:
    """Return the parser; each command sets ``run(args) -> int``."""
    parser = Parser(prog="python -m tools.tiny", description=__doc__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    train = commands.add_parser(
        "train",
        help="remake the embedded LMM, its SAM, heads and controls from nothing",
        description="Train everything from nothing. Killed? Run the same line again: it goes on where it was. Nothing "
        "of the LMM's training sees a mask. On 2 CPU cores it takes hours.",
    )
    train.add_argument("--steps", type=int, help="chat steps (default: the final recipe's)")
    train.add_argument(
        "--quick", action="store_true", help="a few steps of everything: shows that it runs, not what it reaches"
    )
    train.set_defaults(run=_train)

    sam = commands.add_parser(
        "sam",
        help="remake the embedded model's SAM, which `flmm train flmm_tiny` starts from",
        description="Train the small SAM on scenes alone, or take it from the work folder of `train`, and write "
        "sam.safetensors. About a quarter of an hour on a CPU core; killed, it goes on where it was.",
    )
    sam.add_argument("--steps", type=int, default=800, help="(default: %(default)s)")
    sam.set_defaults(run=_sam)

    for command in (train, sam):
        command.add_argument("--out", type=Path, required=True, help="work folder; holds all state for resuming")
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 (default: a GPU where there is one)")
        command.add_argument("--install", action="store_true", help="put the result into this installation")
    return parser


def _train(args: argparse.Namespace) -> int:
    config = train_lmm.TrainConfig(seed=args.seed)
    sam_config, changes = SamConfig(seed=args.seed), [f"seed={args.seed}"]
    if args.steps:
        config = replace(config, steps=args.steps)
    if args.quick:
        config = replace(config, tower_steps=3, tower_batch=8, steps=4, batch=2)
        sam_config = replace(sam_config, steps=3)
        changes += ["data.scenes=6", "steps=3"]
    device = _device(args.device)
    with files.held(args.out):
        folder = train_lmm.train(args.out, config, device)
        make_sam(args.out, sam_config, device)
        train_heads.train_heads(args.out, folder, changes)
    if args.install:
        install(args.out)
    print(args.out)
    return 0


def _sam(args: argparse.Namespace) -> int:
    config = SamConfig(seed=args.seed, steps=args.steps)
    with files.held(args.out):
        print(make_sam(args.out, config, _device(args.device), install=args.install))
    return 0


def _device(name: str) -> str:
    import torch

    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def install(out: Path) -> Path:
    """Copy checkpoint, heads and controls of a training folder into this installation; return where they are."""
    target = Path(tiny.__file__).parent / "weights"
    with files.naming(target):
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(out / "lmm", target / "lmm")
        for name in train_heads.CONTROLS:
            shutil.copy(out / f"{name}.safetensors", target / f"{name}.safetensors")
    return target


if __name__ == "__main__":
    arguments = build_parser().parse_args()
    sys.exit(status_of(lambda: int(arguments.run(arguments))))
