"""``flmm preserve``: is chat what it is without the plugin? Exit status 0: yes; 1: no; 2: could not compare."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flmm_plugin.adapters.answering.arguments import arguments_of
from flmm_plugin.devices import checked_device
from flmm_plugin.errors import FlmmError

_EPILOG = """\
examples:
  flmm preserve --model flmm_tiny --tasks mme --limit 20      the embedded model, offline, in a minute or two
  flmm preserve --model flmm_llava --model_args pretrained=llava-hf/llava-1.5-7b-hf,heads=heads.safetensors \\
      --device cuda --tasks flmm_qa --limit 100               the paper's eight QA benchmarks
  flmm preserve ... --batch_size 8                            other settings: the stock model's own noise beside
  flmm preserve --harness vlmevalkit --model flmm_tiny --tasks MME_TINY,MMBench_TINY     the same inside VLMEvalKit
  flmm preserve ... --plant logit                             a planted fault: must end with exit status 1

Both arms run through lmms-eval's own evaluator, each in a process of its own. Killed? The same line goes on where it
was. Compared are weights, prompts, pictures, generated ids and texts of every sample, log-likelihoods, every metric,
and the logits of one batch (torch.equal). Judges: set OPENAI_API_KEY, or API_TYPE and what that provider needs.

exit status: 0 chat is unchanged, 1 chat changed, 2 could not compare
"""
HARNESSES = ("lmms_eval", "vlmevalkit")
FAULTS = ("logit", "padding", "template", "weight")


def add_subcommand(commands: Any) -> None:
    """Add ``preserve`` to the parser of ``flmm``."""
    parser = commands.add_parser(
        "preserve",
        help="prove that chat is what it is without the plugin",
        description="Run lmms-eval's stock adapter and the F-LMM model on the same documents, with grounding requests "
        "between the F-LMM arm's questions, and compare everything that was said.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--harness", choices=HARNESSES, default="lmms_eval", help="whose questions and scoring (default: lmms_eval)"
    )
    parser.add_argument("--model", required=True, help="the F-LMM model, as for lmms_eval --model (see flmm list)")
    parser.add_argument("--model_args", default="", help="its arguments, as for lmms_eval: name=value,name=value")
    parser.add_argument("--tasks", required=True, help="tasks and groups, comma-separated; flmm_qa: the paper's eight")
    parser.add_argument("--limit", type=float, help="documents per task (below 1: a share)")
    parser.add_argument(
        "--batch_size", type=int, default=1, help="of the F-LMM arm; the stock arm asks one by one (default: 1)"
    )
    parser.add_argument("--device", help="where both arms run (default: cuda if there is one)")
    parser.add_argument(
        "--stock", default="auto", help="the stock arm: auto, plain (transformers alone), or an adapter of lmms-eval's"
    )
    parser.add_argument("--stock_args", default="", help="arguments of the stock arm alone, e.g. another kernel")
    parser.add_argument("--noise", action="store_true", help="measure the stock model's own noise in any case")
    parser.add_argument(
        "--ground_every",
        type=int,
        default=1,
        metavar="N",
        help="ground after every N batches of questions (default: 1)",
    )
    parser.add_argument("--force_simple", action="store_true", help="lmms-eval's plain prompts instead of chat form")
    parser.add_argument("--include_path", help="folder of more task files")
    parser.add_argument(
        "--scenes", type=int, default=30, help="flmm_tiny: pictures of its world to write for mme (default: 30)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of sampled answers (default: 0)")
    parser.add_argument("--out", type=Path, default=Path("build/preserve"), help="work folder (default: %(default)s)")
    parser.add_argument("--fresh", action="store_true", help="forget what earlier runs left in the work folder")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.add_argument("--junit", type=Path, metavar="FILE", help="write JUnit XML there too")
    parser.add_argument("--plant", choices=FAULTS, default="", help="plant a fault in the F-LMM arm, to see it caught")
    parser.set_defaults(
        run=_preserve, stopped=lambda args: f"what was answered is kept in {args.out}; the same line goes on with it"
    )


def _preserve(args: argparse.Namespace) -> int:
    from flmm_plugin.adapters.lmms_eval.preserve import Plan, preserve

    device = checked_device(args.device) or _device()
    if args.harness == "vlmevalkit":
        return _told(args, lambda: _in_vlmevalkit(args, device))
    plan = Plan(
        model=args.model,
        tasks=tuple(name for name in args.tasks.split(",") if name),
        out=args.out,
        model_args=arguments_of(args.model_args),
        stock=args.stock,
        stock_args=arguments_of(args.stock_args),
        limit=args.limit,
        batch_size=args.batch_size,
        device=device,
        noise=args.noise,
        ground_every=args.ground_every,
        force_simple=args.force_simple,
        include_path=args.include_path,
        scenes=args.scenes,
        seed=args.seed,
        plant=args.plant,
        fresh=args.fresh,
    )
    return _told(args, lambda: preserve(plan))


def _in_vlmevalkit(args: argparse.Namespace, device: str) -> Any:
    from flmm_plugin.adapters.preserving.record import ArmSpec
    from flmm_plugin.adapters.vlmevalkit.preserve import preserve

    ours = ArmSpec(
        role="F-LMM",
        model=args.model,
        model_args=arguments_of(args.model_args),
        tasks=tuple(name for name in args.tasks.split(",") if name),
        limit=args.limit,
        batch_size=args.batch_size,
        device=device,
        force_simple=args.force_simple,
        include_path=args.include_path,
        ground_every=args.ground_every,
        seed=args.seed,
        plant=args.plant,
    )
    return preserve(
        ours, args.out, noise=args.noise, stock=args.stock, stock_args=arguments_of(args.stock_args), fresh=args.fresh
    )


def _told(args: argparse.Namespace, prove: Callable[[], Any]) -> int:
    """The verdict, written and printed; its exit status."""
    from flmm_plugin.reports import preservation_report as report

    try:
        verdict = prove()
    except FlmmError as exc:
        print(f"COULD NOT COMPARE: {type(exc).__name__}: {exc}", file=sys.stderr)
        return 2
    report.write_files(
        verdict, [("json", args.out / "verdict.json"), ("junit", args.out / "verdict.xml"), ("junit", args.junit)]
    )
    print(json.dumps(report.as_json(verdict), indent=1) if args.json else report.as_text(verdict))
    status: int = verdict.exit_status
    return status


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
