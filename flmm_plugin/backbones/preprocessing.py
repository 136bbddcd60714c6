"""The paper's preprocessing of pictures, for families whose stock processor does something else.

Chat always keeps the stock processor: its answers are those of the plain model. The method's heads were trained on
pictures that went another way:

=============  =========================================  ===================================================
family         stock processor                            the paper
=============  =========================================  ===================================================
LLaVA-1.5      shortest side resized, centre cropped      longest side resized (truncated), padded (`padded`)
DeepSeek-VL    longest side resized (rounded), padded     the same, truncated; 7B: the small view is
                                                          interpolated from the large one's floats (`padded`)
HPT            squashed to a square                       longest side resized (truncated), padded (`padded`)
LLaVA-NeXT     tiles, resized by torchvision              tiles, resized by Pillow (`pillow`)
MGM            Pillow, as its authors                     the same (`same`)
=============  =========================================  ===================================================

`padded`: the picture is resized with Pillow and padded here, in the middle of a square of the colour that normalises to
about zero; the stock processor then finds nothing left to do but normalise. `pillow`: the processor's twin that works
with Pillow takes its place; torchvision's resampling gives up to some grey levels other pixels. Heads say in their
manifest which preprocessing they were trained with, and that is the default with them.
"""

from __future__ import annotations

import copy
from typing import Any, Literal, TypeAlias

from PIL import Image

from flmm_plugin.errors import BackboneUnsupported
from flmm_plugin.geometry import InputFrame

#: What ``preprocessing="paper"`` is for a family; empty where the paper has no such family.
Paper: TypeAlias = Literal["", "same", "pillow", "padded"]


def pad_picture(picture: Image.Image, image_processor: Any) -> tuple[Image.Image, InputFrame]:
    """Resize the longest side to what the vision tower gets, the other truncated to whole pixels, and pad to a square.

    Args:
        picture: An RGB picture of any size.
        image_processor: The model's own; says the side, the resampling filter and the mean colour.

    Returns:
        The square, and how it lies on the picture.
    """
    side = square_side(image_processor)
    longest, least = max(picture.size), getattr(image_processor, "min_size", None)
    width, height = (
        # In the order of each family's own tools: now and then the last digit decides about a pixel.
        max(1, int(length * side / longest)) if least is None else max(int(length / longest * side), int(least))
        for length in picture.size
    )
    # A processor of two views pads the large one.
    resample, mean = (
        getattr(image_processor, f"high_res_{name}", None) or getattr(image_processor, name, None)
        for name in ("resample", "image_mean")
    )
    square = Image.new("RGB", (side, side), tuple(int(value * 255) for value in mean or (0.5, 0.5, 0.5)))
    filter_ = Image.Resampling(int(resample or Image.Resampling.BICUBIC))
    square.paste(picture.resize((width, height), filter_), ((side - width) // 2, (side - height) // 2))
    frame = InputFrame.of_image(picture.height, picture.width).resized(height, width).padded_to_square()
    return square, frame


def with_pillow(processor: Any) -> Any:
    """A copy of a processor whose pictures go through Pillow instead of torchvision, by the same numbers.

    Raises:
        BackboneUnsupported: transformers has no such image processor.
    """
    import transformers

    stock = processor.image_processor
    name = type(stock).__name__
    # Since 5.1 or so the two are called X and XPil, in 5.0 XFast and X.
    if not {"TorchvisionBackend", "BaseImageProcessorFast"} & {base.__name__ for base in type(stock).__mro__}:
        return processor
    twin = getattr(transformers, name.removesuffix("Fast") if name.endswith("Fast") else f"{name}Pil", None)
    if twin is None:
        raise BackboneUnsupported(
            f"this transformers has no {name} that works with Pillow, as heads of the paper were trained; use a "
            "version that has one, or preprocessing='stock'"
        )
    changed = copy.copy(processor)
    changed.image_processor = twin.from_dict(stock.to_dict())
    return changed


def square_side(image_processor: Any) -> int:
    """Side of the square that a picture must be for a processor to change nothing but its colours.

    ``high_res_size`` for processors that make a large view first and the small one from it.

    Raises:
        BackboneUnsupported: The processor makes no squares.
    """
    # A size to crop to may be set and not used.
    crop = ("crop_size",) if getattr(image_processor, "do_center_crop", False) else ()
    for name in ("high_res_size", *crop, "size"):
        named = size_entries(getattr(image_processor, name, None))
        if named:
            sides = set(named.values())
            if len(sides) == 1:
                return sides.pop()
            break
    raise BackboneUnsupported(
        f"{type(image_processor).__name__} makes no squares ({name}={named}), so the paper's preprocessing does not "
        "apply to it; use preprocessing='stock'"
    )


def size_entries(size: Any) -> dict[str, int]:
    """Return what is set in a dictionary or in transformers' ``SizeDict``; nothing for None."""
    return {key: int(value) for key, value in dict(size or {}).items() if value is not None}
