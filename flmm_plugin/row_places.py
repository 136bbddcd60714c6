"""Say where the rows of a capture are read and written, and merge those that become one.

Shapes: b batch, t asked positions, n groups of them, l query length, L key length, m layers, c heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from flmm_plugin.errors import CaptureError
from flmm_plugin.softmax_rows import Places, rows_of_mask


class Store:
    """Answers of all layers, per batch item ``[t, m, ...]``, in memory that is taken once and written in place."""

    def __init__(self, items: int) -> None:
        self._values: list[Tensor | None] = [None] * items
        self._device: torch.device | None = None

    def room(
        self,
        item: int,
        rows: int,
        layers: int,
        shape: tuple[int, ...],
        like: Tensor,
        dtype: torch.dtype | None = None,
        fill: float = 0.0,
    ) -> Tensor:
        """Return where an item's answers go, ``fill`` at first; ``like`` gives device and dtype."""
        self._device = like.device
        values = self._values[item]
        if values is None:
            values = self._values[item] = like.new_full((rows, layers, *shape), fill, dtype=dtype)
        return values

    def get(self, item: int) -> Tensor:
        """Return an item's answers, on the device that wrote last."""
        values = self._values[item]
        if values is None:
            raise CaptureError("nothing was captured yet; run the model inside `with capture.active():` first")
        return values.to(self._device)


@dataclass(frozen=True, eq=False)
class Segments:
    """Rows that become one, as many as there are runs of the same length in groups of the same size.

    Attributes:
        rows: Where they are read, runs one after another.
        groups: The group of each run.
        length: Number of rows of a run, from 1 on.
        size: Rows of a whole group; more than `length` where it is read in pieces.
    """

    rows: Places
    groups: Places
    length: int
    size: int


class Merge:
    """Merging of the rows of one batch item: groups of rows that follow each other become one row each.

    Args:
        sizes: Number of rows of each group.
        how: ``mean`` or ``max`` over the rows of a group.
    """

    def __init__(self, sizes: Sequence[int], how: str) -> None:
        self.sizes = list(sizes)
        self.rows = sum(self.sizes)
        self._how = how
        #: What a group holds before any of its rows; rows of linear layers may all be negative.
        self.begin = 0.0 if how == "mean" else float("-inf")
        self._group_of = [group for group, size in enumerate(self.sizes) for _ in range(size)]

    def segments(self, chosen: Sequence[int], device: torch.device) -> list[Segments]:
        """Return what becomes of rows that are read together; ``chosen`` are their places among those asked for."""
        alike: dict[tuple[int, int], tuple[list[int], list[int]]] = {}
        first = 0
        for group, run in groupby(self._group_of[place] for place in chosen):
            length = len(list(run))
            rows, groups = alike.setdefault((length, self.sizes[group]), ([], []))
            rows += range(first, first + length)
            groups.append(group)
            first += length
        return [
            Segments(_places(torch.tensor(rows), device), _places(torch.tensor(groups), device), *key)
            for key, (rows, groups) in alike.items()
        ]

    def add(self, shares: Tensor, segments: Sequence[Segments], into: Tensor) -> None:
        """Merge rows ``[c, t, columns]`` into groups ``[n, c, columns]``, which hold what was read of them before."""
        for one in segments:
            runs = shares[:, one.rows].unflatten(1, (-1, one.length))
            read = runs.sum(dim=2).div_(one.size) if self._how == "mean" else runs.amax(dim=2)
            read = read.transpose(0, 1).to(into.device)
            if one.length < one.size:
                before = into[one.groups]
                read = before + read if self._how == "mean" else torch.maximum(before, read)
            into[one.groups] = read


@dataclass(frozen=True, eq=False)
class Hidden:
    """Hold what the rows of one batch item do not see.

    Attributes:
        first: The first key that is hidden from any of them.
        rows: What is added to the scores of it and all later keys, ``[c or 1, t, L - first]``.
    """

    first: int
    rows: Tensor


