"""Define the paper's ablations as changes of one recipe, and train and measure them.

A study (``decoder``: Figure 5, ``refiner``: Table 5, ``selector``: Table 6) has parts; a part compares variants; a
variant is a recipe with a few keys changed. Variants that come to the same recipe share one run, runs share one feature
cache, and a run that is finished is read, not made again.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flmm_plugin import files
from flmm_plugin.backbones.base import Backbone
from flmm_plugin.errors import BadImage, BadText, HeadsMismatch, TrainingStopped, UnknownArgument
from flmm_plugin.grounded_lmm import GroundedLMM
from flmm_plugin.grounding import chosen_phrases
from flmm_plugin.heads import load_heads
from flmm_plugin.heads.checkpoint import HEADS_NAME
from flmm_plugin.heads.sam import OFFICIAL_FILES
from flmm_plugin.passages import text_offsets
from flmm_plugin.text_checks import Span
from flmm_plugin.training.features import FrozenReader
from flmm_plugin.training.loop import Trainer
from flmm_plugin.training.models import load_lmm
from flmm_plugin.training.recipe import DataPart, TrainRecipe, read_recipe
from flmm_plugin.training.run_folder import differences
from flmm_plugin.training.samples import TrainingSet

FEATURES = "features"
_RECORD, _COST = "run.json", "cost.json"


@dataclass(frozen=True)
class Variant:
    """One bar of a figure, one row of a table."""

    name: str  # the paper's word for it
    changes: tuple[str, ...] = ()  # ``key.sub=value`` each, on top of the recipe and of its study's own changes


@dataclass(frozen=True)
class Part:
    """Variants that are compared with each other."""

    key: str  # name on the command line
    title: str
    table: str  # its place in the paper: ``5(a)`` to ``5(d)`` of Figure 5, or Table ``5a``, ``5b`` or ``6``
    variants: tuple[Variant, ...]
    said: str = ""  # the paper's finding, where it prints no number


@dataclass(frozen=True)
class Study:
    """All parts of one figure or table; ``changes`` apply to every variant."""

    key: str
    title: str
    changes: tuple[str, ...]
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Measured:
    """Result of a variant's run."""

    part: str  # key
    variant: str  # name
    seed: int
    scores: Mapping[str, float | None]  # as `flmm_plugin.training.validation.Scores`, of the last step; 0..1
    steps: int
    seconds: float
    decoder_gflop: float  # billions of operations of its mask decoder for one phrase
    frozen: str  # hash of the frozen LMM's weights
    folder: Path


_DECODER = "heads.decoder."
_REFINER = "heads.refiner."
_NO_REFINER = (f"{_REFINER}enabled=false", "heads.selector=false")


def _without(*prompts: str) -> tuple[str, ...]:
    return tuple(f"{_REFINER}prompts.{prompt}=false" for prompt in prompts)


DECODER = Study(
    "decoder",
    "Mask decoder (Figure 5); the refiner has no part in it",
    _NO_REFINER,
    (
        Part(
            "layers", "Attention of which layers", "5(a)",
            (Variant("early", (f"{_DECODER}layers=early",)), Variant("mid", (f"{_DECODER}layers=mid",)),
             Variant("late", (f"{_DECODER}layers=late",)), Variant("all")),
            "all layers best, late ones worst",
        ),
        Part(
            "merge", "How the tokens of a phrase become one map", "5(b)",
            (Variant("mean"), Variant("max", ("heads.merge=max",))), "mean 0.7 above max",
        ),
        Part(
            "normalise", "Maps summed to 1", "5(c)",
            (Variant("normalised"), Variant("as they are", (f"{_DECODER}normalise=false",))), "normalised 0.5 above",
        ),
        Part(
            "size", "Cells of the decoder's input", "5(d)",
            (Variant("token grid", (f"{_DECODER}upsample_to=1",)), Variant("32", (f"{_DECODER}upsample_to=32",)),
             Variant("64", (f"{_DECODER}upsample_to=64",)), Variant("96", (f"{_DECODER}upsample_to=96",))),
            "64 the best trade-off of score and cost",
        ),
    ),
)  # fmt: skip

REFINER = Study(
    "refiner",
    "Mask refiner (Table 5)",
    (),
    (
        Part(
            "prompts", "Prompts given to SAM", "5a",
            (Variant("no refiner", _NO_REFINER), Variant("mask", _without("box", "text")),
             Variant("mask + box", _without("text")), Variant("mask + box + text")),
        ),
    ),
)  # fmt: skip

#: Thresholds at which a trained selector is measured; the paper's is 0.3.
THRESHOLDS = (0.1, 0.3, 0.5, 0.7, 0.9)
SELECTOR = Study(
    "selector",
    "Keyword selector (Table 6)",
    (),
    (Part("selector", "Who chooses the words", "6", (Variant("trained"),)),),
)
_WEIGHTED = Variant("attention x norm of the value", ("heads.rows=value",))
MAPS = Study(
    "maps",
    "What the maps hold; the refiner has no part in it, and the paper has no such study",
    _NO_REFINER,
    (Part("rows", "Maps of attention, or times norms of values", "", (Variant("attention"), _WEIGHTED)),),
)
STUDIES = {study.key: study for study in (DECODER, REFINER, SELECTOR, MAPS)}


