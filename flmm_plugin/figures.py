"""Draw masks on their image, with a legend, and images beside each other.

Frames: masks and images are in the image frame, [H, W].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.colors import hsv_to_rgb
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]

# Okabe and Ito's colours, which readers with any kind of colour vision can distinguish; black left out.
_PALETTE: tuple[Colour, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)
INK, PAPER = (20, 20, 20), (255, 255, 255)


@dataclass(frozen=True)
class NamedMask:
    """A mask of which only pixels, name and score are known, such as one of a log; `overlay` draws it."""

    phrase: str
    mask: npt.NDArray[np.bool_]
    score: float = math.nan


class Drawable(Protocol):
    """Describe what `overlay` draws: a `NamedMask`, or a `flmm_plugin.records.Grounding`."""

    @property
    def phrase(self) -> str:
        """Words of the legend."""

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """``bool[H, W]``, image frame."""

    @property
    def score(self) -> float:
        """Number of the legend, 0 to 1; NaN for none."""


def colours(count: int) -> list[Colour]:
    """Return that many distinct colours: a palette for colour-blind readers first, then hues a golden angle apart."""
    found = list(_PALETTE[:count])
    for index in range(count - len(found)):
        red, green, blue = hsv_to_rgb(((0.11 + 0.381966 * index) % 1.0, 0.75, 0.9))
        found.append((round(255 * red), round(255 * green), round(255 * blue)))
    return found


def mask_layer(
    masks: Sequence[Drawable], size: tuple[int, int], alpha: float = 0.45, palette: Sequence[Colour] = ()
) -> Image.Image:
    """Return the masks alone: tinted areas with solid contours, to lay over the image.

    Args:
        masks: Masks of any size with the proportions of ``size``.
        size: Width and height of the layer, pixels.
        alpha: Opacity of a mask's area, 0 to 1.
        palette: One colour for each mask; none: those of `colours`.

    Returns:
        An RGBA image of ``size``.
    """
    width, height = size
    layer = np.zeros((height, width, 4), np.uint8)
    resized = [_resized(one.mask, size) for one in masks]
    palette = palette or colours(len(masks))
    for mask, colour in zip(resized, palette, strict=True):
        layer[mask] = (*colour, round(255 * alpha))
    # Contours last, so that an overlapping area never hides another mask's edge.
    thickness = max(1, round(max(size) / 250))
    for mask, colour in zip(resized, palette, strict=True):
        layer[contour(mask, thickness)] = (*colour, 255)
    return Image.fromarray(layer, "RGBA")


def overlay(
    image: Image.Image,
    masks: Sequence[Drawable],
    legend: bool = True,
    *,
    alpha: float = 0.45,
    min_side: int = 480,
) -> Image.Image:
    """Return an image with its masks, numbered, and below it what each number means.

    Args:
        image: Image in original pixels, of any mode.
        masks: Masks with the height and width of the image.
        legend: Whether to add a strip with colour, number, phrase and score of each mask.
        alpha: Opacity of a mask's area, 0 to 1.
        min_side: Small images are enlarged by a whole factor until their longer side reaches this: labels need room.

    Raises:
        ValueError: A mask is not of the image's size.
    """
    for one in masks:
        if one.mask.shape != (image.height, image.width):
            raise ValueError(
                f"mask of {one.phrase!r} is {one.mask.shape}, the picture is {(image.height, image.width)}; give masks "
                "in the image frame"
            )
    factor = max(1, math.ceil(min_side / max(image.size)))
    size = (image.width * factor, image.height * factor)
    canvas = image.convert("RGBA").resize(size, Image.Resampling.BICUBIC if factor > 1 else Image.Resampling.NEAREST)
    canvas.alpha_composite(mask_layer(masks, size, alpha))
    drawn = canvas.convert("RGB")
    font, palette = typeface(max(13, max(size) // 40)), colours(len(masks))
    draw = ImageDraw.Draw(drawn)
    for number, (one, colour) in enumerate(zip(masks, palette, strict=True), start=1):
        if one.mask.any():
            _draw_number(draw, _anchor(one.mask, factor), str(number), colour, font, size)
    if not legend or not masks:
        return drawn
    lines = []
    for number, one in enumerate(masks, start=1):
        score = "" if math.isnan(one.score) else f"{one.score:.2f}"
        lines.append((f"{number}  {one.phrase}", score if one.mask.any() else "empty mask"))
    return _with_legend(drawn, lines, palette, font)


def contour(mask: npt.NDArray[np.bool_], thickness: int = 1) -> npt.NDArray[np.bool_]:
    """Return pixels of a mask with a neighbour outside it.

    Args:
        mask: ``bool[H, W]``; what lies beyond its border counts as outside.
        thickness: Number of steps, to one of 4 neighbours each, within which the outside is reached.
    """
    inner = mask
    for _ in range(thickness):
        padded = np.pad(inner, 1)
        inner = inner & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner


def in_row(images: Sequence[Image.Image], gap: int) -> Image.Image:
    """Return images side by side on white, tops aligned, ``gap`` pixels apart."""
    sheet = Image.new("RGB", (_length(images, gap, 0), max(image.height for image in images)), PAPER)
    left = 0
    for image in images:
        sheet.paste(image, (left, 0))
        left += image.width + gap
    return sheet


def in_column(images: Sequence[Image.Image], gap: int) -> Image.Image:
    """Return images below each other on white, aligned to the left, ``gap`` pixels apart."""
    sheet = Image.new("RGB", (max(image.width for image in images), _length(images, gap, 1)), PAPER)
    top = 0
    for image in images:
        sheet.paste(image, (0, top))
        top += image.height + gap
    return sheet


def _length(images: Sequence[Image.Image], gap: int, axis: int) -> int:
    return sum(image.size[axis] + gap for image in images) - gap


def typeface(size: int) -> ImageFont.FreeTypeFont:
    """Return the letters of all figures, ``size`` pixels high."""
    # matplotlib brings DejaVu Sans along: the same letters on every machine, with most scripts' characters.
    return ImageFont.truetype(str(Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


def _resized(mask: npt.NDArray[np.bool_], size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    if mask.shape == (size[1], size[0]):
        return mask
    return np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST), dtype=bool)


def _anchor(mask: npt.NDArray[np.bool_], factor: int) -> tuple[int, int]:
    """Return the mask's pixel nearest to its centre of mass, so that a number never stands in the hole of a ring."""
    rows, columns = np.nonzero(mask)
    nearest = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)
    return int((columns[nearest] + 0.5) * factor), int((rows[nearest] + 0.5) * factor)


