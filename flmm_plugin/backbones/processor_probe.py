"""Find out what an unknown image processor does to a picture, by looking at what comes out.

Three pictures go through it: black, white, and ramps whose red and green say column and row. Where the white one
differs from the black one there is picture and not padding; the ramps say which original pixel each input pixel shows.
If that is one straight line per axis, resizing, cropping and padding in any order are known to a fraction of a pixel.

Shapes: H x W original picture, h x w input pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from flmm_plugin.errors import BackboneUnsupported
from flmm_plugin.geometry import InputFrame

Floats = npt.NDArray[np.float64]

# Input pixels this near to the picture's rim show its rim repeated by the resampling filter.
_RIM = 2.0


def measured_frame(image_processor: Any, image_height: int, image_width: int, name: str) -> InputFrame:
    """Measure how the one view that a processor makes of a picture lies on it.

    Args:
        image_processor: Called as transformers' are; must give ``pixel_values [1, 3, h, w]``.
        image_height: Rows of the original picture, H.
        image_width: Columns of the original picture, W.
        name: The model as the user called it.

    Raises:
        BackboneUnsupported: It makes several views, no pixels, or moves pixels otherwise than along each axis.
    """
    rows = np.linspace(0, 255, image_height) if image_height > 1 else np.zeros(1)
    columns = np.linspace(0, 255, image_width) if image_width > 1 else np.zeros(1)
    ramps = np.zeros((image_height, image_width, 3))
    ramps[..., 0], ramps[..., 1] = columns[None, :], rows[:, None]
    black, white, ramp = (
        _view(image_processor, pixels, name) for pixels in (ramps * 0, ramps * 0 + 255, np.rint(ramps))
    )
    contrast = white - black  # [3, h, w]
    most = contrast.max(axis=(1, 2), keepdims=True)
    if not (most > 0).all():
        raise BackboneUnsupported(not_recovered(name, "its image processor makes the same of black and white pictures"))
    seen = (contrast > 0.99 * most).all(axis=0)
    if not seen.any():
        raise BackboneUnsupported(not_recovered(name, "its image processor shows no pixel of the picture"))
    values = np.clip((ramp - black) / most, 0, 1)
    scale_x, offset_x = _line(values[0], seen, image_width, name, "columns")
    scale_y, offset_y = _line(values[1].T, seen.T, image_height, name, "rows")
    height, width = seen.shape
    return InputFrame(height, width, scale_y, scale_x, offset_y, offset_x, image_height, image_width)


def _view(image_processor: Any, pixels: Floats, name: str) -> Floats:
    made = image_processor(images=[Image.fromarray(pixels.astype(np.uint8))], return_tensors="pt")["pixel_values"]
    if made.ndim != 4 or made.shape[0] != 1 or made.shape[1] != 3:
        raise BackboneUnsupported(
            not_recovered(
                name,
                f"its image processor makes pixels of shape {tuple(made.shape)} of one picture, not one view "
                "[1, 3, height, width]; how tiles or flat patches lie in the sequence is known only family by family",
            )
        )
    view: Floats = made[0].double().numpy()
    return view


def _line(values: Floats, seen: npt.NDArray[np.bool_], pixels: int, name: str, what: str) -> tuple[float, float]:
    """Original pixels per input pixel, and original position of the first input edge, along one axis.

    Args:
        values: What the ramp says, 0..1 from the first pixel's centre to the last one's, ``[across, along]``.
        seen: Whether an input pixel shows picture rather than padding, as `values`.
        pixels: Original pixels along the axis.
        name: The model as the user called it.
        what: Rows or columns, for messages.
    """
    shown = np.flatnonzero(seen.any(axis=0))
    first, last = int(shown[0]), int(shown[-1])
    original = values * (pixels - 1) + 0.5
    middle = np.array([np.median(original[seen[:, at], at]) for at in range(first, last + 1)])
    spread = max(float(np.ptp(original[seen[:, at], at])) for at in range(first, last + 1))
    centres = np.arange(first, last + 1) + 0.5
    inner = (middle > _RIM) & (middle < pixels - _RIM)
    if inner.sum() >= 8:
        scale, offset = np.polyfit(centres[inner], middle[inner], 1)
        off = float(np.abs(middle[inner] - (scale * centres[inner] + offset)).max())
    else:
        # Too few original pixels for a line: all of them are in view, from the first input pixel to the last.
        scale, off = pixels / (last + 1 - first), 0.0
        offset = -first * scale
    # Ramps have 256 steps; resampling smears by about an input pixel.
    tolerance = 2 + pixels / 128 + abs(scale)
    if scale <= 0 or off > tolerance or spread > 2 * tolerance:
        raise BackboneUnsupported(
            not_recovered(
                name,
                f"its image processor does not move {what} by one straight line (up to {max(off, spread):.0f} original "
                "pixels off): it mirrors, turns or cuts pictures",
            )
        )
    return float(scale), float(offset)


def not_recovered(name: str, why: str) -> str:
    """The message for a model whose grid stays unknown, and what to do about it."""
    return (
        f"how the image tokens of {name} lie on a picture could not be recovered: {why}. It needs a file of its own "
        "(docs/add-a-backbone.md); without heads it can chat under lmms-eval's own model names"
    )