def with_sams(study: Study, recipe: TrainRecipe) -> Study:
    """Add the comparison of SAMs (Table 5b) to the refiner's study; other studies are returned as they are.

    Args:
        study: A study by its paper's name, one of `STUDIES`.
        recipe: A small SAM of its own is compared with itself before any training, an official one with other sizes.
    """
    if study.key != REFINER.key:
        return study
    own = recipe.heads.refiner.sam
    if isinstance(own, str):
        others = {size: (f"{_REFINER}sam={size}", f"{_REFINER}checkpoint=null") for size in OFFICIAL_FILES}
        variants = tuple(
            Variant(f"SAM ViT-{size[-1].upper()}", () if size == own else changes) for size, changes in others.items()
        )
        part = Part("sam", "Which SAM", "5b", variants)
    else:
        untrained = Variant("small SAM, initial weights", (f"{_REFINER}checkpoint=null",))
        said = "ViT-B 63.0, ViT-L 64.9, ViT-H 65.0"
        part = Part("sam", "Which SAM", "5b", (untrained, Variant("small SAM, trained")), said)
    return dataclasses.replace(study, parts=(*study.parts, part))


def chosen(study: Study, parts: Sequence[str], skip: Sequence[str] = ()) -> Study:
    """Take some parts of a study (none named: all), without some of their variants.

    Raises:
        UnknownArgument: It has no such part or variant, or nothing is left.
    """
    known = {part.key: part for part in study.parts}
    for key in parts:
        if key not in known:
            raise UnknownArgument(f"the {study.key} study has no part {key!r}; it has {', '.join(known)}")
    kept = [known[key] for key in parts] if parts else list(study.parts)
    names = {one.name for part in kept for one in part.variants}
    for name in skip:
        if name not in names:
            raise UnknownArgument(f"there is no variant {name!r} to skip; there are {', '.join(sorted(names))}")
    cut = [
        dataclasses.replace(part, variants=tuple(one for one in part.variants if one.name not in skip)) for part in kept
    ]
    left = tuple(part for part in cut if part.variants)
    if not left:
        raise UnknownArgument("every variant is to be skipped; leave one at least")
    return dataclasses.replace(study, parts=left)


def run_name(changes: Sequence[str], seed: int) -> str:
    """Return the folder of a run: its changes, as a file name.

    >>> run_name(["heads.refiner.enabled=false", "heads.decoder.layers=early"], 1)
    'layers-early+enabled-false+seed-1'
    """
    named = []
    for change in changes:
        key, _, value = change.partition("=")
        last = f"{key.rsplit('.', 1)[-1]}={value.rsplit('/', 1)[-1]}"  # of a path the file's name
        named.append(re.sub(r"[^A-Za-z0-9]+", "-", last).strip("-"))
    return "+".join([*sorted(named, reverse=True), f"seed-{seed}"])


def run_study(
    study: Study,
    config: str | Path,
    changes: Sequence[str],
    out: Path,
    *,
    seeds: Sequence[int] = (0,),
    backbone: Backbone | None = None,
    say: Callable[[str], None] = lambda line: None,
    progress: bool = True,
) -> Iterator[Measured]:
    """Train and measure every variant, one after the other.

    Args:
        study: Its variants change the recipe ``config``.
        config: Name of a recipe, or a YAML file.
        changes: Further changes of every variant, from the command line.
        out: Holds a folder per run, and the cache they share.
        seeds: Every variant is trained with each.
        backbone: A model that is loaded already; None: as the recipe says, once.
        say: Gets a line for each run that begins or is there already.
        progress: Show the bars of the runs on stderr.

    Yields:
        One result per variant and seed, variant after variant.

    Raises:
        TrainingStopped: A run's folder belongs to another recipe, or it cannot go on.
    """
    done: dict[str, Measured] = {}
    todo = [(part, one, seed) for part in study.parts for one in part.variants for seed in seeds]
    for part, one, seed in todo:
        own = [*study.changes, *_effective(config, [*changes, *study.changes], one.changes)]
        name, text = run_name(own, seed), f"{study.key}, {part.key}: {one.name}, seed {seed}"
        if name not in done:
            recipe = variant_recipe(config, [*changes, *own], seed, out)
            finished = finished_run(out / name, recipe)
            if finished is None:
                say(f"{text} -> {out / name}")
                finished, backbone = _trained(recipe, out / name, backbone, progress)
            else:
                say(f"{text}: finished before")
            done[name] = finished
            _check_one_model(done)
        yield dataclasses.replace(done[name], part=part.key, variant=one.name)


