"""One self-contained HTML page for a whole evaluation: sortable tables, and every sample with its masks.

Everything is in the file: tables, samples as JSON, pictures as small JPEGs that the browser decodes only when their
card comes into view, masks as the run-length codes they were logged as (drawn by the page itself, so that prediction
and target can be switched separately). Cards are made a few at a time while one scrolls: ten thousand samples cost no
more than those that are looked at. Text reaches the page by ``textContent`` alone, and its content policy lets nothing
be fetched.
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from flmm_plugin import files
from flmm_plugin.errors import BadImage
from flmm_plugin.images import Orientation, open_image
from flmm_plugin.reports.comparison import ComparisonTable
from flmm_plugin.reports.explorer_assets import SCRIPT, STYLE
from flmm_plugin.reports.rendering import fragment
from flmm_plugin.reports.sample_files import PhraseView, SampleView
from flmm_plugin.reports.verdicts import VerdictNote

#: Longer side of a picture on the page, pixels.
THUMBNAIL = 320


@dataclass(frozen=True)
class PageFacts:
    """What came of writing a page: samples on it, pictures in it, pictures left out for its size, unreadable ones."""

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
    figures: Sequence[tuple[str, bytes]] = (),
    verdicts: Sequence[VerdictNote] = (),
    megabytes: float = 150,
    progress: bool = False,
) -> PageFacts:
    """Write the page; it appears under its name only when it is complete.

    Args:
        out: Where to.
        tables: Shown first, with marks and provenance.
        samples: Any number; the page orders them worst first.
        title: Of the page.
        notes: Sentences under the title.
        figures: Caption and PNG bytes of each figure below the tables.
        verdicts: Of `flmm preserve`; shown first.
        megabytes: What the pictures may take; beyond it the best samples go without, and say so.
        progress: Show a bar while pictures are read.
    """
    shown = sorted(samples, key=_badness)
    pictures = _Pictures(megabytes)
    bar = tqdm(shown, desc="pictures", disable=not progress)
    places = [pictures.place(sample.image, sample.orientation) for sample in bar]
    facts = PageFacts(out, len(shown), pictures.count, pictures.left_out, pictures.unreadable)
    files.write(out, _page(title, notes, tables, figures, verdicts, shown, places, pictures, facts))
    return facts


def _badness(sample: SampleView) -> tuple[int, float]:
    """Failed first, then by value from the worst; those without a value last."""
    if sample.error:
        return (0, 0.0)
    return (2, 0.0) if sample.value is None else (1, sample.value)


class _Pictures:
    """Distinct pictures as base64 JPEGs, within a budget; asked in the order of importance."""

    def __init__(self, megabytes: float) -> None:
        self._room = megabytes * 1_000_000
        self._places: dict[tuple[str, str], int] = {}
        self.encoded: list[str] = []
        self.left_out = 0
        self.unreadable = 0

    @property
    def count(self) -> int:
        """Pictures in the page."""
        return len(self.encoded)

    def place(self, path: str, orientation: Orientation = "stored") -> int:
        """Index of a picture; -1: none is known, -2: it cannot be read here, -3: no room was left for it."""
        if not path:
            return -1
        if (path, orientation) not in self._places:
            self._places[path, orientation] = self._add(path, orientation)
        return self._places[path, orientation]

    def _add(self, path: str, orientation: Orientation) -> int:
        # A task may name its picture by something that is no path (a question's id): then there is none to show.
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
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=80)
        text = base64.b64encode(buffer.getvalue()).decode("ascii")
        self._room -= len(text)
        self.encoded.append(text)
        return len(self.encoded) - 1

    def _missing(self) -> int:
        self.unreadable += 1
        return -2


def _page(
    title: str,
    notes: Sequence[str],
    tables: Sequence[ComparisonTable],
    figures: Sequence[tuple[str, bytes]],
    verdicts: Sequence[VerdictNote],
    samples: Sequence[SampleView],
    places: Sequence[int],
    pictures: _Pictures,
    facts: PageFacts,
) -> Iterator[str]:
    charts = '<a href="#figures">Figures</a>' if figures else ""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    yield f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{_h(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<header><h1>{_h(title)}</h1>{"".join(f"<p>{_h(note)}</p>" for note in notes)}
<nav><a href="#tables">Tables</a>{charts}<a href="#samples">Samples</a></nav></header>
<main>
{"".join(_verdict(verdict) for verdict in verdicts)}<section id="tables"><h2>Tables</h2>
{"".join(fragment(table) for table in tables) or "<p>No table was asked for.</p>"}</section>
"""
    if figures:
        yield (
            '<section id="figures"><h2>Figures</h2>' + "".join(_figure(*figure) for figure in figures) + "</section>\n"
        )
    yield _controls(samples, facts)
    yield "</main>\n"
    yield from (f'<script type="text/plain" id="p{at}">{text}</script>\n' for at, text in enumerate(pictures.encoded))
    yield f'<script type="application/json" id="data">{_data(samples, places)}</script>\n'
    yield f"<script>{SCRIPT}</script>\n</body>\n</html>\n"


