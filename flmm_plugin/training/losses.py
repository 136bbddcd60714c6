"""The losses of the paper: BCE + DICE on the mask decoder's and on the refiner's masks, BCE on the keyword selector.

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
    """A sample that is ready for a step.

    Attributes:
        key: Of the sample.
        features: What the frozen models said about the phrases that are left.
        masks: ``bool[n, H, W]``, their targets, none of them empty.
        phrases: Their words.
    """

    key: str
    features: FrozenFeatures
    masks: Tensor
    phrases: tuple[str, ...] = ()


def bce_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy of logits against ``target`` (0..1) of the same shape: mean over all."""
    return F.binary_cross_entropy_with_logits(logits.float(), target.float())


def dice_loss(logits: Tensor, target: Tensor, eps: float = 1.0) -> Tensor:
    """``1 - (2 |p t| + eps) / (|p| + |t| + eps)`` of each mask ``[n, ...]``: mean over masks.

    >>> float(dice_loss(torch.tensor([[20.0, -20.0]]), torch.tensor([[1.0, 0.0]])))
    0.0
    """
    probability, truth = logits.float().sigmoid().flatten(1), target.float().flatten(1)
    overlap = (probability * truth).sum(dim=1)
    return (1 - (2 * overlap + eps) / (probability.sum(dim=1) + truth.sum(dim=1) + eps)).mean()


def run_heads(heads: GroundingHeads, features: FrozenFeatures, refine: bool = True) -> HeadOutput:
    """Masks of all phrases of a sample; ``refine=False``: those of the mask decoder alone."""
    embedding = features.embedding
    if embedding is None or heads.mask_refiner is None or not refine:
        coarse = heads.decode(features.attention, features.grid)
        return HeadOutput(coarse, coarse)
    out: HeadOutput = heads(features.attention, features.hidden, embedding, features.grid)
    return out


class HeadsLoss(nn.Module):
    """Heads with their losses, as one module: what accelerate wraps, since wrappers see calls of a whole module only.

    Args:
        heads: That learn.
    """

    def __init__(self, heads: GroundingHeads) -> None:
        super().__init__()
        self.heads = heads

    def forward(
        self, batch: Sequence[Prepared], anchored: bool = True, decoder_alone: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Losses of some samples, maybe of none.

        Args:
            batch: The samples.
            anchored: Give every parameter a part in the second result. Processes that wait for each other's gradients
                need one of every parameter, even from a batch of nothing; and so that one process does what several
                do, it has them too.
            decoder_alone: The refiner's and the selector's terms are 0 and not computed.

        Returns:
            ``[b, 5]``, columns as in `TERMS`, 0 where a sample or the heads have no such part; and a 0 to be added to
            the loss.
        """
        learning = (
            [one for one in self.parameters() if one.requires_grad]
            if anchored
            else [next(one for one in self.parameters() if one.requires_grad)]
        )
        anchor = sum((one.sum() * 0.0 for one in learning), start=torch.zeros((), device=self.heads.device))
        if not batch:
            return torch.zeros(0, len(TERMS), device=self.heads.device), anchor
        terms = [self.losses(one, decoder_alone) for one in batch]
        # Cut off here: nothing times what is not finite is not nothing, and would spoil everybody's gradients.
        return torch.stack([one if bool(torch.isfinite(one).all()) else one.detach() for one in terms]), anchor

    def losses(self, sample: Prepared, decoder_alone: bool = False) -> Tensor:
        """The terms of one sample, ``[5]``."""
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
