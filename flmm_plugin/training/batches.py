"""Read the samples of each step, and name those that cannot be used.

Which samples a step sees is a function of the recipe and the step's number alone. What is wrong with data is found here
and nowhere else: images that do not open, damaged annotations, empty masks, phrases without a token, attention that is
not finite. Each is a `Problem`, counted once however often the sample comes by.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from flmm_plugin.datasets.problems import Problem, counted
from flmm_plugin.errors import BadAnnotation, BadImage, BadText, CaptureError, EmptyPhrase, FlmmError, TrainingStopped
from flmm_plugin.training.distributed import Processes
from flmm_plugin.training.features import FeatureSource
from flmm_plugin.training.losses import Prepared
from flmm_plugin.training.recipe import TrainRecipe
from flmm_plugin.training.samples import TrainingSample, TrainingSet, without_empty

#: Errors that make a sample unusable, and the kind of problem that each is listed as.
KINDS: Mapping[type[FlmmError], str] = {
    BadImage: "picture cannot be read",
    BadAnnotation: "annotation cannot be used",
    EmptyPhrase: "no phrase has a token",
    BadText: "text cannot be read by the model",
    CaptureError: "what the frozen models say is not finite",
}
EMPTY_PHRASE = "phrase has no token"
EMPTY_MASK = "mask is empty"
NO_MASK = "every mask is empty"
BAD_LOSS = "loss is not finite"
BAD_GRADIENT = "gradient is not finite"

_ORDER_STREAM = 11


@functools.lru_cache(maxsize=2)
def data_order(samples: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Return the order of an epoch, ``int64[samples]``."""
    order: npt.NDArray[np.int64] = np.random.default_rng([seed, _ORDER_STREAM, epoch]).permutation(samples)
    return order


class Preparer:
    """Reads samples onto the heads' device, and lists in ``problems`` what cannot be used, each once.

    Args:
        source: A `FrozenReader`, or a cache in front of it.
        tokenizer: The backbone's own; finds phrases without a token.
        device: Device of the heads that learn.
        stop: Raise at the first problem instead of listing it.
        blank: Leave nothing of the LMM in the features (the control ``image_only``).
    """

    def __init__(
        self,
        source: FeatureSource,
        tokenizer: Any,
        device: torch.device | str,
        *,
        stop: bool = False,
        blank: bool = False,
    ) -> None:
        self.source, self.tokenizer, self.device = source, tokenizer, device
        self.stop, self.blank = stop, blank
        self.problems: list[Problem] = []
        self._known: set[tuple[str, str]] = set()
        self._taken = 0

    @property
    def counts(self) -> dict[str, int]:
        """Number of problems of each kind."""
        return counted(self.problems)

    def prepare(self, sample: TrainingSample) -> Prepared | None:
        """Read a sample onto the heads' device, without phrases whose masks are empty; None if it cannot be used.

        Raises:
            TrainingStopped: It cannot be used, and `stop` is set.
        """
        try:
            return self._prepared(sample)
        except tuple(KINDS) as exc:
            self.note_error(sample, exc)
            return None

    def note_error(self, sample: TrainingSample, error: FlmmError) -> None:
        """Count an error that makes a sample unusable. Raises as `note`."""
        kind = next((name for known, name in KINDS.items() if isinstance(error, known)), type(error).__name__)
        self.note(kind, f"{sample.key} ({error})", len(sample.grounded))

    def note(self, kind: str, where: str, dropped: int = 0) -> None:
        """Count a problem, once.

        Raises:
            TrainingStopped: `stop` is set.
        """
        problem = Problem(kind, where, dropped)
        if self.stop:
            raise TrainingStopped(
                f"{problem}; mend or remove it, or go on without such samples: bad_samples=skip counts and names them"
            )
        if (kind, where) not in self._known:
            self._known.add((kind, where))
            self.problems.append(problem)

    def new_problems(self) -> list[Problem]:
        """Return the problems that were met since the last call."""
        found = self.problems[self._taken :]
        self._taken += len(found)
        return found

    def restore(self, problems: Iterable[Sequence[Any]]) -> None:
        """Take over what `state` gave in an earlier part of the run."""
        self.problems = [Problem(str(kind), str(where), int(dropped)) for kind, where, dropped in problems]
        self._known = {(problem.kind, problem.where) for problem in self.problems}
        self._taken = len(self.problems)

    def state(self) -> list[list[Any]]:
        """Return the problems as plain data."""
        return [[problem.kind, problem.where, problem.dropped] for problem in self.problems]

    def _prepared(self, sample: TrainingSample) -> Prepared | None:
        targets = sample.masks()
        try:
            features = self.source.read(sample)
        except EmptyPhrase:
            left, gone = without_empty(sample, self.tokenizer)
            if left is None or not gone:
                raise
            for phrase in gone:
                self.note(EMPTY_PHRASE, f"{sample.key} ({phrase!r})", 1)
            sample = left
            targets = left.masks()
            features = self.source.read(sample)
        size = (features.grid.image_height, features.grid.image_width)
        for phrase, mask in zip(sample.phrases, targets, strict=True):
            if mask.shape != size:
                raise BadAnnotation(
                    f"the mask of {phrase!r} is {mask.shape[0]} x {mask.shape[1]}, the picture {size[0]} x {size[1]} "
                    "(height x width)"
                )
        kept = [place for place, mask in enumerate(targets) if mask.any()]
        for place, phrase in enumerate(sample.phrases):
            if place not in kept:
                self.note(EMPTY_MASK, f"{sample.key} ({phrase!r})", 1)
        if not kept:
            self.note(NO_MASK, sample.key, len(targets))
            return None
        features = (features.blanked() if self.blank else features).to(self.device)
        if len(kept) < len(targets):
            hidden = tuple(features.hidden[place] for place in kept)
            features = replace(features, attention=features.attention[kept], hidden=hidden)
        masks = torch.from_numpy(np.stack([targets[place] for place in kept])).to(self.device)
        return Prepared(sample.key, features, masks, tuple(sample.phrases[place].strip() for place in kept))


