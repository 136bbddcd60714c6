"""Pictures of single samples: as they are, what was found, what is right (the paper's Figures 7, A3 to A5)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from PIL import Image

from flmm_plugin.errors import BadAnnotation, BadImage, DataNotFound
from flmm_plugin.images import open_image
from flmm_plugin.records import BoolMask, Grounding, decode_rle
from flmm_plugin.reports.figures import overlay
from flmm_plugin.reports.gallery import Card, Cards
from flmm_plugin.reports.sample_files import PhraseView, Rle, SampleView

#: Logits that stand for a mask of which only pixels are known.
_SURE = 8.0


def qualitative_sheet(samples: Iterable[SampleView], count: int = 6, *, order: str = "worst") -> Image.Image:
    """One row per sample: the picture, the predicted masks with their legend, the target masks.

    Args:
        samples: Those without masks or without a readable picture are passed over.
        count: Rows at most.
        order: ``worst`` or ``best`` first by mean IoU, or ``document``: as they are logged.

    Raises:
        DataNotFound: None of the samples can be drawn.
    """
    rows = [_row(sample, picture) for sample, picture in _drawable(samples, count, order)]
    if not rows:
        raise DataNotFound(
            "no sample can be drawn: run mask tasks with --log_samples on a machine that still has the pictures"
        )
    gap = 12
    sheet = Image.new(
        "RGB", (max(row.width for row in rows), sum(row.height + gap for row in rows) - gap), (255, 255, 255)
    )
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height + gap
    return sheet


def qualitative_cards(samples: Iterable[SampleView], count: int = 24, *, order: str = "worst") -> Cards:
    """The same samples as cards of `flmm_plugin.reports.gallery`: question and answer below each picture."""
    cards = [
        Card(
            overlay(picture, groundings(sample.phrases)),
            sample.question if sample.answer else "; ".join(phrase.phrase for phrase in sample.phrases),
            details=sample.answer,
        )
        for sample, picture in _drawable(samples, count, order)
    ]
    return Cards("Samples", cards, note=f"{len(cards)} samples, {order} first.")


def groundings(phrases: Sequence[PhraseView], *, target: bool = False) -> list[Grounding]:
    """Phrases with their predicted masks (or target masks) as records that `overlay` draws; those without are left out.

    Only mask, name and score of them mean anything: a log keeps no logits. The score is the logged one, NaN if none is.
    """
    found = []
    for phrase in phrases:
        rle = phrase.target if target else phrase.predicted
        mask = _mask(rle)
        if mask is not None:
            logits = np.where(mask, _SURE, -_SURE).astype(np.float32)
            name = phrase.phrase if target or phrase.iou is None else f"{phrase.phrase} (IoU {phrase.iou:.2f})"
            score = np.nan if phrase.score is None else phrase.score
            found.append(replace(Grounding.from_logits(name, logits), score=score))
    return found


def _mask(rle: Rle | None) -> BoolMask | None:
    try:
        return None if rle is None else decode_rle(rle)
    except BadAnnotation:
        return None


def _drawable(samples: Iterable[SampleView], count: int, order: str) -> list[tuple[SampleView, Image.Image]]:
    grounded = [sample for sample in samples if any(phrase.predicted for phrase in sample.phrases) and sample.image]
    if order != "document":
        grounded.sort(key=lambda sample: sample.value if sample.value is not None else 1.0, reverse=order == "best")
    found: list[tuple[SampleView, Image.Image]] = []
    for sample in grounded:
        if len(found) == count:
            break
        if os.path.isfile(sample.image):
            try:
                picture = open_image(sample.image, sample.orientation)
            except BadImage:
                continue
            masks = [one.mask.shape for one in groundings(sample.phrases)]
            if all(shape == (picture.height, picture.width) for shape in masks):
                found.append((sample, picture))
    return found


def _row(sample: SampleView, picture: Image.Image) -> Image.Image:
    views = [overlay(picture, []), overlay(picture, groundings(sample.phrases))]
    targets = groundings(sample.phrases, target=True)
    if targets:
        views.append(overlay(picture, targets, legend=False))
    gap = 6
    row = Image.new(
        "RGB", (sum(view.width + gap for view in views) - gap, max(view.height for view in views)), (255, 255, 255)
    )
    left = 0
    for view in views:
        row.paste(view, (left, 0))
        left += view.width + gap
    return row
