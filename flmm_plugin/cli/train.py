"""``flmm train``: grounding heads for any backbone, from one YAML file."""

from __future__ import annotations

import argparse
import contextlib
import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flmm_plugin import json_lines
from flmm_plugin.cli.model_options import add_no_fetch
from flmm_plugin.cli.output import note
from flmm_plugin.errors import UnknownArgument
from flmm_plugin.needs import Need, provide

if TYPE_CHECKING:
    from flmm_plugin.training.loop import TrainedRun, Trainer
    from flmm_plugin.training.recipe import TrainRecipe
    from flmm_plugin.training.validation import ValidationReport

_DESCRIPTION = """\
Train mask decoder, mask refiner and keyword selector on a frozen LMM, as the paper does (F-LMM, section 4.1), on
RefCOCO(+/g) and PNG in their official layouts. The LMM and SAM's image encoder run once per sample; what they say is
kept on disk and feeds the later epochs. Killed at any moment, the same line goes on and ends with the same weights.
"""

_EPILOG = """\
examples:
  flmm train flmm_tiny --out runs/tiny                      the embedded model on its own scenes: offline, an hour
  flmm train flmm_deepseekvl --out runs/deepseek            the paper's recipe; SAM by name, data in data/ or data.root
  flmm train flmm_auto backbone.pretrained=OWNER/NAME       any other LMM, in its own chat template
  flmm train my.yaml optimiser.lr=2e-4 epochs=4             a file of your own, e.g. `extends: flmm_auto` and three keys
  flmm train flmm_llava ... --estimate                      how large will the feature cache be, and does it pay?
  flmm train flmm_llava ... --build-cache-only              fill it, e.g. on many machines, and train later
  accelerate launch --num_processes 8 "$(command -v flmm)" train flmm_llava ...
                                                            all GPUs (several machines: accelerate config)

afterwards:
  lmms_eval --model flmm_llava --model_args pretrained=...,heads=runs/llava --tasks flmm_refcoco_val
  flmm heads show runs/llava/heads.safetensors

The run's folder: heads.safetensors (best), last.safetensors, log.jsonl, problems.jsonl (what could not be used),
validation.html (scores and overlays), run.json (versions, data, recipe), checkpoints/ and features/ (the cache).
"""