def _draw_number(
    draw: ImageDraw.ImageDraw,
    centre: tuple[int, int],
    text: str,
    colour: Colour,
    font: ImageFont.FreeTypeFont,
    size: tuple[int, int],
) -> None:
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    half_w, half_h = (right - left) / 2 + 4, (bottom - top) / 2 + 3
    x = min(max(centre[0], half_w), size[0] - half_w)
    y = min(max(centre[1], half_h), size[1] - half_h)
    draw.rectangle((x - half_w, y - half_h, x + half_w, y + half_h), fill=PAPER, outline=colour, width=2)
    draw.text((x - (left + right) / 2, y - (top + bottom) / 2), text, fill=INK, font=font)


def _with_legend(
    drawn: Image.Image, lines: list[tuple[str, str]], palette: list[Colour], font: ImageFont.FreeTypeFont
) -> Image.Image:
    row = int(font.size * 1.6)
    out = Image.new("RGB", (drawn.width, drawn.height + row * len(lines) + 6), PAPER)
    out.paste(drawn, (0, 0))
    draw = ImageDraw.Draw(out)
    for index, ((label, score), colour) in enumerate(zip(lines, palette, strict=True)):
        y = drawn.height + 4 + index * row
        draw.rectangle((6, y + 2, 6 + row - 6, y + row - 4), fill=colour, outline=INK)
        score_width = draw.textlength(score, font=font)
        draw.text((row + 8, y), _shortened(label, font, drawn.width - row - 26 - score_width), fill=INK, font=font)
        draw.text((drawn.width - score_width - 8, y), score, fill=INK, font=font)
    return out


def _shortened(text: str, font: ImageFont.FreeTypeFont, room: float) -> str:
    text = " ".join(text.split())
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(text + "\u2026") > room:
        text = text[:-1]
    return text + "\u2026"
