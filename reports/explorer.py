"""Write one self-contained HTML page for a whole evaluation: sortable tables, and every sample with its masks.

Everything is in the file: tables, samples as JSON, pictures as small JPEGs that the browser decodes only when their
card comes into view, masks as the run-length codes they were logged as (drawn by the page itself, so that prediction
and target can be switched separately). Cards are made a few at a time while one scrolls: ten thousand samples cost no
more than those that are looked at. Text reaches the page by ``textContent`` alone, and its content policy lets nothing
be fetched.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from flmm_plugin import files
from flmm_plugin.errors import BadImage
from flmm_plugin.images import Orientation, open_image
from flmm_plugin.reports.comparison import ComparisonTable
from flmm_plugin.reports.rendering import render
from flmm_plugin.reports.sample_files import PhraseView, SampleView
from flmm_plugin.reports.templating import as_base64, fill
from flmm_plugin.reports.verdicts import VerdictNote

#: Longer side of a picture on the page, pixels.
THUMBNAIL = 320
#: Columns of a table of `flmm preserve`, and the attributes of its checks that they show.
_VERDICT_COLUMNS = (
    ("compared", "compared"),
    ("differing", "differing"),
    ("stock from itself", "noise"),
    ("F-LMM from stock under the same settings", "same"),
)


@dataclass(frozen=True)
class PageFacts:
    """Numbers of a written page: samples, pictures, pictures left out for size, pictures that could not be read."""

    path: Path
    samples: int
    pictures: int
    left_out: int
    unreadable: int


def write_explorer(
    out: Path,
    tables: Sequence[ComparisonTable],
    samples: Iterable[SampleView],
    *,
    title: str = "flmm report",
    notes: Sequence[str] = (),
    verdicts: Sequence[VerdictNote] = (),
    megabytes: float = 150,
    progress: bool = False,
) -> PageFacts:
    """Write the page; it appears under its name only when it is complete.

    Args:
        out: File to write; folders above it are made.
        tables: Tables to show first, with marks and provenance.
        samples: Any number; the page orders them worst first.
        title: Text of the browser's tab and of the heading.
        notes: Sentences to print under the title, one paragraph each.
        verdicts: Verdicts of `flmm preserve`, shown before the tables.
        megabytes: Room for the pictures; beyond it the best samples are shown without, and the page says so.
        progress: Show a bar while pictures are read.
    """
    ordered = sorted(samples, key=_badness)
    pictures = _Pictures(megabytes)
    bar = tqdm(ordered, desc="pictures", disable=not progress)
    places = [pictures.place(sample.image, sample.orientation) for sample in bar]
    facts = PageFacts(out, len(ordered), len(pictures.encoded), pictures.left_out, pictures.unreadable)
    parts = fill(
        "explorer.html",
        title=title,
        notes=notes,
        tables=render(tables, "html"),
        verdicts=verdicts,
        verdict_columns=_VERDICT_COLUMNS,
        samples=ordered,
        facts=facts,
        pictures=pictures.encoded,
        data=_data(ordered, places),
    )
    files.write(out, parts)
    return facts


def _badness(sample: SampleView) -> tuple[int, float]:
    """Return a sort key: failed samples first, then by value from the worst, those without a value last."""
    if sample.error:
        return (0, 0.0)
    return (2, 0.0) if sample.value is None else (1, sample.value)


class _Pictures:
    """Distinct pictures as base64 JPEGs, within a budget; asked for in the order of their importance."""

    def __init__(self, megabytes: float) -> None:
        self._room = megabytes * 1_000_000
        self._places: dict[tuple[str, str], int] = {}
        self.encoded: list[str] = []
        self.left_out = 0
        self.unreadable = 0

    def place(self, path: str, orientation: Orientation = "stored") -> int:
        """Return the index of a picture; -1: none is known, -2: it cannot be read here, -3: no room was left for it."""
        if not path:
            return -1
        if (path, orientation) not in self._places:
            self._places[path, orientation] = self._add(path, orientation)
        return self._places[path, orientation]

    def _add(self, path: str, orientation: Orientation) -> int:
        # A task may name its picture by something else than a path, such as a question's id: there is none to show.
        if not os.path.isfile(path):
            return -1 if not Path(path).is_absolute() else self._missing()
        if self._room <= 0:
            self.left_out += 1
            return -3
        try:
            picture = open_image(path, orientation)
        except BadImage:
            return self._missing()
        picture.thumbnail((THUMBNAIL, THUMBNAIL))
        text = as_base64(picture, "JPEG", quality=80)
        self._room -= len(text)
        self.encoded.append(text)
        return len(self.encoded) - 1

    def _missing(self) -> int:
        self.unreadable += 1
        return -2


def _data(samples: Sequence[SampleView], places: Sequence[int]) -> str:
    """Return the samples as JSON that may stand inside a script element: no character of it can end the element."""
    models = sorted({sample.model for sample in samples})
    tasks = sorted({sample.task for sample in samples})
    rows = [
        [
            models.index(one.model),
            tasks.index(one.task),
            one.doc_id,
            one.question,
            one.target,
            one.answer,
            one.stock,
            place,
            _rounded(one.value),
            [_phrase(phrase) for phrase in one.phrases],
            one.error,
        ]
        for one, place in zip(samples, places, strict=True)
    ]
    content = {"models": models, "tasks": tasks, "samples": rows}
    text = json.dumps(content, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _phrase(phrase: PhraseView) -> list[Any]:
    return [phrase.phrase, _rounded(phrase.iou), _rounded(phrase.score), _mask(phrase.predicted), _mask(phrase.target)]


def _mask(rle: Any) -> list[Any] | None:
    return None if rle is None else [int(rle["size"][0]), int(rle["size"][1]), rle["counts"]]


def _rounded(value: float | None) -> float | None:
    return round(value, 4) if value is not None and math.isfinite(value) else None
