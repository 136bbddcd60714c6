"""Measure heads on samples they do not learn from: cIoU, recall, keywords; keep the masks of a few to look at.

Pixels and phrases are counted, counts are summed over processes, and the division comes last. The numbers are those of
teacher-forced text, a quick measure of progress; the benchmarks' own numbers come from the evaluation tasks.

Shapes: n phrases, H x W original picture.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from flmm_plugin.heads import GroundingHeads
from flmm_plugin.records import Grounding
from flmm_plugin.training.batches import Preparer
from flmm_plugin.training.losses import Prepared, run_heads
from flmm_plugin.training.samples import TrainingSample

#: Names of the counts, in this order; "halves" are phrases with an IoU of at least 0.5.
COUNTS = (
    "phrases", "intersection", "union", "decoder_intersection", "decoder_union", "halves", "iou_parts",
    "tokens_right", "tokens_chosen", "tokens_wanted", "unusable",
)  # fmt: skip
_PARTS = 1 << 32  # an IoU is summed in whole parts of this: sums of integers are the same in any order


@dataclass(frozen=True)
class Scores:
    """Results of a validation, in 0..1; None where nothing was measured."""

    ciou: float | None  # summed intersections over summed unions, refined masks (or the decoder's, without a refiner)
    decoder_ciou: float | None  # the same of the mask decoder's masks
    miou: float | None  # mean IoU of refined masks
    recall: float | None  # share of phrases whose refined mask has an IoU of at least 0.5
    keyword_f1: float | None  # of the tokens that the keyword selector takes, at the heads' threshold
    phrases: int  # scored
    unusable: int  # samples that could not be used

    @classmethod
    def of_counts(cls, counts: Sequence[int]) -> Scores:
        """Divide summed counts (see `COUNTS`)."""
        by_name = dict(zip(COUNTS, (int(one) for one in counts), strict=True))
        phrases = by_name["phrases"]

        def ratio(above: float, below: float) -> float | None:
            return above / below if below else None

        return cls(
            ciou=ratio(by_name["intersection"], by_name["union"]),
            decoder_ciou=ratio(by_name["decoder_intersection"], by_name["decoder_union"]),
            miou=ratio(by_name["iou_parts"] / _PARTS, phrases),
            recall=ratio(by_name["halves"], phrases),
            keyword_f1=ratio(2 * by_name["tokens_right"], by_name["tokens_chosen"] + by_name["tokens_wanted"]),
            phrases=phrases,
            unusable=by_name["unusable"],
        )


@dataclass(frozen=True, eq=False)
class Shown:
    """Masks of one sample, to look at: refined ones (``found``), annotated ones (``bool[H, W]``) and their IoUs."""

    key: str
    picture: Image.Image
    found: tuple[Grounding, ...]
    targets: tuple[npt.NDArray[np.bool_], ...]
    ious: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class ValidationReport:
    """One validation."""

    step: int
    epoch: float
    scores: Scores  # over the samples of all processes
    shown: tuple[Shown, ...]  # of some of the main process's samples
    best: bool  # no validation before was better


@torch.no_grad()
def count(
    heads: GroundingHeads,
    samples: Iterable[TrainingSample],
    preparer: Preparer,
    *,
    pictures: int = 0,
) -> tuple[Tensor, list[Shown]]:
    """Count the pixels of some samples.

    Args:
        heads: Measured in evaluation mode, and returned to the mode they were in.
        samples: Samples to measure on, e.g. wrapped in a progress bar.
        preparer: Reads the samples, and counts those that cannot be used.
        pictures: Number of samples, the first ones, whose masks are kept.

    Returns:
        ``int64[len(COUNTS)]``, and the kept masks.
    """
    was_training = heads.training
    heads.eval()
    totals = torch.zeros(len(COUNTS), dtype=torch.int64)
    shown: list[Shown] = []
    for sample in samples:
        prepared = preparer.prepare(sample)
        if prepared is None:
            totals[COUNTS.index("unusable")] += 1
            continue
        out = run_heads(heads, prepared.features)
        refined, coarse = out.logits > 0, out.decoder_logits > 0
        inter, union = _overlap(refined, prepared.masks)
        coarse_inter, coarse_union = _overlap(coarse, prepared.masks)
        ious = inter.double() / union.clamp(min=1).double()
        right, chosen, wanted = _keywords(heads, prepared)
        totals += torch.tensor(
            [
                len(ious), int(inter.sum()), int(union.sum()), int(coarse_inter.sum()), int(coarse_union.sum()),
                int((2 * inter >= union).sum()), int((ious * _PARTS).round().long().sum()), right, chosen, wanted, 0,
            ]
        )  # fmt: skip
        if len(shown) < pictures:
            shown.append(_shown(sample, prepared, out.logits, out.decoder_logits, ious))
    heads.train(was_training)
    return totals, shown


def _overlap(found: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Count pixels of ``bool[n, H, W]`` pairs in both and in either, ``int64[n]`` each, on the CPU."""
    return (found & target).flatten(1).sum(dim=1).cpu(), (found | target).flatten(1).sum(dim=1).cpu()


def _keywords(heads: GroundingHeads, prepared: Prepared) -> tuple[int, int, int]:
    """Count tokens that the selector takes rightly, takes, and should take."""
    hidden, labels = prepared.features.selector_hidden, prepared.features.selector_labels
    if heads.keyword_selector is None or hidden is None or labels is None:
        return 0, 0, 0
    taken = heads.keyword_selector(hidden) > heads.manifest.keyword_threshold
    return int((taken & labels).sum()), int(taken.sum()), int(labels.sum())


def _shown(sample: TrainingSample, prepared: Prepared, logits: Tensor, decoder: Tensor, ious: Tensor) -> Shown:
    fine, coarse = logits.float().cpu().numpy(), decoder.float().cpu().numpy()
    return Shown(
        sample.key,
        sample.image_loader(),
        tuple(
            Grounding.from_logits(phrase, fine[place], coarse[place]) for place, phrase in enumerate(prepared.phrases)
        ),
        tuple(prepared.masks.cpu().numpy()),
        tuple(ious.tolist()),
    )
