"""Plant faults in the F-LMM run: a check that has never failed proves nothing.

``flmm preserve --plant NAME`` must end with exit status 1. Each fault is small enough that few answers, or none, come
out differently.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from PIL import ImageOps

from flmm_plugin.adapters.preservation.watch import model_of


def one_logit(adapter: Any) -> None:
    """Hook the model so that one logit of the last position moves by the least that its precision can hold."""

    def nudge(_module: Any, _inputs: Any, output: Any) -> Any:
        logits = output.logits.clone()
        value = logits[0, -1, 0]
        logits[0, -1, 0] = torch.nextafter(value, torch.full_like(value, torch.inf))
        output.logits = logits
        return output

    model_of(adapter).register_forward_hook(nudge)


def one_bit(adapter: Any) -> None:
    """Flip the lowest bit of one value of the last weight."""
    weight = list(model_of(adapter).parameters())[-1]
    bits = weight.detach().view(-1).view(torch.uint8)
    bits[0] ^= 1


def padding(adapter: Any) -> None:
    """Make the image processor add one black column to the right of every picture."""
    processor = adapter.lmm.backbone.processor.image_processor
    original = type(processor).__call__

    def padded(self: Any, images: Any, *args: Any, **kwargs: Any) -> Any:
        return original(self, _wider(images), *args, **kwargs)

    # Calls look `__call__` up on the class, so this one processor gets a class of its own.
    processor.__class__ = type(type(processor).__name__, (type(processor),), {"__call__": padded})


def template(adapter: Any) -> None:
    """Make the chat template begin with one word more."""
    processor = adapter.lmm.backbone.processor
    processor.chat_template = "the " + processor.chat_template


#: Faults by their name for ``--plant``.
FAULTS: dict[str, Callable[[Any], None]] = {
    "logit": one_logit,
    "padding": padding,
    "template": template,
    "weight": one_bit,
}


def _wider(images: Any) -> Any:
    if isinstance(images, list | tuple):
        return [_wider(image) for image in images]
    return ImageOps.expand(images, border=(0, 0, 1, 0))