@dataclass(frozen=True, eq=False)
class Batch:
    """One process's share of a step."""

    samples: list[Prepared]
    unusable: int  # number of samples that cannot be used
    stop: TrainingStopped | None = None  # ends the run; raised when all processes know of it


class Batches:
    """The batches of one process: its share of ``samples``, which are the same in every process."""

    def __init__(self, samples: TrainingSet, preparer: Preparer, processes: Processes, recipe: TrainRecipe) -> None:
        self.samples, self.preparer, self.processes, self.recipe = samples, preparer, processes, recipe
        self.steps_per_epoch = math.ceil(len(samples) / recipe.batch_size)
        self.steps = recipe.epochs * self.steps_per_epoch
        if recipe.steps is not None:
            self.steps = min(self.steps, recipe.steps)

    def after(self, step: int) -> Iterator[Batch]:
        """Yield the batches of all steps after ``step``. On a GPU the next one is read while this one is learnt."""
        plans = (self.of_step(number) for number in range(step, self.steps))
        if self.processes.device.type == "cpu":
            yield from map(self.read, plans)
            return
        with ThreadPoolExecutor(1) as thread:
            ahead = None
            for samples in plans:
                coming = thread.submit(self.read, samples)
                if ahead is not None:
                    yield ahead.result()
                ahead = coming
            if ahead is not None:
                yield ahead.result()

    def of_step(self, step: int) -> list[TrainingSample]:
        """Return this process's samples of a step, counted from 0."""
        epoch, place = divmod(step, self.steps_per_epoch)
        size = self.recipe.batch_size
        order = data_order(len(self.samples), self.recipe.seed, epoch)
        chosen = order[place * size : (place + 1) * size]
        return [self.samples[int(index)] for index in chosen[self.processes.index :: self.processes.count]]

    def read(self, samples: Sequence[TrainingSample]) -> Batch:
        """Read samples; count those that cannot be used."""
        found: list[Prepared] = []
        for sample in samples:
            try:
                prepared = self.preparer.prepare(sample)
            except TrainingStopped as exc:
                return Batch(found, len(samples) - len(found), exc)
            if prepared is not None:
                found.append(prepared)
        return Batch(found, len(samples) - len(found))
