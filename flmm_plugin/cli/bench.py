"""``flmm bench``: what grounding costs on this machine, beside the plain model and the paper's way."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from flmm_plugin.cli.model_options import positive
from flmm_plugin.errors import UnknownArgument
from flmm_plugin.suggestions import did_you_mean

_EXAMPLES = """\
examples:
  flmm bench                                 everything, on the CPU: about half an hour
  flmm bench passes pictures                 two groups alone; the file keeps what it has of the others
  flmm bench --full --device cuda            LLaVA-1.5-7B's shape in bfloat16 with SAM ViT-L, random weights
  flmm bench --quick                         very small models, two rounds: does it run at all?

A CPU's seconds are those of the one thread that works, a GPU's come from CUDA events. Arms are interleaved in one
process. Beside each ratio stands the null arm's, the same work twice; what lies within is not resolved.
"""
#: Names of `flmm_plugin.bench.groups.GROUPS`; a test compares. Named here, help needs no torch.
GROUPS = (
    "passes", "pictures", "official_sam", "chats", "referring", "seals", "starts", "trainings", "growth",
)  # fmt: skip
#: Groups that have a full size.
FULL = ("passes", "pictures")


def add_subcommand(commands: Any) -> None:
    """Add ``bench`` to the parser of ``flmm``."""
    parser = commands.add_parser(
        "bench",
        help="what grounding costs on this machine",
        description="Time the plain model, grounding, and the paper's way; write DEVICE-VERSIONS.json and two tables.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"some of: {', '.join(GROUPS)} (default: all)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument(
        "--rounds", type=positive, default=15, metavar="N",
        help="rounds of a short measurement; long ones take a part of them (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="very small models, two rounds")
    parser.add_argument("--full", action="store_true", help=f"the paper's full size, on a GPU: {', '.join(FULL)}")
    parser.add_argument("--dtype", default="bfloat16", help="weights of full size (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path(), help="folder of the results (default: this one)")
    parser.add_argument(
        "--before", type=Path, metavar="FILE", help="an older result file, to stand beside in the table"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure; print and keep every number as it comes.

    Raises:
        UnknownArgument: A group that does not exist, or full size on a CPU.
    """
    for name in args.groups:
        if name not in GROUPS:
            hint = did_you_mean(name, GROUPS) or "."
            raise UnknownArgument(f"there is no group {name!r}{hint} There are: {', '.join(GROUPS)}")
    if args.full and not args.device.startswith("cuda"):
        raise UnknownArgument("--full is of the size of a GPU: add --device cuda, or leave --full out")
    if args.full and set(args.groups) - set(FULL):
        raise UnknownArgument(f"--full measures {' and '.join(FULL)}; leave the other groups out")
    from flmm_plugin.devices import checked_device

    device = checked_device(args.device)
    import torch

    from flmm_plugin.bench import groups, results

    torch.set_num_threads(1)
    bench = groups.Bench(
        torch.device(str(device)), 2 if args.quick else args.rounds, args.quick, args.full, getattr(torch, args.dtype)
    )
    wanted = args.groups or (FULL if args.full else GROUPS)
    for name in GROUPS:
        if name not in wanted:
            continue
        rows = []
        for row in groups.GROUPS[name](bench):
            rows.append(row)
            print(f"{row.name:44} {row!s:24} {row.scatter:24} {row.note}", flush=True)
            # At once: who stops a long run keeps what was measured.
            path = results.save(args.out, bench.device, {name: rows}, {"rounds": bench.rounds, "threads": 1})
    print("written:", ", ".join(str(one) for one in results.write_tables(path)))
    return 0