class Pass:
    """One forward pass: which asked rows are in it. The same for all of its layers, so it is found out once.

    Args:
        rows: Per batch item, the asked slots, on the CPU.
        columns: Per batch item, the slots of its image tokens, on the CPU.
        past: Number of tokens in the cache before the pass.
        length: Number of tokens in the pass, l.
    """

    def __init__(self, rows: Sequence[Tensor], columns: Sequence[Tensor], past: int, length: int) -> None:
        self.past = past
        self.length = length
        self._columns = columns
        self.chosen: list[Tensor] = []
        self.local: list[Tensor] = []
        for asked in rows:
            local = asked - past
            chosen = ((local >= 0) & (local < length)).nonzero().flatten()
            self.chosen.append(chosen)
            self.local.append(local[chosen])
        self.with_rows: set[int] = set()
        self.with_hidden: set[int] = set()
        self._places: dict[torch.device, list[ItemPlaces]] = {}
        self._masks: dict[tuple[Any, ...], tuple[Any, Hidden]] = {}

    def on(self, device: torch.device) -> list[ItemPlaces]:
        """Return the places of each batch item on a device; they are copied to it once."""
        places = self._places.get(device)
        if places is None:
            parts = zip(self.chosen, self.local, self._columns, strict=True)
            places = self._places[device] = [ItemPlaces(*part, device) for part in parts]
        return places

    def release(self) -> None:
        """Forget masks and indices on devices; a capture outlives its passes, of which decoding makes hundreds."""
        self._places.clear()
        self._masks.clear()

    def rows_of_mask(
        self,
        places: ItemPlaces,
        item: int,
        mask: Any,
        key_length: int,
        gone: int,
        module: nn.Module,
        options: Mapping[str, Any],
    ) -> Hidden:
        """Return what an item's rows do not see; layers that get the same mask share the answer."""
        causal = options.get("is_causal")
        causal = bool(getattr(module, "is_causal", True) if causal is None else causal)
        window = options.get("sliding_window")
        key = (places.device, item, id(mask), key_length, causal, window)
        if key not in self._masks:
            own = mask[item : item + 1] if mask is not None and len(mask) > 1 else mask
            local = self.local[item][None].to(places.device)
            rows = rows_of_mask(own, local, self.past - gone, key_length, causal=causal, window=window)[0]
            changed = rows.flatten(0, 1).ne(0).any(dim=0).nonzero().flatten()
            first = int(changed[0]) if len(changed) else key_length
            # The mask stays alive, or its id would be another's.
            self._masks[key] = (mask, Hidden(first, rows[..., first:].contiguous()))
        return self._masks[key][1]


class ItemPlaces:
    """Indices of a batch item's rows on one device: where each is read in a pass, and where its answer is written.

    Attributes:
        count: Number of its rows in the pass.
        chosen: Their places among those that it asked for.
        local: Their places in the pass.
        columns: Slots of its image tokens.
    """

    def __init__(self, chosen: Tensor, local: Tensor, columns: Tensor, device: torch.device) -> None:
        self.device = device
        self.count = len(chosen)
        self.chosen = _places(chosen, device)
        self.local = _places(local, device)
        self.columns = _places(columns, device)
        self._listed: list[int] = chosen.tolist()
        self._segments: dict[tuple[int, int], list[Segments]] = {}

    def read(self, start: int, end: int) -> Places:
        """Return the places in the pass of rows ``start`` to ``end``."""
        return _part(self.local, start, end)

    def written(self, start: int, end: int) -> Places:
        """Return the places of rows ``start`` to ``end`` among those that were asked for."""
        return _part(self.chosen, start, end)

    def segments(self, merge: Merge, start: int, end: int) -> list[Segments]:
        """Return how rows ``start`` to ``end`` are merged; the same for all layers."""
        if (start, end) not in self._segments:
            self._segments[start, end] = merge.segments(self._listed[start:end], self.device)
        return self._segments[start, end]


def _places(positions: Tensor, device: torch.device) -> Places:
    """Return positions on a device: a slice where each is the next of the one before."""
    if len(positions) == 0:
        return slice(0, 0)
    first = int(positions[0])
    if torch.equal(positions, torch.arange(first, first + len(positions))):
        return slice(first, first + len(positions))
    return positions.to(device)


def _part(places: Places, start: int, end: int) -> Places:
    return slice(places.start + start, places.start + end) if isinstance(places, slice) else places[start:end]
