"""Attention maps to coarse logits without anything trained: the rules behind the training-free baselines.

Each rule stands where a trained `flmm_plugin.heads.mask_decoder.MaskDecoder` would: merged attention maps in, logits
over the same extent out, positive inside the mask. Sources, in own words and code:

- `AttentionArgmax`: the plain question "where does the mean attention peak?", the floor of the other two.
- `AttendAndSegment`: "Emerging Pixel Grounding in Large Multimodal Models Without Grounding Supervision" (2024): the
  mean over layers and heads, less what all phrases have in common, peaks at a point that SAM is prompted with.
- `LocalizationHeads`: "Your Large Vision-Language Model Only Needs A Few Attention Heads For Visual Grounding" (2025):
  of the heads that look at the picture at all, the few whose maps are most concentrated say where.

Shapes: n phrases, C maps (layers x heads x maps per image), h x w image-token grid, h' x w' finer grid.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flmm_plugin.errors import HeadsMismatch, UnknownArgument

UPSAMPLE_TO = 64  # cells along the longer side, as the trained decoder's
PEAK_SHARE = 0.5  # a region ends where attention falls below this share of its peak
KEPT_HEADS = 3  # localisation heads whose maps are summed
CANDIDATES = 10  # most concentrated heads of a phrase that count when heads are chosen over many phrases
_TINY = 1e-12


class AttentionArgmax(nn.Module):
    """The region around the peak of the mean map: connected, above half of the peak."""

    def forward(self, attention: Tensor) -> Tensor:
        """``[n, C, h, w]``, not normalised -> logits ``[n, h', w']``."""
        return _region(_finer(_positive(attention).mean(dim=1)))


class AttendAndSegment(nn.Module):
    """The region around the peak of the mean map, after what the phrases of one call have in common is taken away.

    Attention sinks and borders are hot for every word. The paper subtracts the mean over all tokens of the answer; here
    it is the mean over the phrases that are grounded together, so a phrase alone keeps its sinks.
    """

    def forward(self, attention: Tensor) -> Tensor:
        """``[n, C, h, w]``, not normalised -> logits ``[n, h', w']``."""
        mean = _positive(attention).mean(dim=1)
        if len(mean) > 1:
            mean = (mean - mean.mean(dim=0, keepdim=True)).clamp(min=0)
        return _region(_finer(mean))


class LocalizationHeads(nn.Module):
    """The region around the peak of the smoothed sum of a few concentrated heads.

    It ends where the other rules' regions end, at half of the peak, so that the rules differ in where they look alone:
    cut at the mean of the sum, areas on small grids grow so wide that their boxes mean little to SAM.

    Args:
        maps: Indices 0..C-1 of the maps to sum, as `choose_maps` finds them over many phrases; none: each phrase
            chooses for itself.
        kept: Number of maps that a phrase chooses.
    """

    def __init__(self, maps: Sequence[int] = (), kept: int = KEPT_HEADS) -> None:
        super().__init__()
        self.maps, self.kept = tuple(maps), kept

    def forward(self, attention: Tensor) -> Tensor:
        """``[n, C, h, w]``, not normalised -> logits ``[n, h', w']``.

        Raises:
            HeadsMismatch: A map was named that this backbone does not have.
        """
        if self.maps and max(self.maps) >= attention.shape[1]:
            raise HeadsMismatch(
                f"localization-heads names map {max(self.maps)}, but this backbone has {attention.shape[1]} maps, 0 to "
                f"{attention.shape[1] - 1}; leave the numbers out, or choose them on this backbone: flmm heads localize"
            )
        seen = _positive(attention)
        summed = [self._summed(maps) for maps in seen]
        return _region(_finer(torch.stack(summed) if summed else seen.sum(dim=1)))

    def _summed(self, maps: Tensor) -> Tensor:
        """``[C, h, w]`` -> ``[h, w]``: each kept map sums to 1, so that none outshouts the others."""
        kept = list(self.maps) or most_concentrated(maps, self.kept)
        chosen = maps[kept]
        return _smoothed(chosen / chosen.sum(dim=(-2, -1), keepdim=True).clamp(min=_TINY)).sum(dim=0)


def _positive(attention: Tensor) -> Tensor:
    """Return maps in float32 without what is below 0: where a linear layer takes something away, nothing is seen."""
    return attention.float().clamp(min=0)


def most_concentrated(maps: Tensor, count: int) -> list[int]:
    """Return the maps of the lowest spatial entropy, the best first, of those that look at the picture at all.

    Args:
        maps: One phrase's, ``[C, h, w]``, not normalised: their sums say how much of a head's attention is the picture.
        count: Largest number of maps to return.
    """
    sums = maps.sum(dim=(-2, -1))
    looking = torch.nonzero(sums >= elbow(sums)).flatten().tolist()
    entropy = {index: spatial_entropy(maps[index]) for index in looking}
    return sorted(looking, key=lambda index: (entropy[index], -float(sums[index]), index))[:count]


def elbow(values: Tensor) -> float:
    """Find where the sorted values ``[C]`` bend most: the one farthest above or below the line between the extremes."""
    ordered = values.double().sort().values
    line = torch.linspace(float(ordered[0]), float(ordered[-1]), len(ordered), dtype=torch.float64)
    return float(ordered[int((ordered - line).abs().argmax())])


def spatial_entropy(attention: Tensor) -> float:
    """Measure the scatter of one map ``[h, w]``: entropy of its connected areas above the mean; 0 for a single one.

    A map without any structure (flat) has no area above its mean and counts as scattered over all its cells.
    """
    above = (attention > attention.mean()).cpu().numpy().astype(np.uint8)
    number, labels = cv2.connectedComponents(above, connectivity=8)
    if number == 1:
        return float(np.log(above.size))
    share = np.bincount(labels.ravel())[1:] / above.sum()
    return float(-(share * np.log(share)).sum())


def choose_maps(phrases: Iterable[Tensor], kept: int = KEPT_HEADS, candidates: int = CANDIDATES) -> tuple[int, ...]:
    """Choose the localisation heads of a backbone: those that are most often among a phrase's most concentrated.

    Args:
        phrases: Maps ``[C, h, w]`` of each of many phrases, of the same backbone; no masks are needed.
        kept: Number of maps to choose.
        candidates: Number of each phrase's best maps that count.

    Returns:
        Indices for `LocalizationHeads`, the most frequent first.

    Raises:
        UnknownArgument: There was no phrase.
    """
    counts: dict[int, int] = {}
    for maps in phrases:
        for index in most_concentrated(maps, candidates):
            counts[index] = counts.get(index, 0) + 1
    if not counts:
        raise UnknownArgument("no phrase to choose heads by; give pictures and phrases of the kind to be grounded")
    return tuple(sorted(counts, key=lambda index: (-counts[index], index))[:kept])


def _finer(maps: Tensor) -> Tensor:
    """``[n, h, w] -> [n, h', w']``, bilinear, never coarser."""
    scale = max(1.0, UPSAMPLE_TO / max(maps.shape[-2:]))
    size = (int(maps.shape[-2] * scale), int(maps.shape[-1] * scale))
    if len(maps) == 0:
        return maps.new_zeros((0, *size))
    return F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def _smoothed(maps: Tensor) -> Tensor:
    """``[k, h, w]`` under a Gaussian of one cell; at the border the outermost cells go on."""
    offsets = torch.arange(-3, 4, dtype=maps.dtype, device=maps.device)
    kernel = torch.exp(-offsets.square() / 2)
    kernel = kernel / kernel.sum()
    padded = F.pad(maps[:, None], (3, 3, 3, 3), mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel.view(1, 1, 1, 7)), kernel.view(1, 1, 7, 1))[:, 0]


def _region(maps: Tensor) -> Tensor:
    """Return the logits of the connected area around each map's peak that lies above `PEAK_SHARE` of it.

    Args:
        maps: ``[n, h', w']``, >= 0.

    Returns:
        ``log(value / end)`` where the area ends at ``end``, so a probability of value / (value + end); other areas
        above the end get the same below 0. A map of nothing has no area.
    """
    end = PEAK_SHARE * maps.amax(dim=(-2, -1), keepdim=True) if len(maps) else maps
    logits = torch.log(maps.clamp(min=_TINY) / end.clamp(min=_TINY))
    for one in logits:
        inside = (one > 0).cpu().numpy().astype(np.uint8)
        _, labels = cv2.connectedComponents(inside, connectivity=8)
        own = labels.ravel()[int(one.argmax())]
        elsewhere = torch.from_numpy((labels != own) & (labels > 0)).to(one.device)
        one[elsewhere] = -one[elsewhere]
    return logits
