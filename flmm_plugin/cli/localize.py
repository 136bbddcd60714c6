"""``flmm heads localize``: choose the few attention heads of a model that locate things."""

from __future__ import annotations

import argparse
from typing import Any

from flmm_plugin.cli.model_options import add_model_options, check_model_options, positive
from flmm_plugin.cli.output import note

_DESCRIPTION = """\
Count over many phrases which attention heads look at the image and at one place in it. The most frequent ones are
printed in the form that --heads and --model_args heads= take. Nothing is trained and no mask is read. Without this
choice, each phrase chooses its own heads.
"""
_EXAMPLE = """\
example:
  flmm heads localize --model llava-hf/llava-1.5-7b-hf --data data --dataset refcoco --limit 300
  flmm ground street.jpg "his dog" --model llava-hf/llava-1.5-7b-hf --heads localization-heads:463+521+530
"""


def add_action(actions: Any) -> None:
    """Add ``localize`` to the actions of ``flmm heads``."""
    parser = actions.add_parser(
        "localize",
        help="choose the attention heads of heads=localization-heads",
        description=_DESCRIPTION,
        epilog=_EXAMPLE,
    )
    add_model_options(parser)
    option = parser.add_argument
    option(
        "--data",
        metavar="ROOT",
        help="folder of the data sets; flmm_tiny_train: the embedded world (default: FLMM_DATA, or data)",
    )
    option(
        "--dataset", default="refcoco", choices=("refcoco", "refcoco+", "refcocog", "png"), help="default: %(default)s"
    )
    option("--split", default="train", help="default: %(default)s")
    option("--limit", type=positive, default=300, help="number of images (default: %(default)s)")
    option("--heads", type=positive, default=3, metavar="N", help="how many to choose (default: %(default)s)")
    parser.set_defaults(run=_localize)


def _localize(args: argparse.Namespace) -> int:
    check_model_options(args)
    from flmm_plugin.grounded_lmm import GroundedLMM
    from flmm_plugin.heads.manifest import place_of_map
    from flmm_plugin.training.localization import localization_heads
    from flmm_plugin.training.recipe import DataPart, DataRecipe, HeadsRecipe, TrainRecipe
    from flmm_plugin.training.samples import TrainingSet

    part = DataPart(args.dataset, args.split, limit=args.limit)
    data = DataRecipe(root=args.data, parts=(part,), scenes=max(1, args.limit))
    # Read the data before the model is loaded: missing data should not cost minutes.
    recipe = TrainRecipe(data=data, heads=HeadsRecipe(separator="."))
    samples = TrainingSet(recipe)
    lmm = GroundedLMM.from_pretrained(
        args.model,
        heads="attention-argmax",
        fetch=not args.no_fetch,
        revision=args.revision,
        dtype=args.dtype,
        device=args.device,
    )
    problems: list[str] = []
    method = localization_heads(lmm, samples, kept=args.heads, problems=problems)
    facts = lmm.backbone.facts
    if facts.maps_per_image == 1:
        places = [place_of_map(facts, index) for index in method.maps]
        note("; ".join(f"layer {layer + 1}, head {head + 1}" for layer, head in places))
    for one in problems:
        note(f"left out: {one}")
    print(method)
    return 0
