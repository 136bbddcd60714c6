"""``flmm preserve``: is chat what it is without the plugin? Exit status 0: yes; 1: no; 2: could not compare."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from flmm_plugin.devices import checked_device
from flmm_plugin.errors import FlmmError
from flmm_plugin.options import arguments_of

_EPILOG = """\
examples:
  flmm preserve --model flmm_tiny --tasks mme --limit 20      the embedded model, offline, in a minute or two
  flmm preserve --model flmm_llava --model_args pretrained=llava-hf/llava-1.5-7b-hf,heads=heads.safetensors \\
      --device cuda --tasks flmm_qa --limit 100               the paper's eight QA benchmarks
  flmm preserve ... --batch_size 8                            other settings: the stock model's own noise beside
  flmm preserve --harness vlmevalkit --model flmm_tiny --tasks MME_TINY,MMBench_TINY     the same inside VLMEvalKit
  flmm preserve ... --plant logit                             a planted fault: must end with exit status 1

The stock model and F-LMM both run through the harness's own evaluator, each in a process of its own. Killed? The same
line goes on where it was. Compared are weights, prompts, pictures, generated ids and texts of every sample,
log-likelihoods, every metric, and the logits of one batch (torch.equal). Judges: set OPENAI_API_KEY, or API_TYPE and
what that provider needs.

exit status: 0 chat is unchanged, 1 chat changed, 2 could not compare
"""
HARNESSES = ("lmms_eval", "vlmevalkit")
FAULTS = ("logit", "padding", "template", "weight")


def add_subcommand(commands: Any) -> None:
    """Add ``preserve`` to the parser of ``flmm``."""
    parser = commands.add_parser(
        "preserve",
        help="prove that chat is what it is without the plugin",
        description="Run the harness's stock adapter and the F-LMM model on the same documents, with grounding "
        "requests between the questions of the F-LMM run, and compare all answers and what led to them.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    option = parser.add_argument
    option("--harness", choices=HARNESSES, default="lmms_eval", help="whose questions and scoring (default: lmms_eval)")
    option("--model", required=True, help="the F-LMM model, as for lmms_eval --model (see flmm list)")
    option("--model_args", default="", help="its arguments, as for lmms_eval: name=value,name=value")
    option("--tasks", required=True, help="tasks and groups, comma-separated; flmm_qa: the paper's eight")
    option("--limit", type=float, help="documents per task (below 1: a share)")
    option("--batch_size", type=int, default=1, help="of the F-LMM run; stock answers one by one (default: 1)")
    option("--device", help="where both models run (default: cuda if there is one)")
    option("--stock", default="auto", help="auto, plain (transformers alone), or an adapter of lmms-eval's")
    option("--stock_args", default="", help="arguments of the stock run alone, e.g. another kernel")
    option("--noise", action="store_true", help="measure the stock model's own noise in any case")
    option("--ground_every", type=int, default=1, metavar="N", help="ground after every N batches (default: 1)")
    option("--force_simple", action="store_true", help="lmms-eval's plain prompts instead of chat form")
    option("--include_path", help="folder of more task files")
    option("--scenes", type=int, default=30, help="flmm_tiny: synthetic scenes to write for mme (default: 30)")
    option("--seed", type=int, default=0, help="of sampled answers (default: 0)")
    option("--out", type=Path, default=Path("build/preserve"), help="work folder (default: %(default)s)")
    option("--fresh", action="store_true", help="forget what earlier runs left in the work folder")
    option("--json", action="store_true", help="print one JSON object instead of text")
    option("--junit", type=Path, metavar="FILE", help="write JUnit XML there too")
    option("--plant", choices=FAULTS, default="", help="plant a fault in the F-LMM run, to see it caught")
    parser.set_defaults(
        run=_preserve, stopped=lambda args: f"what was answered is kept in {args.out}; the same line goes on with it"
    )


def _preserve(args: argparse.Namespace) -> int:
    from flmm_plugin.adapters.preservation import proof, report

    given = {name: value for name, value in vars(args).items() if name in proof.Plan.__dataclass_fields__}
    given |= {name: arguments_of(given[name]) for name in ("model_args", "stock_args")}
    given["tasks"] = tuple(name for name in args.tasks.split(",") if name)
    given["device"] = checked_device(args.device) or _device()
    try:
        verdict = proof.prove(proof.Plan(**given))
    except FlmmError as exc:
        print(f"COULD NOT COMPARE: {type(exc).__name__}: {exc}", file=sys.stderr)
        return 2
    report.write_files(verdict, args.out, args.junit)
    print(json.dumps(report.as_json(verdict), indent=1) if args.json else report.as_text(verdict))
    return verdict.exit_status


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
