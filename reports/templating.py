"""Fill the templates of this package's tables and pages (``templates/``). Text in HTML is escaped."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    import jinja2

#: LaTeX of characters that mean something else there.
TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
}  # fmt: skip
#: LaTeX uses braces itself; its templates have other marks.
_TEX_SYNTAX: Mapping[str, Any] = {
    "variable_start_string": "<<", "variable_end_string": ">>", "block_start_string": "<%", "block_end_string": "%>",
}  # fmt: skip


def fill(template: str, **values: Any) -> Iterator[str]:
    """Return a filled template piece by piece.

    Args:
        template: Name of a file in ``templates/``, without ``.jinja``: ``table.md``, ``gallery.html``.
        **values: Values by the names that the template gives them.
    """
    return _environment(template.endswith(".tex")).get_template(f"{template}.jinja").generate(**values)


@cache
def _environment(tex: bool) -> jinja2.Environment:
    import jinja2  # here, because every start of `flmm` imports this module

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("flmm_plugin.reports"),
        autoescape=lambda name: name is not None and name.endswith(".html.jinja"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        **(_TEX_SYNTAX if tex else {}),
    )
    environment.filters.update(md=_markdown, tex=_tex, one_line=_one_line, letter=letter)
    return environment


def letter(index: int) -> str:
    """Return the letters that number marks: a, b, ... z, aa, ab, ...

    >>> letter(0), letter(25), letter(26)
    ('a', 'z', 'aa')
    """
    name = ""
    index += 1
    while index:
        index, place = divmod(index - 1, 26)
        name = chr(ord("a") + place) + name
    return name


def as_base64(image: Image.Image, form: str, **options: Any) -> str:
    """Return an image as a file of some format, in base64.

    Args:
        image: Image of a mode that the format can hold.
        form: Name of a format that PIL writes, e.g. ``PNG``.
        **options: Options of PIL for that format.
    """
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _markdown(text: str) -> str:
    """Escape text so that Markdown shows it as it is, whatever a model or a folder is called."""
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", html.escape(_one_line(text), quote=False))


def _tex(text: str) -> str:
    return "".join(TEX.get(character, character) for character in _one_line(text))
