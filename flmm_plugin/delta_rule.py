"""Compute the rows of linear attention: the weights with which a layer without a softmax adds up earlier values.

A linear layer keeps a state instead of keys, but its output is still a weighted sum, ``o_i = sum_{j<=i} w_ij v_j``. The
weights follow from queries, keys and gates alone:

- Gated delta rule (Gated DeltaNet, Kimi Delta Attention). The state goes from token to token by
  ``S_j = S_{j-1} diag(e^{g_j}) (I - b_j k_j k_j^T) + b_j v_j k_j^T`` and ``o_i = S_i q_i``. One walk backward over the
  keys gives row i: begin with ``u = q_i``; for j = i, i-1, ...: ``w_ij = b_j k_j . u``, then
  ``u = e^{g_j} (u - w_ij k_j)``.
- Decayed products (Mamba-2's SSD, lightning attention): ``w_ij = e^{g_{j+1} + ... + g_i} b_j (k_j . q_i)``.

The walk is made block by block. Inside a block the weights of all rows solve one triangular system (the WY form), so
that a block costs a few matrix products whatever the number of rows. Rows are signed and do not sum to 1.

Shapes: b batch, c heads, k key heads (c is a multiple), t rows, L keys, d key size, n keys of a block.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Keys of a block. A gate for every channel needs [n, n, d] numbers per head and block, one gate per head [n, n].
_BLOCK = 64
_BLOCK_OF_CHANNELS = 16


def delta_rule_rows(query: Tensor, key: Tensor, beta: Tensor, gate: Tensor, rows: Tensor) -> Tensor:
    """Compute the rows of a gated delta-rule layer.

    Args:
        query: Queries of the rows, normalised and scaled as the kernel does it, ``[b, c, t, d]`` float32.
        key: Keys, normalised as the kernel does it, ``[b, k, L, d]`` float32; those before the first wanted one may be
            left out, for the walk ends there.
        beta: Strength with which a token is written into the state, ``[b, c, L]`` float32.
        gate: Logarithm of the decay before a token is written, <= 0, ``[b, c, L]``, or ``[b, c, L, d]`` where each
            channel has its own.
        rows: Position of each row among the keys, ``[b, t]``, on the CPU; negative: before all of them.

    Returns:
        Weights of the keys, ``[b, c, t, L]``, signed; 0 for keys after the row.
    """
    batch, heads, count = query.shape[:3]
    weights = query.new_zeros(batch, heads, count, key.shape[2])
    block = _BLOCK if gate.ndim == 3 else _BLOCK_OF_CHANNELS
    gate = gate[..., None] if gate.ndim == 3 else gate
    walking = torch.zeros_like(query)
    end = int(rows.max()) + 1 if count else 0
    while end > 0:
        start = max(0, end - block)
        part = slice(start, end)
        now = _Block(key[:, :, part].repeat_interleave(heads // key.shape[1], dim=1), gate[:, :, part])
        begins = (rows >= start) & (rows < end)
        places: Tensor | None = None
        if bool(begins.any()):
            # A row enters the block at its own key; the others enter at the last one.
            places = torch.where(begins, rows - start, end - start - 1).to(query.device)
            walking = torch.where(begins.to(query.device)[:, None, :, None], query, walking)
        strength = beta[:, :, part, None]
        seen = strength * now.products(walking, places)
        found = torch.linalg.solve_triangular(strength * now.system, seen, upper=True, unitriangular=True)
        weights[..., part] = found.transpose(-1, -2)
        walking = now.leave(walking, places, found)
        end = start
    return weights


class _Block:
    """The keys of one block, and what they make of rows that walk over them.

    Args:
        key: Keys of the block, ``[b, c, n, d]``.
        gate: ``[b, c, n, 1]`` for heads that decay as a whole, ``[b, c, n, d]`` where each channel decays by itself.
    """

    def __init__(self, key: Tensor, gate: Tensor) -> None:
        self._key = key
        # Gates of the keys that come later in the block, summed; then of all keys of the block.
        self._after = gate.flip(2).cumsum(2).flip(2) - gate
        self._all = self._after[:, :, :1] + gate[:, :, :1]
        hidden = torch.ones(key.shape[2], key.shape[2], dtype=torch.bool, device=key.device).tril()
        #: What each key takes from the weights of the later ones, ``[b, c, n, n]``, 0 on and below the diagonal.
        self.system = self._decayed(key, self._after, hidden)

    def products(self, walking: Tensor, places: Tensor | None) -> Tensor:
        """Multiply keys and walking rows as if no later key of the block had been written, ``[b, c, n, t]``.

        Args:
            walking: Rows on their way, ``[b, c, t, d]``.
            places: Key at which each row enters the block, ``[b, t]``; None: all of them at the last one.
        """
        if places is None:
            return (self._key * self._after.exp()) @ walking.transpose(-1, -2)
        later = torch.arange(self._key.shape[2], device=places.device)[:, None] > places[:, None, None]
        return self._decayed(walking, self._at(places), later)

    def leave(self, walking: Tensor, places: Tensor | None, weights: Tensor) -> Tensor:
        """Return the rows as they walk on to the keys before the block, ``[b, c, t, d]``."""
        left = self._all if places is None else self._all - self._at(places)
        taken = self._key * (self._all - self._after).exp()
        return walking * left.exp() - weights.transpose(-1, -2) @ taken

    def _decayed(self, other: Tensor, at: Tensor, hidden: Tensor) -> Tensor:
        """Multiply each key with rows or keys at other places, less what is lost between; 0 where hidden."""
        decay = self._after[:, :, :, None] - at[:, :, None]
        decay = decay.masked_fill_(hidden[..., None], float("-inf")).exp_()
        if decay.shape[-1] == 1:
            return (self._key @ other.transpose(-1, -2)) * decay[..., 0]
        return torch.einsum("bcjd,bctd,bcjtd->bcjt", self._key, other, decay)

    def _at(self, places: Tensor) -> Tensor:
        batch, heads, _, size = self._after.shape
        return self._after.gather(2, places[:, None, :, None].expand(batch, heads, -1, size))


def decayed_rows(query: Tensor, key: Tensor, beta: Tensor, gate: Tensor, rows: Tensor) -> Tensor:
    """Compute the rows of a layer that adds keys and values to a decaying state: Mamba-2, lightning attention.

    Args:
        query: Queries of the rows (Mamba-2: C), ``[b, c, t, d]`` float32.
        key: Keys (Mamba-2: B), ``[b, k, L, d]`` float32; those before the first wanted one may be left out.
        beta: Factor of each token (Mamba-2: its time step), ``[b, c, L]`` float32.
        gate: Logarithm of the decay before a token is added, <= 0, ``[b, c, L]``.
        rows: Position of each row among the keys, ``[b, t]``, on the CPU; negative: before all of them.

    Returns:
        Weights of the keys, ``[b, c, t, L]``, signed; 0 for keys after the row.
    """
    batch, heads, count, size = query.shape
    groups = key.shape[1]
    grouped = query.reshape(batch, groups, heads // groups * count, size)
    products = (grouped @ key.transpose(-1, -2)).reshape(batch, heads, count, -1)
    # Summed in float64: near keys are told apart by small differences of large sums.
    summed = gate.double().cumsum(-1)
    places = rows.to(query.device)
    here = summed.gather(2, places.clamp(min=0)[:, None].expand(-1, heads, -1))
    decay = (here[..., None] - summed[:, :, None]).float()
    later = torch.arange(key.shape[2], device=query.device) > places[:, None, :, None]
    return products * beta[:, :, None] * decay.masked_fill_(later, float("-inf")).exp_()
