"""Read the recipe of a training run: a YAML file, strict, with ``key.sub=value`` changes from the command line.

A file states what differs from the recipe that its key ``extends`` names: one of the package, or a file beside it.
Mappings are merged key by key; lists and values replace those of the other recipe.
Every setting is a field of a frozen dataclass, so that a recipe can be hashed, stored and compared.
The defaults are the paper's (F-LMM, arXiv 2406.05821, sections 4.1 and A1.3).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from flmm_plugin.backbones.registry import FAMILIES
from flmm_plugin.data.own import own_sets
from flmm_plugin.errors import UnknownArgument
from flmm_plugin.files import read_text
from flmm_plugin.heads.manifest import MERGES, ROWS
from flmm_plugin.options import WeightOptions
from flmm_plugin.typed_fields import built, change, choice, merged, nearest, plain
from flmm_plugin.yaml_text import read_yaml

_CONFIGS = "configs"
_EXTENDS = "extends"  # key of a recipe that names the one whose other settings it takes over
#: Data sets in their official layouts; the others are data of one's own.
DATASETS = ("png", "refcoco", "refcoco+", "refcocog")
CONTROLS = ("none", "random", "image_only")

Layers = Literal["all", "early", "mid", "late"] | tuple[int, ...]


@dataclass(frozen=True)
class BackboneRecipe(WeightOptions):
    """The frozen LMM, and how it is loaded."""

    pretrained: str = "flmm_tiny"  # hub name, folder, or a model that a package ships


@dataclass(frozen=True)
class DecoderRecipe:
    """The mask decoder: a U-Net over attention maps."""

    base_channels: int = 64  # width of its first stage; 64 gives about 8 M parameters
    upsample_to: int = 64  # cells of the longer side of its input (Figure 5d)
    normalise: bool = True  # sum every map to 1 before the U-Net (Figure 5c)
    # Layers whose maps it reads (Figure 5a): ``all``, one layer a quarter (``early``), half (``mid``) or all (``late``)
    # of the way up, or a list of layer numbers from 1.
    layers: Layers = "all"


@dataclass(frozen=True)
class PromptsRecipe:
    """The prompts that the refiner gets (Table 5a)."""

    box: bool = True
    mask: bool = True
    text: bool = True


@dataclass(frozen=True)
class RefinerRecipe:
    """The mask refiner."""

    enabled: bool = True  # False trains the mask decoder alone
    sam: str | dict[str, Any] = "vit_l"  # ``vit_b | vit_l | vit_h``, or the numbers of a small SAM
    # Weights: Meta's ``.pth``, a heads file that holds a SAM, or the name of a model that a package ships. None: Meta's
    # file of that size, fetched once; of a SAM given by numbers initial weights (only for tests).
    checkpoint: str | None = None
    prompts: PromptsRecipe = field(default_factory=PromptsRecipe)


@dataclass(frozen=True)
class HeadsRecipe:
    """The heads that are trained, and the text around the phrases; the latter goes into the manifest."""

    decoder: DecoderRecipe = field(default_factory=DecoderRecipe)
    refiner: RefinerRecipe = field(default_factory=RefinerRecipe)
    selector: bool = True  # train a keyword selector
    threshold: float = 0.3  # score from which it takes a token
    merge: str = "mean"  # how a phrase's tokens become one map (Figure 5b)
    rows: str = "attention"  # what maps hold; ``value``: weights times the norms of the tokens' values
    prompt: str = "Please give me a description of the image."  # the user's words before the text
    separator: str = ";"  # written after every expression of an image
    template: str = ""  # text around ``{image}`` and ``{prompt}``; "": the model's own chat template
    preprocessing: str = ""  # ``stock`` or ``paper``; "": as the backbone is loaded
    placement: str = "exact"  # how decoder logits lie on the image: ``exact``, ``cells``, ``whole`` (`HeadsManifest`)


@dataclass(frozen=True)
class DataPart:
    """Samples of one data set."""

    dataset: str  # one of `DATASETS`, or the name of data of one's own (``flmm data add``)
    split: str = "train"
    root: str | None = None  # None: the recipe's root
    limit: int | None = None  # take the first samples only
    by: str | None = None  # authors of a RefCOCO split; None: those whom papers use
    prompt: str | None = None  # the user's words; None: the heads'
    sentences: str = "random"  # one of an object's sentences, drawn once by the seed as in the paper, or its ``first``
    keywords: bool | None = None  # the keyword selector learns from it; None: from narratives, not from expressions
    singular: bool = False  # PNG: only phrases that name one thing: no stuff, nothing in the plural
    # For RefCOCO: templates such as ``What color is the {}?``. Each object becomes a sample of its own, whose phrase
    # stands in the user's question (in a template drawn by the seed), not in the answer.
    questions: tuple[str, ...] = ()


@dataclass(frozen=True)
class DataRecipe:
    """The samples to learn from: all parts, one after the other, shuffled."""

    root: str | None = None  # folder of all parts, or data that a package ships; None: ``FLMM_DATA``, or ``data``
    parts: tuple[DataPart, ...] = (
        DataPart("png"), DataPart("refcoco"), DataPart("refcoco+"), DataPart("refcocog"),
    )  # fmt: skip
    scenes: int = 400  # images per part of ``flmm_tiny_train``


@dataclass(frozen=True)
class OptimiserRecipe:
    """AdamW and its schedule."""

    lr: float = 1e-4  # peak learning rate
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    warmup: float = 0.03  # share of all steps over which the rate rises
    schedule: str = "cosine"  # after it: ``cosine`` or ``linear`` to nothing, or ``constant``
    clip: float = 1.0  # largest norm of the gradient
    # Share of all steps, at the start, in which the mask decoder learns alone, with its own peak learning rate (None:
    # ``lr``). Both phases go through the whole schedule.
    decoder_first: float = 0.0
    decoder_lr: float | None = None


@dataclass(frozen=True)
class CacheRecipe:
    """The feature cache."""

    enabled: bool = True  # False runs the frozen models in every epoch, the paper's way
    folder: str | None = None  # None: ``features`` in the run's folder
    cap_gb: float | None = None  # most that it may hold; the rest is computed in every epoch


@dataclass(frozen=True)
class ValidationRecipe:
    """Measuring during the training."""

    parts: tuple[DataPart, ...] = ()  # none: no validation, and the last heads are the best
    every: float = 1.0  # epochs between two validations; 0.5 is twice an epoch
    metric: str = "ciou"  # decides which heads are the best: ``ciou`` (refined), ``decoder_ciou`` or ``recall``
    pictures: int = 12  # samples whose masks are painted on the page of overlays
    patience: int | None = None  # stop after so many validations without a better one; None: never


@dataclass(frozen=True)
class SavingRecipe:
    """Checkpoints and heads files."""

    every: int = 500  # steps between two checkpoints
    keep: int = 2  # checkpoints that stay
    storage: str = "float32"  # ``float32`` or ``float16`` of the heads file


@dataclass(frozen=True)
class TrainRecipe:
    """Everything that decides what a run makes."""

    backbone: BackboneRecipe = field(default_factory=BackboneRecipe)
    heads: HeadsRecipe = field(default_factory=HeadsRecipe)
    data: DataRecipe = field(default_factory=DataRecipe)
    optimiser: OptimiserRecipe = field(default_factory=OptimiserRecipe)
    cache: CacheRecipe = field(default_factory=CacheRecipe)
    validation: ValidationRecipe = field(default_factory=ValidationRecipe)
    saving: SavingRecipe = field(default_factory=SavingRecipe)
    epochs: int = 8
    batch_size: int = 8  # samples (images with all their phrases) of a step, over all processes together
    steps: int | None = None  # stop after so many steps, and end the schedule there; None: after all epochs
    seed: int = 0  # decides initial weights, order of samples and drawn sentences
    precision: str = "fp32"  # ``fp32``, ``bf16`` or ``fp16`` of the heads' arithmetic
    bad_samples: str = "skip"  # count and name what cannot be used; ``stop`` ends the run at the first
    max_bad_share: float = 0.1  # even with ``skip``: stop when more than this share of an epoch cannot be used
    trackers: tuple[str, ...] = ("auto",)  # names of accelerate's trackers; ``auto``: TensorBoard where installed
    # Train heads that must fail: ``random`` reads the LMM with newly drawn weights, ``image_only`` gets zeros in place
    # of attention and hidden states, so that only SAM's embedding is left.
    control: str = "none"

    def __post_init__(self) -> None:
        if not self.backbone.pretrained:
            raise UnknownArgument(
                "no model is named: give backbone.pretrained=OWNER/NAME, or a folder with its weights"
            )
        choice("heads.merge", self.heads.merge, MERGES)
        choice("heads.rows", self.heads.rows, ROWS)
        choice("heads.placement", self.heads.placement, ("exact", "cells", "whole"))
        choice("heads.preprocessing", self.heads.preprocessing, ("", "stock", "paper"))
        choice("optimiser.schedule", self.optimiser.schedule, ("cosine", "linear", "constant"))
        choice("validation.metric", self.validation.metric, ("ciou", "decoder_ciou", "recall"))
        choice("saving.storage", self.saving.storage, ("float32", "float16"))
        choice("precision", self.precision, ("fp32", "bf16", "fp16"))
        choice("bad_samples", self.bad_samples, ("skip", "stop"))
        choice("control", self.control, CONTROLS)
        for part in (*self.data.parts, *self.validation.parts):
            choice("dataset", part.dataset, (*DATASETS, *own_sets()))
            choice("sentences", part.sentences, ("random", "first"))
            if part.questions and part.dataset not in DATASETS[1:]:
                raise UnknownArgument(f"questions are written around expressions of RefCOCO, not of {part.dataset}")
            if wrong := [one for one in part.questions if one.count("{}") != 1]:
                raise UnknownArgument(f"the question {wrong[0]!r} needs one {{}} where the expression goes")
        counts = {
            "epochs": self.epochs, "batch_size": self.batch_size, "steps": self.steps,
            "saving.every": self.saving.every, "saving.keep": self.saving.keep,
        }  # fmt: skip
        for name, value in counts.items():
            if value is not None and value < 1:
                raise UnknownArgument(f"{name} is {value}; it must be at least 1")
        if not self.validation.every > 0:
            raise UnknownArgument(f"validation.every is {self.validation.every}; it counts epochs and must be above 0")
        if not self.data.parts:
            raise UnknownArgument("data.parts is empty; name at least one data set, e.g. {dataset: refcoco}")
        for name, share in (("warmup", self.optimiser.warmup), ("decoder_first", self.optimiser.decoder_first)):
            if not 0 <= share < 1:
                raise UnknownArgument(f"optimiser.{name} is {share}; it is a share of all steps, 0 to 1")

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, as `from_dict` reads it and YAML or JSON writes it."""
        content = plain(dataclasses.asdict(self))
        assert isinstance(content, dict)
        return content

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], source: str = "recipe") -> TrainRecipe:
        """Check plain data and build a recipe; ``source`` names the file in messages.

        Raises:
            UnknownArgument: An unknown key (the nearest known one is offered) or a value of another type.
        """
        return built(cls, content, source, "")