def _verdict(verdict: VerdictNote) -> str:
    kinds: list[tuple[str, list[int | None]]] = [
        ("compared", [one.compared for one in verdict.checks]),
        ("differing", [one.differing for one in verdict.checks]),
        ("stock from itself", [one.noise for one in verdict.checks]),
        ("F-LMM from stock under the same settings", [one.same for one in verdict.checks]),
    ]
    columns = [(name, numbers) for name, numbers in kinds if any(number is not None for number in numbers)]
    heads = "".join(f"<th>{name}</th>" for name in ("check", *(name for name, _ in columns)))
    rows = "".join(
        f'<tr><th scope="row">{_h(one.name)}</th>'
        + "".join(f'<td class="number">{"-" if ns[at] is None else ns[at]}</td>' for _, ns in columns)
        + "</tr>"
        for at, one in enumerate(verdict.checks)
    )
    first = next((one for one in verdict.checks if one.blamed), None)
    shown = (
        ""
        if first is None or verdict.status == "unchanged"
        else f'<p>First difference, {_h(first.name)}: {_h(first.question)}</p><div class="arms different">'
        f"<div><h4>F-LMM</h4>{_h(first.ours)}</div><div><h4>stock</h4>{_h(first.stock)}</div></div>"
    )
    return (
        f'<section class="verdict {_h(verdict.status)}"><h2>Was chat left unchanged?</h2><p>{_h(verdict.line)}</p>'
        f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>{shown}</section>\n"
    )


def _figure(caption: str, png: bytes) -> str:
    source = "data:image/png;base64," + base64.b64encode(png).decode("ascii")
    return (
        f'<figure class="chart"><img alt="{_h(caption)}" src="{source}"><figcaption>{_h(caption)}</figcaption></figure>'
    )


def _controls(samples: Sequence[SampleView], facts: PageFacts) -> str:
    if not samples:
        return (
            '<section id="samples"><h2>Samples</h2><p id="none">No samples: the runs were made without '
            "--log_samples, or none was given.</p></section>\n"
        )
    tasks = sorted({sample.task for sample in samples})
    options = "".join(f'<option value="{_h(task)}">{_h(task)}</option>' for task in tasks)
    missing = [
        f"{facts.left_out} pictures were left out to keep the page small (--page-megabytes)" if facts.left_out else "",
        f"{facts.unreadable} pictures could not be read on the machine that wrote this page"
        if facts.unreadable
        else "",
    ]
    notes = "".join(f'<p class="note">{_h(note)}.</p>' for note in missing if note)
    both = any(sample.stock is not None for sample in samples)
    differ = '<label><input type="checkbox" id="differ"> answers differ</label>' if both else ""
    return f"""<section id="samples"><h2>Samples</h2>{notes}
<form id="controls" autocomplete="off">
<label>find <input type="search" id="find" placeholder="phrase, question or answer"></label>
<label>IoU or score from <input type="number" id="low" min="0" max="1" step="0.05"></label>
<label>to <input type="number" id="high" min="0" max="1" step="0.05"></label>
<label>task <select id="task"><option value="">all</option>{options}</select></label>
<label>order <select id="order"><option value="worst">worst first</option><option value="best">best first</option>
<option value="document">document</option></select></label>
{differ}
<label><input type="checkbox" id="predicted" checked> predicted</label>
<label><input type="checkbox" id="target" checked> target</label>
<output id="count"></output>
</form>
<div id="cards"></div><div id="more"></div></section>
"""


def _data(samples: Sequence[SampleView], places: Sequence[int]) -> str:
    """The samples as JSON that may stand inside a script element: no character of it can end the element."""
    content = {
        "models": (models := sorted({sample.model for sample in samples})),
        "tasks": (tasks := sorted({sample.task for sample in samples})),
        "samples": [
            [
                models.index(one.model), tasks.index(one.task), one.doc_id, one.question, one.target, one.answer,
                one.stock, place, _rounded(one.value), [_phrase(phrase) for phrase in one.phrases], one.error,
            ]
            for one, place in zip(samples, places, strict=True)
        ],
    }  # fmt: skip
    text = json.dumps(content, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _phrase(phrase: PhraseView) -> list[Any]:
    return [phrase.phrase, _rounded(phrase.iou), _rounded(phrase.score), _mask(phrase.predicted), _mask(phrase.target)]


def _mask(rle: Any) -> list[Any] | None:
    return None if rle is None else [int(rle["size"][0]), int(rle["size"][1]), rle["counts"]]


def _rounded(value: float | None) -> float | None:
    return round(value, 4) if value is not None and math.isfinite(value) else None


def _h(text: str) -> str:
    return html.escape(text, quote=True)
