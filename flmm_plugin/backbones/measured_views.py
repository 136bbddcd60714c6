"""Find out which part of a picture every image token of an unknown model shows, by showing it pictures.

First the processor: of a black, a white and two ramp pictures it makes inputs in which every number says whether it
shows the picture, and which place of it. Numbers that go into one patch are a *unit*; units of one size lie on a
*lattice*, whose origin and step along each axis follow from the ramps. It plays no role how units are arranged in the
inputs: one view, tiles, crops, or flat patches in any order.

Then the model: it is shown inputs that are white in the rows (columns) of units up to some place and black behind.
The first and the last place at which a token changes say which rows (columns) it shows. The vision tower runs without
mixing meanwhile (`flmm_plugin.backbones.locality`). Tokens of one lattice must fill a grid, each cell as many units
high and wide as the others; a query-based projector, whose tokens each show everything, fails that.

What the model does depends on the shapes of its inputs alone, so it is asked once for each; the processor is asked
once for each size of picture.

Shapes: u units, h x w image-token grid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from flmm_plugin.backbones.views import Layout
from flmm_plugin.errors import BackboneUnsupported
from flmm_plugin.geometry import ImageGrid

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

# Units whose sizes differ by less lie on one lattice.
_ALIKE = 0.15
# Places along an axis at which the model is asked, at most.
_PLACES = 96
# A change is one if it is larger than this share of the token's largest; where a tower mixes in ways that cannot be
# taken out of it (convolutions), if it is larger than the second.
_CHANGE, _MIXED_CHANGE = 1e-3, 0.35

#: Inputs of a chat -> what the language model gets, ``[l, d]``.
Embed = Callable[[Mapping[str, Tensor]], Tensor]


@dataclass(frozen=True)
class Axis:
    """Rows or columns of a lattice in original pixels.

    Attributes:
        start: Position of the first edge.
        step: Pixels from edge to edge, > 0.
        count: Rows or columns.
    """

    start: float
    step: float
    count: int

    def centres(self) -> Floats:
        """Positions of the middles, ``[count]``."""
        return np.asarray(self.start + self.step * (np.arange(self.count) + 0.5), dtype=np.float64)


@dataclass(frozen=True)
class Lattice:
    """Units of one size.

    Attributes:
        rows: Its rows on the picture.
        columns: Its columns on the picture.
        units: Which units are on it, ``[v]``.
        row: The row of each, ``[v]``.
        column: The column of each, ``[v]``.
    """

    rows: Axis
    columns: Axis
    units: Integers
    row: Integers
    column: Integers

    def moved(self, units: int) -> Lattice:
        """The same lattice, its units counted from another one on."""
        return replace(self, units=self.units + units)


@dataclass(frozen=True)
class View:
    """Image tokens of one lattice that fill a grid, whatever the picture's size.

    Attributes:
        lattice: Number of the lattice among those that are shown, from 0.
        block: Units that a cell is high and wide.
        first: Row and column of the lattice at which the grid begins.
        cells: Rows and columns of the grid.
        order: Place of each cell's token in the run of placeholders, ``[h * w]``.
    """

    lattice: int
    block: tuple[int, int]
    first: tuple[int, int]
    cells: tuple[int, int]
    order: Tensor


class Shown:
    """Show a processor pictures of one size, and find out which place every unit of its inputs shows.

    Args:
        process: Picture -> inputs of a chat with that picture.
        height: Rows of the picture, from 1 on.
        width: Columns of the picture, from 1 on.
        patch: Input pixels along the side of a patch, where inputs have rows and columns of pixels.
        name: The model as the user called it.

    Raises:
        BackboneUnsupported: It shows nothing, or moves pixels otherwise than along each axis.
    """

    def __init__(
        self, process: Callable[[Image.Image], Mapping[str, Tensor]], height: int, width: int, patch: int, name: str
    ) -> None:
        self.height = height
        self.width = width
        self._patch = patch
        self._name = name
        down = np.linspace(0, 255, height)[:, None] if height > 1 else np.zeros((1, 1))
        across = np.linspace(0, 255, width)[None, :] if width > 1 else np.zeros((1, 1))
        flat = np.zeros((height, width))
        made = [process(_grey(pixels)) for pixels in (flat, flat + 255, flat + down, flat + across)]
        self.black: dict[str, Any] = dict(made[0])
        self.white: dict[str, Any] = dict(made[1])
        self.names = [name for name in self.black if self._shows(name)]
        if not self.names:
            raise BackboneUnsupported(
                not_recovered(name, "its processor makes the same of a black and a white picture, or no pixels at all")
            )
        self._counts: list[int] = []
        self.lattices: list[Lattice] = []
        for one in self.names:
            rows, columns = self._field(one, made[2][one], height), self._field(one, made[3][one], width)
            first = sum(self._counts)
            views = self._views(self.black[one])
            if views is None:
                numbers = self._numbers(self.black[one])
                self._counts.append(rows.size // numbers)
                found = self._of_patches(rows.reshape(-1, numbers), columns.reshape(-1, numbers))
            else:
                self._counts.append(int(np.prod(views)))
                found = self._of_views(rows, columns, views)
            self.lattices += [lattice.moved(first) for lattice in found]
        self.lattices.sort(key=lambda lattice: -lattice.rows.step * lattice.columns.step)

    def _shows(self, name: str) -> bool:
        black, white = self.black[name], self.white[name]
        if not isinstance(black, Tensor) or not black.is_floating_point() or black.shape != white.shape:
            return False
        return not torch.equal(black, white)

    def _views(self, values: Tensor) -> tuple[int, int, int] | None:
        """Views, and the rows and columns of units in each; None for patches one after another."""
        if values.ndim < 4:
            return None
        rows, columns = (int(side) // self._patch for side in values.shape[-2:])
        views = values[..., 0, 0, 0].numel()
        # Many views of one patch each are patches; one such view, or a view of one row, shows a tiny or narrow picture.
        is_view = min(rows, columns) > 0 and (max(rows, columns) > 1 or views == 1)
        return (views, rows, columns) if is_view else None

    def _numbers(self, patches: Tensor) -> int:
        """Numbers of a patch: the last dimension, or the last three where they are its channels, rows and columns."""
        square = patches.ndim == 4 and patches.shape[-2:] == (self._patch, self._patch)
        return int(np.prod(patches.shape[1:] if square else patches.shape[-1:]))

    def _field(self, name: str, ramp: Tensor, pixels: int) -> Floats:
        """Find which row (column) of the picture each number of an input shows; NaN where it shows none."""
        black = self.black[name].double().cpu().numpy()
        contrast = self.white[name].double().cpu().numpy() - black
        shows = np.abs(contrast) > 0.8 * np.abs(contrast).max()
        share = (ramp.double().cpu().numpy() - black) / np.where(shows, contrast, 1.0)
        found: Floats = np.where(shows, share * (pixels - 1) + 0.5, np.nan)
        return found

    def _of_views(self, rows: Floats, columns: Floats, views: tuple[int, int, int]) -> list[Lattice]:
        """Lattices of views: those of one scale lie beside each other on one."""
        height, width = rows.shape[-2:]
        channels = rows.shape[-3]
        downs = rows.reshape(-1, channels, height, width)
        acrosses = columns.reshape(-1, channels, height, width)
        lines: dict[int, tuple[float, float, float, float]] = {}
        for index, (down, across) in enumerate(zip(downs, acrosses, strict=True)):
            seen: Bools = np.asarray(~np.isnan(down).all(axis=0))
            if not seen.any():
                continue
            y = _line(down, seen, self.height, self._name, "rows")
            x = _line(across.swapaxes(-1, -2), seen.T, self.width, self._name, "columns")
            lines[index] = (y[0], x[0], y[1] * self._patch, x[1] * self._patch)
        left = list(lines)
        found = []
        while left:
            first = np.array(lines[left[0]][2:])
            alike = [index for index in left if (np.abs(np.array(lines[index][2:]) / first - 1) < _ALIKE).all()]
            left = [index for index in left if index not in alike]
            axes = [
                _tiled(
                    np.array([lines[index][axis] for index in alike]),
                    float(np.median([lines[index][axis + 2] for index in alike])),
                    views[axis + 1],
                )
                for axis in (0, 1)
            ]
            units, row, column = [], [], []
            for place, index in enumerate(alike):
                patch = self._patch
                seen = ~np.isnan(downs[index]).all(axis=0)
                cut = seen[: views[1] * patch, : views[2] * patch].reshape(views[1], patch, views[2], patch)
                unit_row, unit_column = np.nonzero(cut.any(axis=(1, 3)))
                units.append(index * views[1] * views[2] + unit_row * views[2] + unit_column)
                row.append(unit_row + axes[0][2][place])
                column.append(unit_column + axes[1][2][place])
            found.append(_lattice(axes, np.concatenate(units), np.concatenate(row), np.concatenate(column)))
        return found

    def _of_patches(self, rows: Floats, columns: Floats) -> list[Lattice]:
        """Lattices of patches ``[patches, numbers]`` in any order: those of one size lie on one."""
        seen = (~np.isnan(rows)).mean(axis=1)
        shown = np.flatnonzero(seen > 0)
        middle = np.stack([np.nanmean(rows[shown], axis=1), np.nanmean(columns[shown], axis=1)], axis=1)
        # A patch's numbers are spread evenly over its side.
        size = np.stack([np.nanstd(rows[shown], axis=1), np.nanstd(columns[shown], axis=1)], axis=1) * 12**0.5
        limits = np.array([self.height, self.width])
        whole = seen[shown] > 0.999
        inner = whole & (middle - size / 2 > 0.6).all(axis=1) & (middle + size / 2 < limits - 0.6).all(axis=1)
        sure = next((some for some in (inner, whole) if some.any()), ~whole)
        found: list[Lattice] = []
        left = np.ones(len(shown), dtype=bool)
        while left.any():
            usable = left & sure if (left & sure).any() else left
            sizes = np.maximum(size[usable], 1e-3)
            smallest = sizes[sizes.prod(axis=1).argmin()]
            members = usable & (np.abs(size / smallest - 1) < _ALIKE).all(axis=1)
            typical = np.median(size[members], axis=0)
            members = usable & (np.abs(size / typical - 1) < _ALIKE).all(axis=1)
            axes = [_spaced(middle[members, axis], typical[axis]) for axis in (0, 1)]
            # Patches at the rim or half in the padding show less than their size: they lie where the lattice goes on.
            on = members | (left & ~sure & (size < typical * (1 + _ALIKE)).all(axis=1))
            index = [
                np.rint((middle[on, axis] - axes[axis][0]) / axes[axis][1] - 0.5).astype(np.int64) for axis in (0, 1)
            ]
            found.append(_lattice(axes, shown[on], *index))
            left &= ~on
        return found

    def inputs(self, lit: Integers) -> dict[str, Tensor]:
        """Inputs in which these units are white and all others black."""
        chosen = torch.zeros(sum(self._counts), dtype=torch.bool)
        chosen[torch.from_numpy(lit)] = True
        made = dict(self.black)
        for name, part in zip(self.names, chosen.split(self._counts), strict=True):
            black, white = self.black[name], self.white[name]
            where = torch.zeros(black.shape, dtype=torch.bool)
            views = self._views(black)
            if views is not None:
                cells = part.reshape(-1, 1, *views[1:])
                cells = cells.repeat_interleave(self._patch, -2).repeat_interleave(self._patch, -1)
                flat = where.flatten(0, -4)
                flat[..., : cells.shape[-2], : cells.shape[-1]] = cells
            else:
                where.reshape(-1, self._numbers(black))[:] = part[:, None]
            made[name] = torch.where(where.to(black.device), white, black)
        return made

    @property
    def key(self) -> tuple[Any, ...]:
        """Name what the model's answer depends on."""
        shapes = tuple(tuple(self.black[name].shape) for name in self.names)
        return (
            shapes,
            tuple((one.rows.count, one.columns.count) for one in self.lattices),
            self.black["input_ids"].shape,
        )