def add_subcommand(commands: Any) -> None:
    """Add ``train`` to the parser of ``flmm``."""
    parser = commands.add_parser(
        "train",
        help="train grounding heads on a frozen model",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", metavar="CONFIG", nargs="?", help="a YAML file, or a recipe's name (see --list)")
    parser.add_argument("changes", metavar="key=value", nargs="*", help="keys of the recipe to change")
    parser.add_argument("--out", type=Path, help="the run's folder (default: runs/NAME OF THE RECIPE)")
    parser.add_argument("--list", action="store_true", help="the recipes that the package carries")
    parser.add_argument("--print", action="store_true", help="the whole recipe with its changes, and stop")
    parser.add_argument(
        "--no-cache", action="store_true", help="run the frozen models in every epoch, the paper's way (compare costs)"
    )
    parser.add_argument("--estimate", action="store_true", help="say what the feature cache will take, and stop")
    parser.add_argument("--build-cache-only", action="store_true", help="fill the feature cache, and stop")
    parser.add_argument(
        "--early-stop", type=int, metavar="N", help="stop after N validations that brought nothing better"
    )
    parser.add_argument("--restart", action="store_true", help="forget an earlier run in the folder (not its cache)")
    add_no_fetch(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    parser.set_defaults(run=_train, stopped=_stopped)


def _train(args: argparse.Namespace) -> int:
    from flmm_plugin.training.recipe import recipes

    if args.list:
        print("\n".join(recipes()))
        return 0
    if args.config is None:
        raise UnknownArgument(f"name a recipe: a YAML file, or one of {', '.join(recipes())}")
    recipe = recipe_of(args)
    if args.print:
        import yaml

        print(yaml.safe_dump(recipe.to_dict(), sort_keys=False), end="")
        return 0
    if not recipe.cache.enabled and (args.estimate or args.build_cache_only):
        raise UnknownArgument("there is no cache to estimate or build: it is switched off (cache.enabled, --no-cache)")
    find = partial(needs_of, recipe, Path(args.config).stem)
    provide(find(), fetch=not args.no_fetch, again=find)
    from flmm_plugin.training.loop import Trainer

    trainer = Trainer(
        recipe,
        _folder(args),
        restart=args.restart,
        on_validation=lambda report: write_validation_page(trainer.folder.page, report),
        progress=not args.quiet,
    )
    with contextlib.closing(trainer):
        return _run(args, trainer)


def needs_of(recipe: TrainRecipe, name: str) -> list[Need]:
    """Return what a recipe needs: the weights of its model, SAM by name, and its data."""
    from flmm_plugin.hub_files import weights_need
    from flmm_plugin.tasks.data_needs import recipe_needs

    weights = weights_need(recipe.backbone.pretrained, recipe.backbone.revision)
    return [weights, *sam_needs(recipe), *recipe_needs(recipe, name)]


def sam_needs(recipe: TrainRecipe) -> list[Need]:
    """Return the SAM that a recipe asks for by name; none if it asks for none or names a file."""
    from flmm_plugin.heads.sam_files import sam_need

    refiner = recipe.heads.refiner
    by_name = refiner.enabled and refiner.checkpoint is None and isinstance(refiner.sam, str)
    return [sam_need(str(refiner.sam))] if by_name else []


def _folder(args: argparse.Namespace) -> Path:
    return args.out or Path("runs") / Path(args.config).stem


def _stopped(args: argparse.Namespace) -> str:
    """Say what a run that somebody stops has saved."""
    from flmm_plugin.training.checkpoint import saved_in

    return f"{saved_in(_folder(args))}; the same line goes on" if args.config else ""


def _run(args: argparse.Namespace, trainer: Trainer) -> int:
    if trainer.recipe.cache.enabled:
        estimate = trainer.estimate()
        if estimate is not None and trainer.main:
            note(estimate.as_text())
        if args.estimate:
            return 0
        if args.build_cache_only:
            return _build(trainer)
    run = trainer.run()
    if trainer.main:
        print(as_json(run) if args.json else as_text(run))
    return 0


def recipe_of(args: argparse.Namespace) -> TrainRecipe:
    """Return the recipe that a command line means."""
    from flmm_plugin.training.recipe import read_recipe

    changes = list(args.changes)
    if args.no_cache:
        changes.append("cache.enabled=false")
    if args.early_stop is not None:
        changes.append(f"validation.patience={args.early_stop}")
    return read_recipe(args.config, changes)


def _build(trainer: Trainer) -> int:
    report = trainer.build_cache()
    if trainer.main:
        what = f"{report.found} samples were there, {report.read} were read in {report.seconds:.0f} s"
        full = "; the cap is reached: the rest is read in every epoch" if report.full else ""
        wrong = f"; {len(report.problems)} cannot be used: {trainer.folder.problems}" if report.problems else ""
        print(f"{what}{full}{wrong}")
    return 0


def as_json(run: TrainedRun) -> str:
    """Write the result as one JSON object."""
    return json.dumps({**asdict(run), "heads": str(run.heads), "last": str(run.last)})


def as_text(run: TrainedRun) -> str:
    """Write the result for a terminal."""
    lines = [f"{run.heads}  (best of {run.steps} steps: step {run.best_step})"]
    if run.scores is not None:
        named = {
            "cIoU": run.scores.ciou,
            "mask decoder alone": run.scores.decoder_ciou,
            "mIoU": run.scores.miou,
            "recall at 0.5": run.scores.recall,
            "keyword F1": run.scores.keyword_f1,
        }
        numbers = ", ".join(f"{name} {100 * value:.1f}" for name, value in named.items() if value is not None)
        lines.append(f"last validation: {numbers} ({run.scores.phrases} phrases)")
    if run.problems:
        lines.append("could not be used: " + ", ".join(f"{kind} {count}" for kind, count in run.problems.items()))
    hours, rest = divmod(int(run.seconds), 3600)
    lines.append(f"{hours} h {rest // 60} min {rest % 60} s{', stopped early' if run.stopped_early else ''}")
    lines.append(f"now: lmms_eval --model ... --model_args heads={run.heads.parent},... or flmm ground --heads ...")
    return "\n".join(lines)


def write_validation_page(path: Path, report: ValidationReport) -> None:
    """Write the page of a run's validations: scores of all, from the log beside it, and masks of the latest."""
    from flmm_plugin.figures import overlay
    from flmm_plugin.reports.gallery import Card, Cards, Table, write_page

    columns = {
        "step": "step", "epoch": "epoch", "ciou": "cIoU", "decoder_ciou": "decoder cIoU", "miou": "mIoU",
        "recall": "recall at 0.5", "keyword_f1": "keyword F1",
    }  # fmt: skip
    rows: dict[int, list[Any]] = {}
    for one in json_lines.read(path.with_name("log.jsonl")):
        if isinstance(one, dict) and "recall" in one:
            rows[int(one["step"])] = [one.get(name) for name in columns]
    latest = {**asdict(report.scores), "step": report.step, "epoch": report.epoch}
    rows[report.step] = [latest[name] for name in columns]
    cards = []
    for one in report.shown:
        words = "; ".join(f"{mask.phrase} {100 * iou:.0f}" for mask, iou in zip(one.found, one.ious, strict=True))
        cards.append(Card(overlay(one.picture, one.found), one.key, details=words))
    write_page(
        path,
        "Validation",
        [
            Table("Scores", tuple(columns.values()), [rows[step] for step in sorted(rows)]),
            Cards(f"Masks after step {report.step}", cards, note="Behind each phrase: its IoU in per cent."),
        ],
        lead="Scores of teacher-forced text, 0 to 1: a measure of progress, not of a benchmark.",
    )
