"""Draw the attention of one phrase: all maps on a sheet, single maps (Figures 4, A6), from maps to masks (Figure 7).

Frames: maps are ``[m, c, h, w]`` (layers, heads, grid), images and masks in the image frame; the grid says which part
of the image its cells cover. A map's name ``(m,n)`` counts layers and heads from 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from flmm_plugin.figures import INK, PAPER, NamedMask, mask_layer, typeface
from flmm_plugin.records import Grounding

if TYPE_CHECKING:
    from flmm_plugin.geometry import ImageGrid

Maps = npt.NDArray[np.floating[Any]]

_GREY, _EMPTY = (128, 128, 128), (225, 225, 225)
_GAP, _LINE = 6, 20
_Panels = list[tuple[str, Image.Image]]


@dataclass(frozen=True)
class AttentionView:
    """One model's attention to an image.

    Attributes:
        maps: ``[m, c, h, w]``, >= 0.
        grid: Where the maps lie on the image; None: they cover all of it.
    """

    name: str
    maps: Maps
    grid: ImageGrid | None = None


def sharpest_maps(maps: Maps, count: int) -> list[tuple[int, int]]:
    """Return ``(layer, head)`` of the maps with the lowest entropy, the sharpest first.

    >>> maps = np.ones((2, 2, 4, 4)); maps[1, 0, 2, 2] = 50.0
    >>> sharpest_maps(maps, 1)
    [(1, 0)]
    """
    layers, heads = maps.shape[:2]
    flat = np.nan_to_num(np.asarray(maps, dtype=np.float64)).reshape(layers * heads, -1)
    share = flat / np.maximum(flat.sum(axis=1, keepdims=True), 1e-12)
    entropy = -(share * np.log(np.maximum(share, 1e-12))).sum(axis=1)
    # An empty map has no shape at all; it is not a sharp one.
    entropy[flat.sum(axis=1) == 0] = np.inf
    return [(int(at) // heads, int(at) % heads) for at in np.argsort(entropy, kind="stable")[:count]]


def contact_sheet(
    maps: Maps,
    image: Image.Image,
    grid: ImageGrid | None = None,
    *,
    phrase: str = "",
    clusters: int = 4,
    cell: int = 72,
) -> Image.Image:
    """Return every attention map of a phrase on one sheet: image, mean and clusters above, one row per layer below.

    Args:
        maps: ``[m, c, h, w]``, >= 0: layers, heads, grid frame.
        image: Image as the model was given it, in original pixels.
        grid: Where the maps lie on it; None: they cover all of it.
        phrase: Phrase whose tokens were read, for the title.
        clusters: Number of clusters in the K-means view of all maps together (the paper's Figure 7).
        cell: Longer side of one small map in pixels.

    Raises:
        ValueError: ``maps`` has not four axes.
    """
    if maps.ndim != 4:
        raise ValueError(f"maps are [layers, heads, h, w], got shape {maps.shape}")
    layers, heads, rows, columns = maps.shape
    small = _fitted((columns, rows), cell)
    large = (small[0] * 3, small[1] * 3)
    seen = seen_by_grid(image, grid)
    labels = cluster_maps(maps, clusters)
    ((layer, _),) = sharpest_maps(maps.mean(axis=1, keepdims=True), 1)
    tops: _Panels = [
        ("picture", seen.resize(large, Image.Resampling.BICUBIC)),
        ("mean of all", heat_map(maps.mean(axis=(0, 1)), seen, large)),
        (f"K-means, {int(labels.max()) + 1} clusters", cluster_view(labels, large)),
        (f"layer {layer}, the sharpest", heat_map(maps[layer].mean(axis=0), seen, large)),
    ]
    font, gap, margin = typeface(13), 4, 34
    top = 26 if phrase else 6
    start = top + large[1] + 24 + 20
    width = max(margin + heads * (small[0] + gap), len(tops) * (large[0] + gap) + gap)
    sheet = Image.new("RGB", (width, start + layers * (small[1] + gap) + gap), PAPER)
    draw = ImageDraw.Draw(sheet)
    if phrase:
        draw.text((gap, 5), f"attention of \u201c{phrase}\u201d", fill=INK, font=typeface(15))
    _paste_panels(sheet, tops, top, gap)
    for head in range(heads):
        draw.text((margin + head * (small[0] + gap), start - 18), f"h{head}", fill=_GREY, font=font)
    for layer in range(layers):
        y = start + layer * (small[1] + gap)
        draw.text((4, y + small[1] // 2 - 8), f"L{layer}", fill=_GREY, font=font)
        for head in range(heads):
            sheet.paste(heat_map(maps[layer, head], None, small), (margin + head * (small[0] + gap), y))
    return sheet


def compare_attention(
    views: Sequence[AttentionView],
    image: Image.Image,
    *,
    phrase: str = "",
    which: Sequence[tuple[int, int]] | None = None,
    count: int = 6,
    cell: int = 150,
) -> Image.Image:
    """Return one row per model: the image as its grid sees it, the mean of all maps, then single maps ``(m,n)``.

    Args:
        views: Models; one gives Figure 4, two give Figure A6.
        image: Image as the model was given it, in original pixels.
        phrase: Phrase whose tokens were read, for the title.
        which: ``(layer, head)`` of the maps to show; None: each model's sharpest. A map that a model lacks is empty.
        count: Number of single maps per model, without ``which``.
        cell: Longer side of one panel, pixels.

    Raises:
        ValueError: Maps without four axes, or no model.
    """
    if not views or any(view.maps.ndim != 4 for view in views):
        raise ValueError("give at least one model's maps, [layers, heads, h, w] each")
    rows = []
    for view in views:
        chosen = sharpest_maps(view.maps, count) if which is None else which
        seen = seen_by_grid(image, view.grid)
        size = _fitted(seen.size, cell)
        panels = [("picture", seen.resize(size, Image.Resampling.BICUBIC))]
        panels.append(("mean of all", heat_map(view.maps.mean(axis=(0, 1)), seen, size)))
        for layer, head in chosen:
            known = layer < view.maps.shape[0] and head < view.maps.shape[1]
            shown = heat_map(view.maps[layer, head], seen, size) if known else Image.new("RGB", size, _EMPTY)
            panels.append((f"({layer},{head})", shown))
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
    """Return Figure 7 for one phrase: clusters of all maps, mask decoder, mask refiner, and the target if known.

    Args:
        image: Image as the model was given it, in original pixels.
        view: Attention maps of the phrase, named by their model.
        grounding: Masks that the heads made of it.
        target: True mask, ``bool[H, W]``, if it is known.
        clusters: Number of clusters in the K-means view.
        cell: Longer side of one panel, pixels.
    """
    size = _fitted(seen_by_grid(image, view.grid).size, cell)
    panels = [("K-means of all maps", cluster_view(cluster_maps(view.maps, clusters), size))]
    decoded = grounding.decoder_logits > 0
    for name, mask in (("mask decoder", decoded), ("mask refiner", grounding.mask), ("target", target)):
        if mask is not None:
            size = _fitted(image.size, cell)
            canvas = image.convert("RGBA").resize(size, Image.Resampling.BICUBIC)
            canvas.alpha_composite(mask_layer([NamedMask(grounding.phrase, mask)], size))
            panels.append((name, canvas.convert("RGB")))
    return _laid_out([(view.name, panels)], grounding.phrase)


def cluster_maps(maps: Maps, clusters: int = 4, seed: int = 0) -> npt.NDArray[np.int64]:
    """Return K-means labels of grid cells, each described by its value in every map: ``[h, w]``, 0 = least attended.

    Args:
        maps: ``[..., h, w]``, >= 0; each map is scaled to sum 1 first, so that a loud head does not decide alone.
        clusters: Largest number of clusters; fewer where cells do not differ.
        seed: Seed of the initial centres.
    """
    import cv2  # here: other figures need no OpenCV

    height, width = maps.shape[-2:]
    stack = np.nan_to_num(np.asarray(maps, dtype=np.float64)).reshape(-1, height * width)
    stack = stack / np.maximum(stack.sum(axis=1, keepdims=True), 1e-12)
    cells = np.ascontiguousarray(stack.T, dtype=np.float32)
    distinct = len(np.unique(cells, axis=0))
    cv2.setRNGSeed(seed)
    until = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 300, 1e-6)
    _, found, _ = cv2.kmeans(cells, min(clusters, distinct), None, until, 8, cv2.KMEANS_PP_CENTERS)  # type: ignore[call-overload]
    labels = found.ravel()
    mean = np.array([cells[labels == label].mean() for label in range(int(labels.max()) + 1)])
    rank = np.argsort(np.argsort(mean, kind="stable"), kind="stable")
    return np.asarray(rank[labels].reshape(height, width), dtype=np.int64)


def seen_by_grid(image: Image.Image, grid: ImageGrid | None) -> Image.Image:
    """Return the part of the image that the grid's cells cover; black where they reach beyond it."""
    if grid is None:
        return image.convert("RGB")
    extent_x, extent_y = grid.scale_x * grid.width, grid.scale_y * grid.height
    box = (grid.offset_x, grid.offset_y, grid.offset_x + extent_x, grid.offset_y + extent_y)
    size = (max(1, round(extent_x)), max(1, round(extent_y)))
    return image.convert("RGB").transform(size, Image.Transform.EXTENT, box, Image.Resampling.BILINEAR)


def heat_map(values: Maps, view: Image.Image | None, size: tuple[int, int]) -> Image.Image:
    """Return one map scaled to its own range, in colour; over a dimmed image if one is given.

    Args:
        values: ``[h, w]``, of any range, finite or not.
        view: Part of the image that the map covers.
        size: Width and height of the result, pixels.
    """
    values = np.nan_to_num(np.asarray(values, dtype=np.float64))
    span = values.max() - values.min()
    scaled = (values - values.min()) / span if span > 0 else np.zeros_like(values)
    if view is None:
        return _coloured(scaled, size, Image.Resampling.NEAREST)
    painted = _coloured(scaled, size, Image.Resampling.BILINEAR)
    return Image.blend(view.convert("L").convert("RGB").resize(size, Image.Resampling.BICUBIC), painted, 0.65)


def cluster_view(labels: npt.NDArray[np.int64], size: tuple[int, int]) -> Image.Image:
    """Return what `cluster_maps` found, in colour; ``size`` is width and height of the result, pixels."""
    return _coloured(labels / max(1, int(labels.max())), size, Image.Resampling.NEAREST)


def _coloured(scaled: Maps, size: tuple[int, int], how: Image.Resampling) -> Image.Image:
    """Return values ``[h, w]`` in 0..1 as colours, enlarged to ``size`` = (W, H)."""
    enlarged = Image.fromarray(scaled.astype(np.float32)).resize(size, how)
    return Image.fromarray((mpl.colormaps["viridis"](np.asarray(enlarged))[..., :3] * 255).astype(np.uint8))


def _laid_out(rows: Sequence[tuple[str, _Panels]], title: str) -> Image.Image:
    """Return rows of panels, each under its name, below a title."""
    top = 2 * _LINE if title else _GAP
    heights = [_LINE + max(panel.height for _, panel in panels) + _LINE + _GAP for _, panels in rows]
    widths = [sum(panel.width + _GAP for _, panel in panels) + _GAP for _, panels in rows]
    sheet = Image.new("RGB", (max(widths), top + sum(heights)), PAPER)
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((_GAP, _GAP), title, fill=INK, font=typeface(16))
    for (name, panels), height in zip(rows, heights, strict=True):
        draw.text((_GAP, top), name, fill=INK, font=typeface(13))
        _paste_panels(sheet, panels, top + _LINE, _GAP)
        top += height
    return sheet


def _paste_panels(sheet: Image.Image, panels: _Panels, top: int, gap: int) -> None:
    """Paste panels side by side into a sheet, each with its label below."""
    draw, left = ImageDraw.Draw(sheet), gap
    for label, panel in panels:
        sheet.paste(panel, (left, top))
        draw.text((left, top + panel.height + 2), label, fill=INK, font=typeface(13))
        left += panel.width + gap


def _fitted(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Return width and height scaled so that the longer one is ``side``."""
    scale = side / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
