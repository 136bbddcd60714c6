"""The paper's preprocessing of pictures, for families whose stock processor does something else.

Chat always keeps the stock processor: its answers are those of the plain model. For three kinds of families the
method's heads were trained on pictures that went another way:

=============  =========================================  ===========================================
family         stock processor                            the paper
=============  =========================================  ===========================================
LLaVA-1.5      shortest side resized, centre cropped      longest side resized (truncated), padded
DeepSeek-VL    longest side resized (rounded), padded     the same, truncated
HPT            squashed to a square                       longest side resized (truncated), padded
=============  =========================================  ===========================================

With ``preprocessing="paper"`` the picture is resized and padded here, in the middle of a square of the colour that
normalises to about zero; the stock processor then finds nothing left to do but normalise. The other families of the
paper (LLaVA-NeXT, MGM) were trained with their stock processing, for which ``paper`` is another word there. Heads say
in their manifest which of the two they were trained with, and that is the default with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from PIL import Image

from flmm_plugin.errors import BackboneUnsupported
from flmm_plugin.geometry import InputFrame


def pad_picture(picture: Image.Image, image_processor: Any) -> tuple[Image.Image, InputFrame]:
    """Resize the longest side to what the vision tower gets, the other truncated to whole pixels, and pad to a square.

    Args:
        picture: RGB.
        image_processor: The model's own; says the side, the resampling filter and the mean colour.

    Returns:
        The square, and how it lies on the picture.
    """
    side = square_side(image_processor)
    longest = max(picture.size)
    width, height = (max(1, int(length * side / longest)) for length in picture.size)
    filter_ = Image.Resampling(int(getattr(image_processor, "resample", None) or Image.Resampling.BICUBIC))
    red, green, blue = (int(255 * mean) for mean in image_processor.image_mean)
    square = Image.new("RGB", (side, side), (red, green, blue))
    square.paste(picture.resize((width, height), filter_), ((side - width) // 2, (side - height) // 2))
    frame = InputFrame.of_image(picture.height, picture.width).resized(height, width).padded_to_square()
    return square, frame


def square_side(image_processor: Any) -> int:
    """Side of the square that a picture must be for a processor to change nothing but its colours.

    ``high_res_size`` for processors that make a large view first and the small one from it.

    Raises:
        BackboneUnsupported: The processor makes no squares.
    """
    for name in ("high_res_size", "crop_size", "size"):
        named = {key: int(value) for key, value in _entries(getattr(image_processor, name, None)).items()}
        if named:
            sides = set(named.values())
            if len(sides) == 1:
                return sides.pop()
            break
    raise BackboneUnsupported(
        f"{type(image_processor).__name__} makes no squares ({name}={named}), so the paper's preprocessing does not "
        "apply to it; use preprocessing='stock'"
    )


def _entries(size: Any) -> Mapping[str, Any]:
    """What is set in a dictionary or in transformers' ``SizeDict``; nothing for None."""
    return {key: value for key, value in dict(size or {}).items() if value is not None}
