"""Compute the rows of a softmax layer from what its kernel gets: scores, what is hidden, sinks, weights by values.

Shapes: b batch, t rows, L keys, c heads, k key-value heads, d head size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from flmm_plugin.errors import CaptureError

#: Positions, as a slice where they follow each other (reading and writing then copies nothing), else as a tensor.
Places = slice | Tensor


def scores(rows: Tensor, keys: Tensor, scaling: float | None) -> Tensor:
    """Return scaled products ``[c, t, L]`` of rows ``[c, t, d]`` and keys ``[k, L, d]``, in float32 as kernels do.

    Grouped queries share a key head by reshaping, so that keys are not repeated in memory.
    """
    heads, count, size = rows.shape
    scaled = rows.float() * (size**-0.5 if scaling is None else scaling)
    products = torch.bmm(scaled.reshape(len(keys), -1, size), keys.transpose(1, 2))
    return products.view(heads, count, keys.shape[1])


def rows_of_mask(
    mask: Tensor | None, rows: Tensor, past: int, length: int, *, causal: bool, window: int | None
) -> Tensor:
    """Return what is added to the scores of each row, so that it sees what it sees in the stock kernel.

    Args:
        mask: None, 4D bool (true: visible) or additive ``[b or 1, c or 1, l, L]``, or 2D padding ``[b, L]``.
        rows: Places of the rows in the pass, ``[b, t]``.
        past: Number of keys in the cache before the pass.
        length: Number L of keys, those in the cache and those of the pass.
        causal: Whether a row sees no later key; plays no role beside a 4D mask.
        window: Number of keys that a row sees back to; None: all. Plays no role beside a 4D mask.

    Returns:
        ``[b, c or 1, t, L]`` float32: minus infinity where a key is hidden, else 0 or the additive mask.
    """
    if mask is not None and mask.ndim == 4:
        index = rows[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3])
        picked = mask.expand(len(rows), -1, -1, -1).gather(2, index)[..., :length]
        return _additive(~picked) if picked.dtype == torch.bool else picked.float()
    slots = torch.arange(length, device=rows.device)
    positions = (past + rows)[:, None, :, None]
    hidden = torch.zeros(len(rows), 1, rows.shape[1], length, dtype=torch.bool, device=rows.device)
    if causal:
        # From the number of cached tokens: None means lower-right to flash attention and upper-left to sdpa, and with
        # the keys that each is given both come to this.
        hidden = slots > positions
    if mask is not None:
        padding = ~nn.functional.pad(mask.bool(), (0, length - mask.shape[1]))
        hidden = hidden | padding[:, None, None]
    if window:
        hidden = hidden | (slots <= positions - window)
    return _additive(hidden)


def _additive(hidden: Tensor) -> Tensor:
    """Return minus infinity where true, else 0; adding it is faster than filling by a mask in every layer."""
    return torch.zeros(hidden.shape, device=hidden.device).masked_fill_(hidden, float("-inf"))


def norms(value: Tensor, heads: int, columns: Places) -> Tensor:
    """Return the norms of the values ``[k, L, *]`` in some columns for every head, ``[c, columns]``."""
    norms: Tensor = torch.linalg.vector_norm(value[:, columns].float(), dim=-1)
    return norms.repeat_interleave(heads // len(value), dim=0)


def shares(scores: Tensor, sinks: Tensor | None) -> Tensor:
    """Return the softmax of scores ``[c, t, L]``; a sink ``[c]`` is one more column, which takes its share."""
    if sinks is None:
        return torch.softmax(scores, dim=-1)
    sink = sinks.detach().float().reshape(-1, 1, 1).to(scores.device).expand(-1, scores.shape[1], 1)
    return torch.softmax(torch.cat([scores, sink], dim=-1), dim=-1)[..., :-1]


def picked(shares: Tensor, columns: Places, norms: Tensor | None, gone: int) -> Tensor:
    """Take columns out of rows ``[c, t, L]``, weighted by norms; keys that are gone have no share."""
    if not gone or isinstance(columns, slice):
        picked = shares[..., columns]
    else:
        picked = shares[..., columns.clamp(min=0)] * (columns >= 0)
    return picked if norms is None else picked * norms[:, None]


def check_supported(mask: Any, options: Mapping[str, Any]) -> None:
    """Refuse a call of a kernel whose rows cannot be computed beside it.

    Args:
        mask: What the kernel got as its mask.
        options: The remaining keyword arguments of the call.

    Raises:
        CaptureError: A paged cache, or a mask that is no tensor of two or four dimensions.
    """
    if options.get("cache") is not None:
        raise CaptureError("attention over a paged cache cannot be read; generate without continuous batching")
    if mask is not None and not (isinstance(mask, Tensor) and mask.ndim in (2, 4)):
        raise CaptureError(
            f"attention masks of type {type(mask).__name__} cannot be read; load the model with "
            "attn_implementation='sdpa'"
        )
