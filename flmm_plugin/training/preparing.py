"""A sample made ready for a step, or a named reason why it cannot be used.

What is wrong with data is found here and nowhere else: pictures that do not open, damaged annotations, empty masks,
phrases without a token, attention that is not finite. Each is a `Problem`, counted once however often the sample comes
by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from flmm_plugin.datasets.problems import Problem, counted
from flmm_plugin.errors import BadAnnotation, BadImage, BadText, CaptureError, EmptyPhrase, FlmmError, TrainingStopped
from flmm_plugin.training.features import FeatureSource
from flmm_plugin.training.losses import Prepared
from flmm_plugin.training.samples import TrainingSample, without_empty

#: Errors that are a sample's own, and what they are called.
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


class Preparer:
    """Reads samples and keeps account of those that cannot be used.

    Args:
        source: Of features.
        tokenizer: The backbone's.
        device: Where the heads learn.
        stop: Raise at the first problem instead of counting it.
        blank: Leave nothing of the LMM in the features (the control ``image_only``).
        heard_of: Called with every new problem.

    Attributes:
        problems: All so far, each once.
    """

    def __init__(
        self,
        source: FeatureSource,
        tokenizer: Any,
        device: torch.device | str,
        *,
        stop: bool = False,
        blank: bool = False,
        heard_of: Callable[[Problem], None] | None = None,
    ) -> None:
        self.source, self.tokenizer, self.device, self.stop = source, tokenizer, device, stop
        self.blank = blank
        self.problems: list[Problem] = []
        self._known: set[tuple[str, str]] = set()
        self._heard_of = heard_of

    @property
    def counts(self) -> dict[str, int]:
        """How many problems there are of each kind."""
        return counted(self.problems)

    def prepare(self, sample: TrainingSample) -> Prepared | None:
        """The sample on the heads' device, without phrases whose masks are empty; None if it cannot be used.

        Raises:
            TrainingStopped: It cannot, and that is to end the run.
        """
        try:
            return self._prepared(sample)
        except tuple(KINDS) as exc:
            kind = next(name for error, name in KINDS.items() if isinstance(exc, error))
            self.note(kind, f"{sample.key} ({exc})", len(sample.grounded))
            return None

    def note(self, kind: str, where: str, dropped: int = 0) -> None:
        """Count a problem, once.

        Raises:
            TrainingStopped: Problems are to end the run.
        """
        problem = Problem(kind, where, dropped)
        if self.stop:
            raise TrainingStopped(
                f"{problem}; mend or remove it, or go on without such samples: bad_samples=skip counts and names them"
            )
        if (kind, where) not in self._known:
            self._known.add((kind, where))
            self.problems.append(problem)
            if self._heard_of is not None:
                self._heard_of(problem)

    def restore(self, problems: Iterable[Sequence[Any]]) -> None:
        """Problems that an earlier part of the run has met, as `state` gave them."""
        self.problems = [Problem(str(kind), str(where), int(dropped)) for kind, where, dropped in problems]
        self._known = {(problem.kind, problem.where) for problem in self.problems}

    def state(self) -> list[list[Any]]:
        """Problems as plain data."""
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
            sample, targets = left, left.masks()
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
