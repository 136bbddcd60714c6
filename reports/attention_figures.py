"""Attention of one phrase as the paper shows it: single maps (Figures 4, A6), the way from maps to masks (Figure 7).

Frames: maps are ``[m, c, h, w]`` (layers, heads, grid), pictures and masks in the image frame. A map's name ``(m,n)``
counts layers and heads from 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from flmm_plugin.records import Grounding
from flmm_plugin.reports.figures import (
    PlacedGrid,
    cluster_maps,
    heat_map,
    mask_layer,
    seen_by_grid,
    shaded,
    typeface,
)

_INK, _PAPER = (20, 20, 20), (255, 255, 255)
_GAP, _LINE = 6, 20


@dataclass(frozen=True)
class AttentionView:
    """One model's attention to a picture.

    Attributes:
        name: Of the model, as a label.
        maps: ``[m, c, h, w]``, >= 0.
        grid: Where the maps lie on the picture; None: they cover it whole.
    """

    name: str
    maps: npt.NDArray[np.floating[Any]]
    grid: PlacedGrid | None = None


def sharpest_maps(maps: npt.NDArray[np.floating[Any]], count: int) -> list[tuple[int, int]]:
    """``(layer, head)`` of the maps with the lowest entropy, the sharpest first.

    >>> maps = np.ones((2, 2, 4, 4)); maps[1, 0, 2, 2] = 50.0
    >>> sharpest_maps(maps, 1)
    [(1, 0)]
    """
    layers, heads = maps.shape[:2]
    flat = np.nan_to_num(np.asarray(maps, dtype=np.float64)).reshape(layers * heads, -1)
    share = flat / np.maximum(flat.sum(axis=1, keepdims=True), 1e-12)
    entropy = -(share * np.log(np.maximum(share, 1e-12))).sum(axis=1)
    # A map of nothing has no shape at all; it is not a sharp one.
    entropy[flat.sum(axis=1) == 0] = np.inf
    return [(int(at) // heads, int(at) % heads) for at in np.argsort(entropy, kind="stable")[:count]]


def compare_attention(
    views: Sequence[AttentionView],
    image: Image.Image,
    *,
    phrase: str = "",
    which: Sequence[tuple[int, int]] | None = None,
    count: int = 6,
    cell: int = 150,
) -> Image.Image:
    """One row per model: the picture as its grid sees it, the mean of all maps, then single maps named ``(m,n)``.

    Args:
        views: Models; one gives Figure 4, two give Figure A6.
        image: The original picture.
        phrase: Printed as title.
        which: ``(layer, head)`` of the maps to show; None: each model's sharpest. What a model has not is left empty.
        count: Single maps per model, without ``which``.
        cell: Longer side of one panel, pixels.

    Raises:
        ValueError: Maps without four axes, or no model.
    """
    if not views or any(view.maps.ndim != 4 for view in views):
        raise ValueError("give at least one model's maps, [layers, heads, h, w] each")
    rows = []
    for view in views:
        chosen = list(which) if which is not None else sharpest_maps(view.maps, count)
        seen = seen_by_grid(image, view.grid)
        size = _size(seen, cell)
        panels = [("picture", seen.resize(size, Image.Resampling.BICUBIC))]
        panels.append(("mean of all", heat_map(view.maps.mean(axis=(0, 1)), seen, size)))
        for layer, head in chosen:
            there = layer < view.maps.shape[0] and head < view.maps.shape[1]
            panels.append(
                (f"({layer},{head})", heat_map(view.maps[layer, head], seen, size) if there else _blank(size))
            )
        rows.append((view.name, panels))
    return _laid_out(rows, f"attention of \u201c{phrase}\u201d" if phrase else "")


def pipeline(
    image: Image.Image,
    view: AttentionView,
    grounding: Grounding,
    *,
    target: npt.NDArray[np.bool_] | None = None,
    clusters: int = 4,
    cell: int = 260,
) -> Image.Image:
    """Figure 7 for one phrase: clusters of all maps, the mask decoder's mask, the refined mask, the target if known.

    Args:
        image: The original picture.
        view: The attention of the phrase.
        grounding: What the heads made of it.
        target: ``bool[H, W]``.
        clusters: Of the K-means view.
        cell: Longer side of one panel, pixels.
    """
    labels = cluster_maps(view.maps, clusters)
    seen = seen_by_grid(image, view.grid)
    shades = shaded(labels / max(1, int(labels.max())), _size(seen, cell), Image.Resampling.NEAREST)
    panels = [("K-means of all maps", shades)]
    decoded = grounding.decoder_logits > 0
    for name, mask in (("mask decoder", decoded), ("mask refiner", grounding.mask), ("target", target)):
        if mask is not None:
            panels.append((name, _masked(image, grounding.phrase, mask, cell)))
    return _laid_out([(view.name, panels)], grounding.phrase)


def _masked(image: Image.Image, phrase: str, mask: npt.NDArray[np.bool_], cell: int) -> Image.Image:
    size = _size(image, cell)
    canvas = image.convert("RGBA").resize(size, Image.Resampling.BICUBIC)
    # Only the mask of this record is drawn.
    canvas.alpha_composite(mask_layer([Grounding.from_logits(phrase, np.where(mask, 1.0, -1.0))], size))
    return canvas.convert("RGB")


def _laid_out(rows: Sequence[tuple[str, Sequence[tuple[str, Image.Image]]]], title: str) -> Image.Image:
    letters = typeface(13)
    top = 2 * _LINE if title else _GAP
    heights = [_LINE + max(panel.height for _, panel in panels) + _LINE + _GAP for _, panels in rows]
    widths = [sum(panel.width + _GAP for _, panel in panels) + _GAP for _, panels in rows]
    sheet = Image.new("RGB", (max(widths), top + sum(heights)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((_GAP, _GAP), title, fill=_INK, font=typeface(16))
    for (name, panels), height in zip(rows, heights, strict=True):
        draw.text((_GAP, top), name, fill=_INK, font=letters)
        left = _GAP
        for label, panel in panels:
            sheet.paste(panel, (left, top + _LINE))
            draw.text((left, top + _LINE + panel.height + 2), label, fill=_INK, font=letters)
            left += panel.width + _GAP
        top += height
    return sheet


def _blank(size: tuple[int, int]) -> Image.Image:
    return Image.new("RGB", size, (225, 225, 225))


def _size(picture: Image.Image, side: int) -> tuple[int, int]:
    scale = side / max(picture.size)
    return max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