def read_recipe(path: str | PathLike[str], overrides: Sequence[str] = ()) -> TrainRecipe:
    """Read a recipe and change some of its keys.

    Args:
        path: A YAML file, or the bare name of one that the package carries (see `recipes`).
        overrides: ``key.sub=value`` each, the value written as in YAML; numbers count in lists
            (``data.parts.0.limit=100``).

    Raises:
        UnknownArgument: No such recipe, or an unknown key or value.
    """
    content, source = _content_of(path)
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise UnknownArgument(f"{override!r} is no key=value; e.g. optimiser.lr=2e-4 or data.root=/data")
        change(content, key.split("."), read_yaml(value, f"the value of {_short(override)}"), override)
    return TrainRecipe.from_dict(content, source)


def recipes() -> tuple[str, ...]:
    """Return the names of the recipes that the package carries: of its files, and of models that need none."""
    folder = resources.files("flmm_plugin.training") / _CONFIGS
    files = {one.name[: -len(".yaml")] for one in folder.iterdir() if one.name.endswith(".yaml")}
    return tuple(sorted(files | {family.model for family in FAMILIES}))


def _content_of(path: str | PathLike[str], above: tuple[str, ...] = ()) -> tuple[dict[str, Any], str]:
    """Return a recipe's keys, those of the recipes that it extends included, and its name.

    Args:
        path: A file, or a recipe of the package.
        above: Names of the recipes that extend it, outermost first.
    """
    text, source = _text_of(path)
    if source in above:
        raise UnknownArgument(f"recipes extend each other in a circle: {' -> '.join((*above, source))}")
    content = read_yaml(text, source)
    if not isinstance(content, dict):
        raise UnknownArgument(f"{source} holds no keys; a recipe begins with e.g. `extends: flmm_auto`")
    base = content.pop(_EXTENDS, None)
    if base is None:
        return content, source
    if not isinstance(base, str):
        raise UnknownArgument(f"{source}: {_EXTENDS} is {base!r}; name one recipe, or a file beside this one")
    beside = Path(path).parent / base
    inherited, _ = _content_of(beside if beside.is_file() else base, (*above, source))
    return merged(inherited, content), source


def _short(override: str) -> str:
    return repr(override if len(override) <= 60 else f"{override[:60]}...")


def _text_of(path: str | PathLike[str]) -> tuple[str, str]:
    given = Path(path)
    if given.is_file():
        return read_text(given, UnknownArgument), str(given)
    name = str(path)
    carried = resources.files("flmm_plugin.training") / _CONFIGS / f"{name}.yaml"
    if name in recipes() and carried.is_file():
        return carried.read_text(encoding="utf-8"), name
    for family in FAMILIES:
        if family.model == name:
            return f"{_EXTENDS}: flmm_auto\nbackbone:\n  pretrained: {family.pretrained}\n", name
    raise UnknownArgument(f"no recipe {name!r}, and no such file; {nearest(name, recipes())}")