def _grey(values: Floats) -> Image.Image:
    return Image.fromarray(np.repeat(np.rint(values).astype(np.uint8)[..., None], 3, axis=2))


def _lattice(axes: Sequence[tuple[Any, ...]], units: Integers, row: Integers, column: Integers) -> Lattice:
    """Units at rows and columns of two axes, which each begin with a first edge and a step."""
    lines = []
    for (start, step, *_), index in zip(axes, (row, column), strict=True):
        first = int(index.min())
        lines.append(Axis(start + step * first, step, int(index.max()) - first + 1))
    return Lattice(lines[0], lines[1], units, row - row.min(), column - column.min())


def _line(values: Floats, seen: npt.NDArray[np.bool_], pixels: int, name: str, what: str) -> tuple[float, float]:
    """Original position of the first edge of a view, and original pixels per input pixel, along one axis.

    Args:
        values: Original positions, ``[channels, along, across]``.
        seen: Whether an input pixel shows picture rather than padding, ``[along, across]``.
        pixels: Original pixels along the axis.
        name: The model as the user called it.
        what: Rows or columns, for messages.
    """
    shown = np.flatnonzero(seen.any(axis=1))
    first, last = int(shown[0]), int(shown[-1])
    middle = np.nanmedian(values[:, shown], axis=(0, 2))
    low, high = np.nanmin(values[:, shown], axis=(0, 2)), np.nanmax(values[:, shown], axis=(0, 2))
    # Beyond the middle of the first and the last original pixel the resampling filter repeats them.
    inner = (middle > 0.75 + pixels / 512) & (middle < pixels - 0.75 - pixels / 512)
    if inner.sum() >= 8:
        step, start = np.polyfit(shown[inner] + 0.5, middle[inner], 1)
        off = float(np.abs(middle[inner] - (step * (shown[inner] + 0.5) + start)).max())
    else:
        # Too few original pixels for a line: all of them are in view, from the first input pixel to the last.
        step, off = pixels / (last + 1 - first), 0.0
        start = -first * step
    # Ramps have 256 steps; resampling smears by about an input pixel.
    tolerance = 2 + pixels / 128 + abs(step)
    spread = float((high - low).max())
    if step <= 0 or off > tolerance or spread > 2 * tolerance:
        raise BackboneUnsupported(
            not_recovered(
                name,
                f"its image processor does not move {what} by one straight line (up to {max(off, spread):.0f} original "
                "pixels off): it mirrors, turns or cuts pictures",
            )
        )
    return float(start), float(step)


