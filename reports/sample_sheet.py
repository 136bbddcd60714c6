"""Draw logged samples: the image, the predicted masks with their legend, and the target masks, a row each."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

from flmm_plugin.errors import BadAnnotation, BadImage, DataNotFound
from flmm_plugin.figures import NamedMask, in_column, in_row, overlay
from flmm_plugin.images import open_image
from flmm_plugin.records import decode_rle
from flmm_plugin.reports.sample_files import PhraseView, SampleView


def sample_sheet(samples: Iterable[SampleView], count: int = 6, *, order: str = "worst") -> Image.Image:
    """Return a sheet with one row per sample.

    Args:
        samples: Logged samples; those without masks or without a readable image are passed over.
        count: Largest number of rows; samples beyond it are left out.
        order: ``worst`` or ``best`` first by mean IoU, or ``document``: as they are logged.

    Raises:
        DataNotFound: None of the samples can be drawn.
    """
    grounded = [sample for sample in samples if any(phrase.predicted for phrase in sample.phrases) and sample.image]
    if order != "document":
        grounded.sort(key=lambda sample: sample.value if sample.value is not None else 1.0, reverse=order == "best")
    rows: list[Image.Image] = []
    for sample in grounded:
        row = _row(sample) if len(rows) < count else None
        if row is not None:
            rows.append(row)
    if not rows:
        raise DataNotFound(
            "no sample can be drawn: run mask tasks with --log_samples on a machine that still has the pictures"
        )
    return in_column(rows, 12)


def logged_masks(phrases: Sequence[PhraseView], *, target: bool = False) -> list[NamedMask]:
    """Return the predicted masks (or target masks) of phrases; phrases without one are left out."""
    found = []
    for phrase in phrases:
        rle = phrase.target if target else phrase.predicted
        try:
            mask = None if rle is None else decode_rle(rle)
        except BadAnnotation:
            continue
        if mask is not None:
            name = phrase.phrase if target or phrase.iou is None else f"{phrase.phrase} (IoU {phrase.iou:.2f})"
            found.append(NamedMask(name, mask, np.nan if phrase.score is None else phrase.score))
    return found


def _row(sample: SampleView) -> Image.Image | None:
    """Draw one sample; None if its image is not here, or its masks are of another size."""
    if not os.path.isfile(sample.image):
        return None
    try:
        image = open_image(sample.image, sample.orientation)
    except BadImage:
        return None
    predicted, targets = logged_masks(sample.phrases), logged_masks(sample.phrases, target=True)
    if any(one.mask.shape != (image.height, image.width) for one in predicted):
        return None
    views = [overlay(image, []), overlay(image, predicted)]
    if targets:
        views.append(overlay(image, targets, legend=False))
    return in_row(views, 6)
