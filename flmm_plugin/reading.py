"""What was read for the phrases of one picture, and the way from there through the heads to masks.

Shapes: n phrases, t tokens, m layers, c heads per layer, k image tokens, d hidden size, H x W original picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from flmm_plugin.backbones.base import Backbone, ImageTokens
from flmm_plugin.errors import CaptureError
from flmm_plugin.heads import GroundingHeads, KeywordSelector
from flmm_plugin.phrases import merged_rows
from flmm_plugin.records import Grounding
from flmm_plugin.words import Span, trimmed


@dataclass(frozen=True, eq=False)
class Reading:
    """The tokens of all phrases of one picture, phrase after phrase.

    Attributes:
        rows: Attention to the image tokens, ``[t, m, c, k]``.
        hidden: Outputs of every layer, ``[t, m, d]``.
        sizes: Tokens of each phrase; their sum is t.
        phrases: Text of each phrase, and its span in the text that it was read from.
        tokens: The image tokens.
    """

    rows: Tensor
    hidden: Tensor
    sizes: tuple[int, ...]
    phrases: tuple[tuple[str, Span | None], ...]
    tokens: ImageTokens


@torch.no_grad()
def ground_reading(
    reading: Reading, picture: Image.Image, backbone: Backbone, heads: GroundingHeads, *, merge: str, refine: bool
) -> list[Grounding]:
    """Masks of all phrases of one picture, in one call of the heads.

    Args:
        reading: What the backbone's attention said.
        picture: The original picture.
        backbone: Where the reading is from.
        heads: Trained for it.
        merge: How a phrase's tokens become one map, ``mean`` or ``max``.
        refine: Use the mask refiner.

    Raises:
        CaptureError: The attention is not finite.
    """
    if not bool(torch.isfinite(reading.rows).all()):
        raise CaptureError(
            f"the attention of {backbone.name} is not finite in {backbone.dtype}; load it with dtype='bfloat16' "
            "or 'float32'"
        )
    maps = backbone.attention_maps(merged_rows(reading.rows, reading.sizes, merge), reading.tokens)
    hidden = [states.to(heads.device) for states in reading.hidden.split(list(reading.sizes))]
    out = heads(maps.to(heads.device), hidden, picture, reading.tokens.grid, refine)
    logits, decoder = out.logits.float().cpu().numpy(), out.decoder_logits.float().cpu().numpy()
    return [
        Grounding.from_logits(phrase, logits[index], decoder[index], span)
        for index, (phrase, span) in enumerate(reading.phrases)
    ]


@torch.no_grad()
def keywords(
    selector: KeywordSelector,
    hidden: Tensor,
    names: Sequence[bool],
    text: str,
    offsets: Sequence[Span],
    threshold: float,
) -> list[tuple[list[int], Span]]:
    """What an answer names: runs of adjacent picked tokens, and the characters that each run covers.

    Args:
        selector: Trained for the backbone.
        hidden: States of the answer's tokens after the final norm, ``[t, d]``.
        names: Whether a token is part of the text at all; the end token, though it may score, names nothing.
        text: The answer.
        offsets: Characters ``[start, end)`` of each token.
        threshold: Score above which a token is picked.
    """
    scores = selector(hidden.to(next(selector.parameters()).device)).cpu()
    scores = scores.masked_fill(~torch.tensor(list(names), dtype=torch.bool), float("-inf"))
    found: list[tuple[list[int], Span]] = []
    for start, end in selector.select(scores, threshold):
        span = trimmed(text, (offsets[start][0], offsets[end - 1][1]))
        if span[0] < span[1]:
            found.append((list(range(start, end)), span))
    return found
