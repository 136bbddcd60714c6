"""The paper's ablations as changes of one recipe, and the runs that measure them.

A study (``decoder``: Figure 5, ``refiner``: Table 5, ``selector``: Table 6) has parts, a part has arms, an arm is a
recipe with a few keys changed. Arms that come to the same recipe share one run, runs share one feature cache, and a run
that is finished is read, not made again.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from flmm_plugin import files
from flmm_plugin.backbones.base import Backbone
from flmm_plugin.errors import TrainingStopped, UnknownArgument
from flmm_plugin.heads.sam import OFFICIAL_FILES
from flmm_plugin.training.features import FrozenReader
from flmm_plugin.training.recipe import DataPart, TrainRecipe, read_recipe
from flmm_plugin.training.run_folder import differences

if TYPE_CHECKING:
    from flmm_plugin.training.trainer import Trainer

FEATURES = "features"
_RECORD, _COST = "run.json", "cost.json"


@dataclass(frozen=True)
class Arm:
    """One bar of a figure, one row of a table.

    Attributes:
        name: As the paper calls it.
        changes: ``key.sub=value`` each, on top of the recipe and of its study's own changes.
    """

    name: str
    changes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part:
    """Arms that are compared with each other.

    Attributes:
        key: Names it on the command line.
        title: What is varied.
        table: Where the paper has it: ``5(a)`` to ``5(d)`` of its Figure 5, ``5a``, ``5b`` or ``6`` of its tables.
        arms: In the paper's order.
        said: What the paper says of it, where it prints no number.
    """

    key: str
    title: str
    table: str
    arms: tuple[Arm, ...]
    said: str = ""


@dataclass(frozen=True)
class Study:
    """All parts of one figure or table.

    Attributes:
        key: Names it on the command line.
        title: What is studied.
        changes: Of every arm.
        parts: In the paper's order.
    """

    key: str
    title: str
    changes: tuple[str, ...]
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Measured:
    """An arm's result.

    Attributes:
        part: Key of its part.
        arm: Its name.
        seed: Of its run.
        scores: As `flmm_plugin.training.validation.Scores`, of the last step; 0..1.
        steps: Of its run.
        seconds: That its run took.
        decoder_gflop: Billions of operations of its mask decoder for one phrase.
        frozen: Hash of the frozen LMM's weights.
        folder: Of its run.
    """

    part: str
    arm: str
    seed: int
    scores: Mapping[str, float | None]
    steps: int
    seconds: float
    decoder_gflop: float
    frozen: str
    folder: Path


_DECODER = "heads.decoder."
_REFINER = "heads.refiner."
_NO_REFINER = (f"{_REFINER}enabled=false", "heads.selector=false")


def _prompts(*given: str) -> tuple[str, ...]:
    left_out = [prompt for prompt in ("box", "mask", "text") if prompt not in given]
    return tuple(f"{_REFINER}prompts.{prompt}=false" for prompt in left_out)


DECODER = Study(
    "decoder",
    "Mask decoder (Figure 5); the refiner has no part in it",
    _NO_REFINER,
    (
        Part(
            "layers", "Attention of which layers", "5(a)",
            tuple(Arm(name, () if name == "all" else (f"{_DECODER}layers={name}",))
                  for name in ("early", "mid", "late", "all")),
            "all layers best, late ones worst",
        ),
        Part(
            "merge", "How the tokens of a phrase become one map", "5(b)",
            (Arm("mean"), Arm("max", ("heads.merge=max",))), "mean 0.7 above max",
        ),
        Part(
            "normalise", "Maps summed to 1", "5(c)",
            (Arm("normalised"), Arm("as they are", (f"{_DECODER}normalise=false",))), "normalised 0.5 above",
        ),
        Part(
            "size", "Cells of the decoder's input", "5(d)",
            (Arm("token grid", (f"{_DECODER}upsample_to=1",)), Arm("32", (f"{_DECODER}upsample_to=32",)),
             Arm("64", (f"{_DECODER}upsample_to=64",)), Arm("96", (f"{_DECODER}upsample_to=96",))),
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
            "prompts", "What SAM is told", "5a",
            (Arm("no refiner", _NO_REFINER), Arm("mask", _prompts("mask")),
             Arm("mask + box", _prompts("mask", "box")), Arm("mask + box + text")),
        ),
    ),
)  # fmt: skip

#: Thresholds at which a trained selector is read; the paper's is 0.3.
THRESHOLDS = (0.1, 0.3, 0.5, 0.7, 0.9)
SELECTOR = Study(
    "selector", "Keyword selector (Table 6)", (), (Part("selector", "Who chooses the words", "6", (Arm("trained"),)),)
)
STUDIES = {study.key: study for study in (DECODER, REFINER, SELECTOR)}


def with_sams(study: Study, recipe: TrainRecipe, folder: Path | None) -> tuple[Study, list[str]]:
    """The refiner's study with the SAMs that there are (Table 5b).

    Args:
        study: `REFINER`; others come back as they are.
        recipe: Whose SAM is the middle of the comparison.
        folder: Holds Meta's files; None: none are there. A recipe with a small SAM is compared with itself before any
            training.

    Returns:
        The study, and a sentence for each size that is left out.
    """
    if study.key != REFINER.key:
        return study, []
    own = recipe.heads.refiner.sam
    if not isinstance(own, str):
        arms = (
            Arm("small SAM, initial weights", (f"{_REFINER}checkpoint=null",)),
            Arm("small SAM, trained"),
        )
        part = Part("sam", "Which SAM", "5b", arms, "ViT-B 63.0, ViT-L 64.9, ViT-H 65.0")
        return dataclasses.replace(study, parts=(*study.parts, part)), [
            "SAM ViT-B, ViT-L and ViT-H are of no use here: the recipe has a small SAM of the world it is trained on"
        ]
    found: list[Arm] = []
    missing: list[str] = []
    for variant, name in OFFICIAL_FILES.items():
        path = None if folder is None else folder / name
        label = f"SAM ViT-{variant[-1].upper()}"
        if variant == own and recipe.heads.refiner.checkpoint is not None:
            found.append(Arm(label))
        elif path is not None and path.is_file():
            found.append(Arm(label, (f"{_REFINER}sam={variant}", f"{_REFINER}checkpoint={path}")))
        else:
            missing.append(f"{label} is left out: give the folder with {name} as --sams")
    if len(found) < 2:  # nothing to compare
        return study, missing
    part = Part("sam", "Which SAM", "5b", tuple(found))
    return dataclasses.replace(study, parts=(*study.parts, part)), missing


def chosen(study: Study, parts: Sequence[str], skip: Sequence[str] = ()) -> Study:
    """The study with some of its parts (none named: all) and without some of its arms.

    Raises:
        UnknownArgument: It has no such part or arm, or nothing is left.
    """
    known = {part.key: part for part in study.parts}
    for key in parts:
        if key not in known:
            raise UnknownArgument(f"the {study.key} study has no part {key!r}; it has {', '.join(known)}")
    kept = [known[key] for key in parts] if parts else list(study.parts)
    names = {arm.name for part in kept for arm in part.arms}
    for name in skip:
        if name not in names:
            raise UnknownArgument(f"there is no arm {name!r} to skip; there are {', '.join(sorted(names))}")
    cut = [dataclasses.replace(part, arms=tuple(arm for arm in part.arms if arm.name not in skip)) for part in kept]
    left = tuple(part for part in cut if part.arms)
    if not left:
        raise UnknownArgument("every arm is to be skipped; leave one at least")
    return dataclasses.replace(study, parts=left)


def run_name(changes: Sequence[str], seed: int) -> str:
    """Folder of a run: what is changed, as a file name.

    >>> run_name(["heads.refiner.enabled=false", "heads.decoder.layers=early"], 1)
    'layers-early+enabled-false+seed-1'
    """
    named = [re.sub(r"[^A-Za-z0-9]+", "-", _short(change)).strip("-") for change in changes]
    return "+".join([*sorted(named, reverse=True), f"seed-{seed}"])


def _short(change: str) -> str:
    """The last part of a key and of its value, if that is a path: folders make no file names."""
    key, _, value = change.partition("=")
    return f"{key.rsplit('.', 1)[-1]}={value.rsplit('/', 1)[-1]}"


def run_study(
    study: Study,
    config: str | Path,
    changes: Sequence[str],
    out: Path,
    *,
    seeds: Sequence[int] = (0,),
    backbone: Backbone | None = None,
    heard: Callable[[str], None] = lambda line: None,
    progress: bool = True,
) -> Iterator[Measured]:
    """Train and measure every arm, one after the other.

    Args:
        study: Which arms.
        config: Recipe that they change.
        changes: Of every arm, from the command line.
        out: Holds a folder per run, and the cache they share.
        seeds: Every arm is trained with each.
        backbone: Loaded already; None: as the recipe says, once.
        heard: Told which run begins and which is there already.
        progress: Show bars.

    Yields:
        One result per arm and seed, arm after arm.

    Raises:
        TrainingStopped: A run's folder belongs to another recipe, or it cannot go on.
    """
    done: dict[str, Measured] = {}
    todo = [(part, arm, seed) for part in study.parts for arm in part.arms for seed in seeds]
    for part, arm, seed in todo:
        own = [*study.changes, *_effective(config, [*changes, *study.changes], arm.changes)]
        name, said = run_name(own, seed), f"{study.key}, {part.key}: {arm.name}, seed {seed}"
        if name not in done:
            recipe = arm_recipe(config, [*changes, *own], seed, out)
            finished = finished_run(out / name, recipe)
            if finished is None:
                heard(f"{said} -> {out / name}")
                finished, backbone = _trained(recipe, out / name, backbone, progress)
            else:
                heard(f"{said}: finished before")
            done[name] = finished
            _check_one_model(done)
        yield dataclasses.replace(done[name], part=part.key, arm=arm.name)


def arm_recipe(config: str | Path, changes: Sequence[str], seed: int, out: Path) -> TrainRecipe:
    """The recipe of a run: measured at its end alone, on PNG where the recipe says nothing, features shared."""
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
    """What a run that came to its end has measured; None where there is none of this recipe on the same samples."""
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
    """Arms that read other weights cannot be compared: a model that was replaced between two calls is found here."""
    frozen = {name: one.frozen for name, one in done.items()}
    if len(set(frozen.values())) > 1:
        last = next(reversed(frozen))
        others = [name for name, weights in frozen.items() if weights != frozen[last]]
        raise TrainingStopped(
            f"{last} was trained on other frozen weights than {', '.join(others)}; remove those folders, or name "
            "another --out, and run the same line again"
        )


def _effective(config: str | Path, changes: Sequence[str], of_arm: Sequence[str]) -> list[str]:
    """Those changes of an arm that change anything: what the recipe says already needs no run of its own."""
    if not of_arm:
        return []
    base = read_recipe(config, changes)
    return [one for one in of_arm if read_recipe(config, [*changes, one]) != base]


def _trained(recipe: TrainRecipe, folder: Path, backbone: Backbone | None, progress: bool) -> tuple[Measured, Backbone]:
    from flmm_plugin.training.trainer import Trainer

    # A finished run that was measured on other samples is no part of this study.
    trainer = Trainer(recipe, folder, backbone=backbone, progress=progress, restart=(folder / _RECORD).exists())
    trainer.run()
    files.write(folder / _COST, json.dumps({"decoder_gflop": _decoder_gflop(trainer)}))
    measured = finished_run(folder, recipe)
    assert measured is not None, f"{folder / _RECORD} does not hold the run that just ended"
    return measured, trainer.lmm.backbone


@torch.no_grad()
def _decoder_gflop(trainer: Trainer) -> float:
    """Billions of operations of the mask decoder for one phrase; a multiplication and an addition are two."""
    from torch.utils.flop_counter import FlopCounterMode

    heads = trainer.lmm.heads
    assert heads is not None
    attention = FrozenReader(trainer.lmm).words(trainer.samples[0]).attention[:1].to(heads.device)
    with FlopCounterMode(display=False) as counter:
        heads.mask_decoder(attention)
    return float(counter.get_total_flops()) / 1e9