def variant_recipe(config: str | Path, changes: Sequence[str], seed: int, out: Path) -> TrainRecipe:
    """Return the recipe of a run: measured at its end alone, on PNG where the recipe has no parts; one shared cache."""
    recipe = read_recipe(config, [*changes, f"seed={seed}"])
    validation = dataclasses.replace(
        recipe.validation,
        parts=recipe.validation.parts or (DataPart("png", "val"),),
        every=float(recipe.epochs + 1),
        pictures=0,
        patience=None,
    )
    cache = dataclasses.replace(recipe.cache, folder=recipe.cache.folder or str(out / FEATURES))
    return dataclasses.replace(recipe, validation=validation, cache=cache, trackers=())


def finished_run(folder: Path, recipe: TrainRecipe) -> Measured | None:
    """Read what a finished run has measured; None where there is none of this recipe on the same samples."""
    try:
        record: dict[str, Any] = files.read_json(folder / _RECORD, TrainingStopped)
        cost: dict[str, Any] = files.read_json(folder / _COST, TrainingStopped)
        result, before, now = record["result"], record["recipe"], recipe.to_dict()
        if result["scores"] is None or differences(before, now) or before["validation"] != now["validation"]:
            return None
        return Measured(
            "", "", recipe.seed, result["scores"], result["steps"], result["seconds"], cost["decoder_gflop"],
            record["frozen"][0], folder,
        )  # fmt: skip
    except (TrainingStopped, TypeError, AttributeError, LookupError):
        return None


def _check_one_model(done: Mapping[str, Measured]) -> None:
    """Refuse to compare variants that read other weights: the model was replaced between two calls."""
    frozen = {name: one.frozen for name, one in done.items()}
    if len(set(frozen.values())) > 1:
        last = next(reversed(frozen))
        others = [name for name, weights in frozen.items() if weights != frozen[last]]
        raise TrainingStopped(
            f"{last} was trained on other frozen weights than {', '.join(others)}; remove those folders, or name "
            "another --out, and run the same line again"
        )


def _effective(config: str | Path, changes: Sequence[str], own: Sequence[str]) -> list[str]:
    """Return those of a variant's own changes that change anything: the others need no run of their own."""
    if not own:
        return []
    base = read_recipe(config, changes)
    return [one for one in own if read_recipe(config, [*changes, one]) != base]


def _trained(recipe: TrainRecipe, folder: Path, backbone: Backbone | None, progress: bool) -> tuple[Measured, Backbone]:
    # A finished run that was measured on other samples is no part of this study.
    trainer = Trainer(recipe, folder, backbone=backbone, progress=progress, restart=(folder / _RECORD).exists())
    trainer.run()
    files.write(folder / _COST, json.dumps({"decoder_gflop": _decoder_gflop(trainer)}))
    measured = finished_run(folder, recipe)
    assert measured is not None, f"{folder / _RECORD} does not hold the run that just ended"
    return measured, trainer.lmm.backbone


@torch.no_grad()
def _decoder_gflop(trainer: Trainer) -> float:
    """Count billions of operations of the mask decoder for one phrase; a multiplication and an addition are two."""
    from torch.utils.flop_counter import FlopCounterMode

    heads = trainer.lmm.heads
    assert heads is not None
    attention = FrozenReader(trainer.lmm).words(trainer.samples[0]).attention[:1].to(heads.device)
    with FlopCounterMode(display=False) as counter:
        heads.mask_decoder(attention)
    return float(counter.get_total_flops()) / 1e9


@dataclass(frozen=True)
class SelectedText:
    """Words that a keyword selector takes in one text; spans are characters ``[start, end)``."""

    text: str
    wanted: tuple[Span, ...]  # annotated phrases
    picked: tuple[tuple[Span, ...], ...]  # per threshold, in the order asked for


def select(
    recipe: TrainRecipe, folder: Path, thresholds: Sequence[float], *, backbone: Backbone | None = None
) -> list[SelectedText]:
    """Apply the keyword selector of a finished run to its held-out texts; those it cannot use are left out.

    Args:
        recipe: The one that the run was made with; names the held-out texts.
        folder: The run's folder, with its heads.
        thresholds: Scores above which a token is taken.
        backbone: A model that is loaded already.

    Raises:
        HeadsMismatch: The run trained no selector.
    """
    lmm = load_lmm(recipe, "cpu" if backbone is None else str(backbone.device), backbone)
    heads = load_heads(folder / HEADS_NAME, expect=lmm.backbone.facts, refiner=False, device=lmm.backbone.output_device)
    selector = heads.keyword_selector
    if selector is None:
        raise HeadsMismatch(f"the heads in {folder} have no keyword selector; train with heads.selector=true")
    reader = FrozenReader(GroundedLMM(lmm.backbone, heads))
    found: list[SelectedText] = []
    for sample in TrainingSet(recipe, recipe.validation.parts):
        if not sample.keywords:
            continue
        try:
            hidden = reader.words(sample).selector_hidden
        except (BadImage, BadText):
            continue
        if hidden is None:
            continue
        ids, offsets = text_offsets(lmm.backbone.tokenizer, sample.text)
        chosen_words = [chosen_phrases(selector, hidden, ids, sample.text, offsets, limit) for limit in thresholds]
        picked = tuple(tuple(span for _, span in one.phrases if span is not None) for one in chosen_words)
        found.append(SelectedText(sample.text, sample.spans, picked))
    return found