def _tiled(starts: Floats, step: float, count: int) -> tuple[float, float, Integers]:
    """First edge, step, and the place of each view's first unit, of views beside each other along one axis.

    Args:
        starts: First edge of each view.
        step: Original pixels per unit, > 0.
        count: Units of a view along the axis.
    """
    ordered = np.sort(starts)
    tiles = [part.mean() for part in np.split(ordered, np.flatnonzero(np.diff(ordered) > 0.4 * step) + 1)]
    places = [0]
    for pitch in np.diff(tiles) / step:
        # A view that whole patches do not fill: what is left over is shared out among them, as models do.
        places.append(places[-1] + (count if count - 0.5 < pitch < count + 1 else max(1, round(pitch))))
    start = float(tiles[0])
    if len(tiles) > 1:
        slope, start = (float(one) for one in np.polyfit(places, tiles, 1))
        step = slope
    nearest = np.abs(starts[:, None] - np.array(tiles)[None]).argmin(axis=1)
    return start, step, np.array(places)[nearest]


def _spaced(middles: Floats, size: float) -> tuple[float, float]:
    """First edge and step of patches along one axis, from their middles."""
    ordered = np.sort(middles)
    rows = np.array([part.mean() for part in np.split(ordered, np.flatnonzero(np.diff(ordered) > 0.4 * size) + 1)])
    if len(rows) == 1:
        return float(rows[0] - size / 2), float(size)
    gaps = np.diff(rows)
    near = gaps[gaps < 1.5 * size]
    step = float(np.median(near)) if len(near) else float(size)
    index = np.concatenate([[0], np.cumsum(np.rint(gaps / step))])
    slope, intercept = (float(one) for one in np.polyfit(index, rows, 1))
    return intercept - slope / 2, slope


