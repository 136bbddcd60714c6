"""What a training run is told: one YAML file, strict, with ``key.sub=value`` changes from the command line.

Every knob is a field of a frozen dataclass, so that a recipe can be hashed, stored beside what it made, and compared.
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

from flmm_plugin.errors import UnknownArgument
from flmm_plugin.files import read_text
from flmm_plugin.heads.manifest import MERGES
from flmm_plugin.strict import built, change, choice, nearest, plain
from flmm_plugin.yaml_text import read_yaml

_CONFIGS = "configs"
CONTROLS = ("none", "random", "image_only")

Layers = Literal["all", "early", "mid", "late"] | tuple[int, ...]


@dataclass(frozen=True)
class BackboneRecipe:
    """The frozen LMM; arguments of `flmm_plugin.backbones.load_backbone`.

    Attributes:
        pretrained: Hub name, folder, or ``flmm_tiny``.
        revision: Commit on the hub; part of the cache's address.
        dtype: Of the frozen weights.
        attn_implementation: Attention kernel of the frozen model.
        device_map: ``auto`` splits a model that fits no single device; for one process only.
        load_in_4bit, load_in_8bit: Quantise the frozen weights (bitsandbytes).
        trust_remote_code: Run code of the model's repository.
    """

    pretrained: str = "flmm_tiny"
    revision: str | None = None
    dtype: str = "auto"
    attn_implementation: str | None = None
    device_map: str | None = None
    load_in_4bit: bool = False
    load_in_8bit: bool = False
    trust_remote_code: bool = False


@dataclass(frozen=True)
class DecoderRecipe:
    """The U-Net over attention maps.

    Attributes:
        base_channels: Width of its first stage; 64 gives about 8 M parameters.
        upsample_to: Cells of the longer side of its input (Figure 5d).
        normalise: Sum every map to 1 before the U-Net (Figure 5c).
        layers: Which layers' maps it reads (Figure 5a): ``all``, or one layer a quarter (``early``), half (``mid``) or
            all (``late``) of the way up, or a list of layer numbers from 1.
    """

    base_channels: int = 64
    upsample_to: int = 64
    normalise: bool = True
    layers: Layers = "all"


@dataclass(frozen=True)
class PromptsRecipe:
    """Which prompts the refiner gets (Table 5a)."""

    box: bool = True
    mask: bool = True
    text: bool = True


@dataclass(frozen=True)
class RefinerRecipe:
    """The mask refiner.

    Attributes:
        enabled: False trains the mask decoder alone.
        sam: ``vit_b | vit_l | vit_h``, or the numbers of a small SAM.
        checkpoint: Where its weights are: Meta's ``.pth``, a heads file that holds a SAM, ``flmm_tiny`` for the small
            SAM of the embedded world, or None for initial weights (only for tests: the encoder stays as it is).
        prompts: What it is given.
    """

    enabled: bool = True
    sam: str | dict[str, Any] = "vit_l"
    checkpoint: str | None = None
    prompts: PromptsRecipe = field(default_factory=PromptsRecipe)


@dataclass(frozen=True)
class HeadsRecipe:
    """What is trained, and how text stands around the phrases; the latter goes into the manifest.

    Attributes:
        decoder: The mask decoder.
        refiner: The mask refiner.
        selector: Train a keyword selector.
        threshold: Score from which it takes a token.
        merge: How a phrase's tokens become one map (Figure 5b).
        prompt: The user's words before the text.
        separator: Written after every expression of a picture.
        template: Text around ``{image}`` and ``{prompt}``; "": the model's own chat template.
        preprocessing: ``stock`` or ``paper``; "": as the backbone is loaded.
        placement: How decoder logits lie on the picture: ``exact``, ``cells`` or ``whole`` (see `HeadsManifest`).
    """

    decoder: DecoderRecipe = field(default_factory=DecoderRecipe)
    refiner: RefinerRecipe = field(default_factory=RefinerRecipe)
    selector: bool = True
    threshold: float = 0.3
    merge: str = "mean"
    prompt: str = "Please give me a description of the image."
    separator: str = ";"
    template: str = ""
    preprocessing: str = ""
    placement: str = "exact"


@dataclass(frozen=True)
class DataPart:
    """Samples of one data set.

    Attributes:
        dataset: ``png``, ``refcoco``, ``refcoco+`` or ``refcocog``.
        split: Of it.
        root: Where it is; None: the recipe's root.
        limit: Only so many samples, from the first.
        by: Who split a RefCOCO; None: as papers do.
        prompt: The user's words; None: the heads'.
        sentences: One of an object's sentences, drawn once by the seed (``random``, as in the paper), or its ``first``.
        keywords: Whether the keyword selector learns from it; None: from narratives, not from lists of expressions.
        questions: Of a RefCOCO only: templates such as ``What color is the {}?``. Each object becomes a sample of its
            own, whose phrase stands in the user's question (in a template drawn by the seed), not in the answer.
    """

    dataset: str
    split: str = "train"
    root: str | None = None
    limit: int | None = None
    by: str | None = None
    prompt: str | None = None
    sentences: str = "random"
    keywords: bool | None = None
    questions: tuple[str, ...] = ()


@dataclass(frozen=True)
class DataRecipe:
    """What is learnt from: all parts, one after the other, shuffled.

    Attributes:
        root: Folder of all parts; None: ``FLMM_DATA``, or ``data``; ``flmm_tiny_train``: the embedded world, written
            into the cache.
        parts: Of the training.
        scenes: Pictures per part of ``flmm_tiny_train``.
    """

    root: str | None = None
    parts: tuple[DataPart, ...] = (
        DataPart("png"), DataPart("refcoco"), DataPart("refcoco+"), DataPart("refcocog"),
    )  # fmt: skip
    scenes: int = 400


@dataclass(frozen=True)
class OptimiserRecipe:
    """AdamW and its schedule.

    Attributes:
        lr: Peak learning rate.
        weight_decay: Decoupled.
        betas: Of AdamW.
        warmup: Share of all steps over which the rate rises.
        schedule: After it: ``cosine`` or ``linear`` to nothing, or ``constant``.
        clip: Largest norm of the gradient.
        decoder_first: Share of all steps, at the start, in which the mask decoder learns alone. Both phases go through
            the whole schedule.
        decoder_lr: Peak learning rate of that first phase; None: ``lr``.
    """

    lr: float = 1e-4
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    warmup: float = 0.03
    schedule: str = "cosine"
    clip: float = 1.0
    decoder_first: float = 0.0
    decoder_lr: float | None = None


@dataclass(frozen=True)
class CacheRecipe:
    """What the frozen part computes is kept, because it never changes.

    Attributes:
        enabled: False computes it in every epoch, the paper's way.
        folder: Where; None: ``features`` in the run's folder.
        cap_gb: Most that it may hold; the rest is computed in every epoch.
    """

    enabled: bool = True
    folder: str | None = None
    cap_gb: float | None = None


@dataclass(frozen=True)
class ValidationRecipe:
    """What is measured on the way.

    Attributes:
        parts: On which samples; none: no validation, and the last checkpoint is the best.
        every: Epochs between two validations; 0.5 is twice an epoch.
        metric: What decides which checkpoint is the best: ``ciou`` (refined), ``decoder_ciou`` or ``recall``.
        pictures: Samples whose masks are painted on the page of overlays.
        patience: Stop after so many validations without a better one; None: never.
    """

    parts: tuple[DataPart, ...] = ()
    every: float = 1.0
    metric: str = "ciou"
    pictures: int = 12
    patience: int | None = None


@dataclass(frozen=True)
class SavingRecipe:
    """What is left on disk.

    Attributes:
        every: Steps between two checkpoints that a killed run goes on from.
        keep: How many of them stay.
        storage: ``float32`` or ``float16`` of the heads file.
    """

    every: int = 500
    keep: int = 2
    storage: str = "float32"


@dataclass(frozen=True)
class TrainRecipe:
    """Everything that decides what a run makes.

    Attributes:
        backbone: The frozen LMM.
        heads: What is trained.
        data: On what.
        optimiser: How.
        cache: Of the frozen part.
        validation: What is measured on the way.
        saving: What is left on disk.
        epochs: Passes over the data.
        batch_size: Samples (pictures with all their phrases) of a step, over all processes together.
        steps: Stop after so many steps; None: after all epochs. The schedule ends there too.
        seed: Of initial weights, order of samples and drawn sentences.
        precision: ``fp32``, ``bf16`` or ``fp16`` of the heads' arithmetic.
        bad_samples: ``skip`` counts and names what cannot be used and goes on, ``stop`` ends the run at the first.
        max_bad_share: Even with ``skip``: stop when more than this share of an epoch cannot be used.
        trackers: Names that accelerate knows (``tensorboard``, ``wandb``, ...); ``auto``: TensorBoard where installed.
        control: Train heads that must fail: ``random`` reads the LMM with newly drawn weights, ``image_only`` gets
            zeros in place of attention and hidden states, so that only SAM's embedding is left; ``none``: real heads.
    """

    backbone: BackboneRecipe = field(default_factory=BackboneRecipe)
    heads: HeadsRecipe = field(default_factory=HeadsRecipe)
    data: DataRecipe = field(default_factory=DataRecipe)
    optimiser: OptimiserRecipe = field(default_factory=OptimiserRecipe)
    cache: CacheRecipe = field(default_factory=CacheRecipe)
    validation: ValidationRecipe = field(default_factory=ValidationRecipe)
    saving: SavingRecipe = field(default_factory=SavingRecipe)
    epochs: int = 8
    batch_size: int = 8
    steps: int | None = None
    seed: int = 0
    precision: str = "fp32"
    bad_samples: str = "skip"
    max_bad_share: float = 0.1
    trackers: tuple[str, ...] = ("auto",)
    control: str = "none"

    def __post_init__(self) -> None:
        choice("heads.merge", self.heads.merge, MERGES)
        choice("heads.placement", self.heads.placement, ("exact", "cells", "whole"))
        choice("heads.preprocessing", self.heads.preprocessing, ("", "stock", "paper"))
        choice("optimiser.schedule", self.optimiser.schedule, ("cosine", "linear", "constant"))
        choice("validation.metric", self.validation.metric, ("ciou", "decoder_ciou", "recall"))
        choice("saving.storage", self.saving.storage, ("float32", "float16"))
        choice("precision", self.precision, ("fp32", "bf16", "fp16"))
        choice("bad_samples", self.bad_samples, ("skip", "stop"))
        choice("control", self.control, CONTROLS)
        for part in (*self.data.parts, *self.validation.parts):
            choice("dataset", part.dataset, ("png", "refcoco", "refcoco+", "refcocog"))
            choice("sentences", part.sentences, ("random", "first"))
            if part.questions and part.dataset == "png":
                raise UnknownArgument("questions are written around expressions; PNG has whole narratives")
            if wrong := [one for one in part.questions if one.count("{}") != 1]:
                raise UnknownArgument(f"the question {wrong[0]!r} needs one {{}} where the expression goes")
        for name, value in (("epochs", self.epochs), ("batch_size", self.batch_size), ("steps", self.steps)):
            if value is not None and value < 1:
                raise UnknownArgument(f"{name} is {value}; it must be at least 1")
        for name, number in (("saving.every", self.saving.every), ("saving.keep", self.saving.keep)):
            if number < 1:
                raise UnknownArgument(f"{name} is {number}; it must be at least 1")
        if not self.validation.every > 0:
            raise UnknownArgument(f"validation.every is {self.validation.every}; it counts epochs and must be above 0")
        if not self.data.parts:
            raise UnknownArgument("data.parts is empty; name at least one data set, e.g. {dataset: refcoco}")
        for name, share in (("warmup", self.optimiser.warmup), ("decoder_first", self.optimiser.decoder_first)):
            if not 0 <= share < 1:
                raise UnknownArgument(f"optimiser.{name} is {share}; it is a share of all steps, 0 to 1")

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as `from_dict` reads it and YAML or JSON writes it."""
        content = plain(dataclasses.asdict(self))
        assert isinstance(content, dict)
        return content

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], source: str = "recipe") -> TrainRecipe:
        """Check and build; ``source`` names the file in messages.

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
    text, source = _text_of(path)
    content = read_yaml(text, source)
    if not isinstance(content, dict):
        raise UnknownArgument(
            f"{source} holds no keys; a recipe begins with e.g. `backbone: {{pretrained: flmm_tiny}}`"
        )
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise UnknownArgument(f"{override!r} is no key=value; e.g. optimiser.lr=2e-4 or data.root=/data")
        change(content, key.split("."), read_yaml(value, f"the value of {_short(override)}"), override)
    return TrainRecipe.from_dict(content, source)


def recipes() -> tuple[str, ...]:
    """Bare names of the recipes that the package carries."""
    folder = resources.files("flmm_plugin.training") / _CONFIGS
    return tuple(sorted(one.name[: -len(".yaml")] for one in folder.iterdir() if one.name.endswith(".yaml")))


def _short(override: str) -> str:
    return repr(override if len(override) <= 60 else f"{override[:60]}...")


def _text_of(path: str | PathLike[str]) -> tuple[str, str]:
    given = Path(path)
    if given.is_file():
        return read_text(given, UnknownArgument), str(given)
    name = str(path)
    if name in recipes():
        return (resources.files("flmm_plugin.training") / _CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"), name
    raise UnknownArgument(f"no recipe {name!r}, and no such file; {nearest(name, recipes())}")
