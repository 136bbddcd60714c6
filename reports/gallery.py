"""One self-contained HTML page: text, sortable tables, and pictures whose masks can be switched off.

Everything is inside the file (images as base64, styles and a few lines of script), and its content policy forbids the
browser to fetch anything: the page looks the same offline, mailed, or years later. All text is escaped.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from flmm_plugin import files
from flmm_plugin.reports.page_assets import SCRIPT, STYLE

Picture = Image.Image | str | Path
Cell = str | int | float | None


@dataclass(frozen=True)
class Text:
    """Paragraphs; ``code`` is shown in a fixed-width block below them."""

    title: str
    paragraphs: Sequence[str] = ()
    code: str = ""


@dataclass(frozen=True)
class Table:
    """Rows under headings; a click on a heading sorts. Numbers are shown with ``digits`` significant digits."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    digits: int = 4


@dataclass(frozen=True)
class Card:
    """A picture, what is laid over it (RGBA of the same proportions, can be switched off), and words below."""

    image: Picture
    caption: str = ""
    overlay: Picture | None = None
    details: str = ""


@dataclass(frozen=True)
class Cards:
    """Pictures beside each other; ``min_width`` is the narrowest a card may get, in pixels."""

    title: str
    cards: Sequence[Card]
    note: str = ""
    min_width: int = 260


Section = Text | Table | Cards


def write_page(out_html: str | Path, title: str, sections: Sequence[Section], *, lead: str = "") -> Path:
    """Write a page; it appears under its name only when it is complete.

    Args:
        out_html: Where to.
        title: Of the page.
        sections: In order.
        lead: One sentence under the title.

    Returns:
        The path written.

    Raises:
        ValueError: A table row has not as many cells as there are columns.
    """
    return files.write(Path(out_html), page(title, sections, lead=lead))


def page(title: str, sections: Sequence[Section], *, lead: str = "") -> str:
    """The page as a string."""
    links = "".join(f'<a href="#s{i}">{_text(section.title)}</a>' for i, section in enumerate(sections))
    has_overlay = any(isinstance(s, Cards) and any(card.overlay is not None for card in s.cards) for s in sections)
    switch = '<label class="switch"><input type="checkbox" id="all" checked> show masks</label>' if has_overlay else ""
    body = "\n".join(_section(section, index) for index, section in enumerate(sections))
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{_text(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<header><h1>{_text(title)}</h1>{f"<p>{_text(lead)}</p>" if lead else ""}<nav>{links}{switch}</nav></header>
<main>
{body}
</main>
<script>{SCRIPT}</script>
</body>
</html>
"""


def _section(section: Section, index: int) -> str:
    inner = (
        _text_section(section)
        if isinstance(section, Text)
        else _table(section)
        if isinstance(section, Table)
        else _cards(section)
    )
    return f'<section id="s{index}"><h2>{_text(section.title)}</h2>\n{inner}</section>'


def _text_section(section: Text) -> str:
    code = f"<pre>{_text(section.code)}</pre>" if section.code else ""
    return "".join(f"<p>{_text(paragraph)}</p>\n" for paragraph in section.paragraphs) + code


def _table(section: Table) -> str:
    for row in section.rows:
        if len(row) != len(section.columns):
            raise ValueError(f"table {section.title!r} has {len(section.columns)} columns, a row has {len(row)}: {row}")
    head = "".join(f'<th scope="col"><button type="button">{_text(column)}</button></th>' for column in section.columns)
    rows = "\n".join("<tr>" + "".join(_cell(cell, section.digits) for cell in row) + "</tr>" for row in section.rows)
    note = f'<p class="note">{_text(section.note)}</p>' if section.note else ""
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table></div>{note}'


def _cell(cell: Cell, digits: int) -> str:
    if cell is None:
        return "<td></td>"
    if isinstance(cell, bool) or not isinstance(cell, int | float):
        return f"<td>{_text(str(cell))}</td>"
    shown = str(cell) if isinstance(cell, int) else f"{cell:.{digits}g}"
    return f'<td class="number" data-value="{cell!r}">{shown}</td>'


def _cards(section: Cards) -> str:
    note = f'<p class="note">{_text(section.note)}</p>' if section.note else ""
    cards = "\n".join(_card(card) for card in section.cards)
    return f'{note}<div class="cards" style="--least:{int(section.min_width)}px">{cards}</div>'


def _card(card: Card) -> str:
    over = f'<img class="over" loading="lazy" alt="masks" src="{_data_url(card.overlay)}">' if card.overlay else ""
    details = f"<pre>{_text(card.details)}</pre>" if card.details else ""
    source = _data_url(card.image)
    return (
        f'<figure><div class="stack"><img loading="lazy" alt="{_text(card.caption)}" src="{source}">{over}</div>'
        f"<figcaption>{_text(card.caption)}{details}</figcaption></figure>"
    )


def _data_url(picture: Picture) -> str:
    """A picture as a ``data:`` address; files are decoded and written again, so that whatever they are, it is a PNG."""
    if not isinstance(picture, Image.Image):
        with Image.open(picture) as opened:
            opened.load()
            picture = opened
    if picture.mode not in ("RGB", "RGBA", "L", "P"):
        picture = picture.convert("RGB")
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _text(text: str) -> str:
    return html.escape(text, quote=True)