@dataclass(frozen=True)
class Run:
    """Say how a model lays pictures of one kind of input out among its placeholders.

    Attributes:
        ids: Token ids of the placeholders.
        count: Number of placeholders of a picture.
        views: Its views, from the coarsest to the finest.
    """

    ids: frozenset[int]
    count: int
    views: tuple[View, ...]

    def layout(self, shown: Shown, views: int) -> Layout:
        """The run of a picture of one size, in so many views (1 or 2): the finest, and before it the coarsest."""
        kept = self.views[-1:] if views == 1 else (self.views[0], self.views[-1])
        grids = []
        for view in kept:
            lattice = shown.lattices[view.lattice]
            scale_y, scale_x = lattice.rows.step * view.block[0], lattice.columns.step * view.block[1]
            top = lattice.rows.start + lattice.rows.step * view.first[0]
            left = lattice.columns.start + lattice.columns.step * view.first[1]
            grids.append(ImageGrid(*view.cells, scale_y, scale_x, top, left, shown.height, shown.width))
        order = torch.cat([view.order for view in kept])
        return Layout(self.count, order, grids[-1], tuple(grids[:-1]))


class Probe:
    """Ask a model which units each token shows.

    Args:
        shown: What its processor makes of a picture.
        embed: What its language model gets for such inputs.
        name: The model as the user called it.
        copies: How many times the picture is in the chat; the first one's run is described.
    """

    def __init__(self, shown: Shown, embed: Embed, name: str, copies: int = 1) -> None:
        self._shown = shown
        self._embed = embed
        self._name = name
        self._copies = copies

    def run(self) -> Run:
        """Light up places and see which tokens change.

        Raises:
            BackboneUnsupported: No token changes, or tokens do not fill grids.
        """
        shown = self._shown
        ids = shown.black["input_ids"][0].tolist()
        every = np.concatenate([one.units for one in shown.lattices])
        whole = self._change(every, self._black)
        tokens = np.flatnonzero(whole > _CHANGE * whole.max()) if whole.max() > 0 else np.zeros(0, dtype=np.int64)
        if len(tokens) == 0:
            raise BackboneUnsupported(
                not_recovered(self._name, "no token of its language model's sequence shows the picture")
            )
        placeholders = frozenset(int(ids[token]) for token in tokens)
        run = np.array([slot for slot, token in enumerate(ids) if int(token) in placeholders])
        reached = np.stack([self._change(one.units, self._black)[tokens] for one in shown.lattices])
        reached = reached > _CHANGE * reached.max(axis=0)
        spans = [self._spans(axis, tokens) for axis in (0, 1)]
        views = []
        for index, lattice in enumerate(shown.lattices):
            here = reached[index] & (reached[:index].sum(axis=0) == 0)
            if here.any():
                found = self._view(index, lattice, tokens[here], [axis[here] for axis in spans], run)
                views.append(found)
        views.sort(key=lambda view: view.cells[0] * view.cells[1])
        return Run(placeholders, len(run) // self._copies, tuple(views))

    @cached_property
    def _black(self) -> Tensor:
        return self._embed(self._shown.black)

    def _change(self, lit: Integers, before: Tensor) -> Floats:
        """Measure how much each token changes, ``[l]``."""
        after = self._embed(self._shown.inputs(lit))
        return np.asarray((after - before).float().norm(dim=-1).double().cpu().numpy())

    def _spans(self, axis: int, tokens: Integers) -> Floats:
        """Per token, the first and the last place along an axis at which it changes, in original pixels, ``[k, 4]``.

        Of each, the interval in which the middle of the row of units lies.
        """
        lines = [one.rows if axis == 0 else one.columns for one in self._shown.lattices]
        edges = np.concatenate([line.start + line.step * np.arange(1, line.count + 1) for line in lines])
        places = _apart(np.sort(edges), 0.3 * min(line.step for line in lines))
        before, changes = self._black, []
        for place in places:
            lit = [
                one.units[line.centres()[one.row if axis == 0 else one.column] < place]
                for one, line in zip(self._shown.lattices, lines, strict=True)
            ]
            after = self._embed(self._shown.inputs(np.concatenate(lit)))
            changes.append((after - before).float().norm(dim=-1).double().cpu().numpy()[tokens])
            before = after
        size = np.stack(changes)  # [places, k]
        share = size / np.maximum(size.max(axis=0), 1e-30)
        changed = share > _CHANGE
        if len(tokens) > 4 and np.median(changed.sum(axis=0)) > 0.5 * len(places) > 1:
            changed = share > _MIXED_CHANGE
        first = changed.argmax(axis=0)
        last = len(places) - 1 - changed[::-1].argmax(axis=0)
        bounds = np.concatenate([[min(line.start for line in lines) - 1], places])
        return np.stack([bounds[first], bounds[first + 1], bounds[last], bounds[last + 1]], axis=1)

    def _view(self, index: int, lattice: Lattice, tokens: Integers, spans: Sequence[Floats], run: Integers) -> View:
        """The grid that tokens of one lattice fill."""
        starts, blocks, firsts, cells = [], [], [], []
        for span, line in zip(spans, (lattice.rows, lattice.columns), strict=True):
            middles = line.centres()
            first = np.searchsorted(middles, span[:, 0], side="left")
            last = np.searchsorted(middles, span[:, 3], side="left") - 1
            block = int(np.median(last - first + 1))
            lowest = int(first.min())
            if block < 1:
                raise BackboneUnsupported(not_recovered(self._name, "its image tokens show less than a patch"))
            # At the rim a cell may begin outside the picture: cells are counted from where they end.
            phase = int(np.median((last + 1) % block))
            place = (last - phase) // block
            lowest = int(place.min())
            starts.append(place - lowest)
            blocks.append(block)
            firsts.append(lowest * block + phase)
            cells.append(int(place.max()) - lowest + 1)
        flat = starts[0] * cells[1] + starts[1]
        places = {int(slot): rank for rank, slot in enumerate(run)}
        order = np.full(cells[0] * cells[1], -1, dtype=np.int64)
        for cell, token in zip(flat[::-1], tokens[::-1], strict=True):
            order[cell] = places[int(token)]
        if (order < 0).any() or (cells == [1, 1] and len(tokens) > 1):
            why = f"its {len(tokens)} image tokens are not the cells of a grid ({cells[0]} x {cells[1]}, each of "
            why += f"{blocks[0]} x {blocks[1]} patches); a query-based projector?"
            raise BackboneUnsupported(not_recovered(self._name, why))
        return View(
            index, (blocks[0], blocks[1]), (firsts[0], firsts[1]), (cells[0], cells[1]), torch.from_numpy(order)
        )


def _apart(ordered: Floats, least: float) -> Floats:
    """Places of which none is nearer than this to the one before; the last one stays."""
    kept = [float(ordered[0])]
    for place in ordered[1:]:
        if place - kept[-1] >= least:
            kept.append(float(place))
        else:
            kept[-1] = float(place)
    while len(kept) > _PLACES:
        kept = kept[1::2] if len(kept) % 2 == 0 else kept[::2]
    return np.array(kept)


def not_recovered(name: str, why: str) -> str:
    """The message for a model whose grid stays unknown, and what to do about it."""
    return (
        f"how the image tokens of {name} lie on a picture could not be recovered: {why}. It needs a file of its own "
        "(docs/add-a-backbone.md); without heads it can chat under lmms-eval's own model names"
    )
