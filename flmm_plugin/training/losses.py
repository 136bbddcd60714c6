"""Compute the paper's losses: BCE + DICE on masks of the decoder and of the refiner, BCE on the keyword selector.

All weights are 1 (research configuration: every term is added as it is), DICE is the naive one with eps 1. A sample's
loss is a mean over its phrases, a batch's a mean over its samples, so that a picture with many phrases counts no more
than one with a few. Masks are compared at the picture's own resolution.

Shapes: b samples, n phrases of a sample, H x W original picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flmm_plugin.heads import GroundingHeads, HeadOutput
from flmm_plugin.training.features import FrozenFeatures

#: Columns of what `HeadsLoss` returns.
TERMS = ("decoder_bce", "decoder_dice", "refiner_bce", "refiner_dice", "selector_bce")


@dataclass(frozen=True, eq=False)
class Prepared:
    """A sample that is ready for a step, without the phrases that cannot be used."""

    key: str
    features: FrozenFeatures
    masks: Tensor  # targets, ``bool[n, H, W]``, none of them empty
    phrases: tuple[str, ...] = ()


def bce_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Compute the mean binary cross-entropy of logits against ``target`` (0..1) of the same shape."""
    return F.binary_cross_entropy_with_logits(logits.float(), target.float())


def dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Compute ``1 - (2 |p t| + 1) / (|p| + |t| + 1)`` of each mask ``[n, ...]``: mean over masks.

    >>> float(dice_loss(torch.tensor([[20.0, -20.0]]), torch.tensor([[1.0, 0.0]])))
    0.0
    """
    probability, truth = logits.float().sigmoid().flatten(1), target.float().flatten(1)
    overlap = (probability * truth).sum(dim=1)
    return (1 - (2 * overlap + 1) / (probability.sum(dim=1) + truth.sum(dim=1) + 1)).mean()


def run_heads(heads: GroundingHeads, features: FrozenFeatures, refine: bool = True) -> HeadOutput:
    """Compute the masks of all phrases of a sample; ``refine=False``: those of the mask decoder alone."""
    embedding = features.embedding
    if embedding is None or heads.mask_refiner is None or not refine:
        return HeadOutput(heads.coarse(features.attention, features.grid))
    out: HeadOutput = heads(features.attention, features.hidden, embedding, features.grid)
    return out


class HeadsLoss(nn.Module):
    """The heads that learn with their losses, as one module: wrappers such as DDP see calls of a whole module only."""

    def __init__(self, heads: GroundingHeads) -> None:
        super().__init__()
        self.heads = heads

    def forward(
        self, batch: Sequence[Prepared], anchored: bool = True, decoder_alone: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Compute the losses of some samples, maybe of none.

        Args:
            batch: Samples of this process; an empty batch has no loss, but still the anchor.
            anchored: Give every parameter a part in the anchor. Processes that wait for each other's gradients need one
                of every parameter, even from an empty batch; one process does the same as several.
            decoder_alone: The refiner's and the selector's terms are 0 and not computed.

        Returns:
            ``[b, 5]``, columns as in `TERMS`, 0 where a sample or the heads have no such part; and the anchor, a 0 to
            be added to the loss.
        """
        learning = [one for one in self.parameters() if one.requires_grad]
        if not anchored:
            learning = learning[:1]
        anchor = sum((one.sum() * 0.0 for one in learning), start=torch.zeros((), device=self.heads.device))
        if not batch:
            return torch.zeros(0, len(TERMS), device=self.heads.device), anchor
        terms = [self.losses(one, decoder_alone) for one in batch]
        # Detached, because 0 * inf is NaN and would poison all gradients.
        return torch.stack([one if bool(torch.isfinite(one).all()) else one.detach() for one in terms]), anchor

    def losses(self, sample: Prepared, decoder_alone: bool = False) -> Tensor:
        """Compute the terms of one sample, ``[5]``."""
        features, target = sample.features, sample.masks
        out = run_heads(self.heads, features, refine=not decoder_alone)
        nothing = out.logits.new_zeros(())
        refined = self.heads.mask_refiner is not None and features.embedding is not None and not decoder_alone
        selector = None if decoder_alone else self.heads.keyword_selector
        terms = [
            bce_loss(out.decoder_logits, target),
            dice_loss(out.decoder_logits, target),
            bce_loss(out.logits, target) if refined else nothing,
            dice_loss(out.logits, target) if refined else nothing,
            nothing,
        ]
        if selector is not None and features.selector_hidden is not None and features.selector_labels is not None:
            terms[-1] = bce_loss(selector.logits(features.selector_hidden), features.selector_labels)
        return torch.stack([term.float() for term in terms])
