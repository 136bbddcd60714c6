"""Write one self-contained HTML page: text, sortable tables, and images whose masks can be switched off.

Everything is inside the file (images as base64, styles and a few lines of script), and its content policy forbids the
browser to fetch anything: the page looks the same offline, mailed, or years later. All text is escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from PIL import Image

from flmm_plugin import files
from flmm_plugin.reports.templating import as_base64, fill

Picture = Image.Image | str | Path
Cell = str | int | float | None


@dataclass(frozen=True)
class Text:
    """Paragraphs; ``code`` is shown in a fixed-width block below them."""

    kind: ClassVar[str] = "text"
    title: str
    paragraphs: Sequence[str] = ()
    code: str = ""


@dataclass(frozen=True)
class Table:
    """Rows under headings; a click on a heading sorts. Numbers are shown with ``digits`` significant digits."""

    kind: ClassVar[str] = "table"
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    digits: int = 4


@dataclass(frozen=True)
class Card:
    """An image, what is laid over it (RGBA of the same proportions, can be switched off), and words below."""

    image: Picture
    caption: str = ""
    overlay: Picture | None = None
    details: str = ""


@dataclass(frozen=True)
class Cards:
    """Images beside each other; ``min_width`` is the narrowest a card may get, in pixels."""

    kind: ClassVar[str] = "cards"
    title: str
    cards: Sequence[Card]
    note: str = ""
    min_width: int = 260


Section = Text | Table | Cards


def write_page(out_html: str | Path, title: str, sections: Sequence[Section], *, lead: str = "") -> Path:
    """Write a page and return its path; it appears under its name only when it is complete.

    Args:
        out_html: File to write; folders above it are made.
        title: Text of the browser's tab and of the heading.
        sections: Parts of the page in order, each with a link at the top.
        lead: One sentence under the title.

    Raises:
        ValueError: A table row has not as many cells as there are columns.
    """
    return files.write(Path(out_html), page(title, sections, lead=lead))


def page(title: str, sections: Sequence[Section], *, lead: str = "") -> str:
    """Return the page that `write_page` writes."""
    for section in sections:
        if isinstance(section, Table):
            _check_rows(section)
    has_masks = any(isinstance(s, Cards) and any(card.overlay is not None for card in s.cards) for s in sections)
    parts = fill("gallery.html", title=title, notes=[lead], sections=sections, has_masks=has_masks, png=_png)
    return "".join(parts)


def _check_rows(table: Table) -> None:
    for row in table.rows:
        if len(row) != len(table.columns):
            raise ValueError(f"table {table.title!r} has {len(table.columns)} columns, a row has {len(row)}: {row}")


def _png(picture: Picture) -> str:
    """Return an image as a ``data:`` address; files are decoded and written again, so that all become PNG."""
    if not isinstance(picture, Image.Image):
        with Image.open(picture) as opened:
            opened.load()
            picture = opened
    if picture.mode not in ("RGB", "RGBA", "L", "P"):
        picture = picture.convert("RGB")
    return f"data:image/png;base64,{as_base64(picture, 'PNG', optimize=True)}"
