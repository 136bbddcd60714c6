"""The page: self-contained, escaped, complete or absent."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flmm_plugin.reports.gallery import Card, Cards, Table, Text, page, write_page

EVIL = "<script>alert('x')</script> & \"quotes\""


class Outline(HTMLParser):
    """Tags, their attributes, and the text outside of style and script."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.text.append(data)


def picture(colour: tuple[int, ...] = (10, 20, 30), mode: str = "RGB") -> Image.Image:
    return Image.new(mode, (8, 6), colour)


def outline(source: str) -> Outline:
    parser = Outline()
    parser.feed(source)
    assert parser.open == []
    return parser


def full_page() -> str:
    return page(
        f"Title {EVIL}",
        [
            Text(f"One {EVIL}", [EVIL, "second"], code=EVIL),
            Table("Two", ["arm", EVIL], [["trained", 0.75123], [EVIL, 12], [None, float("nan")]], note=EVIL),
            Cards(
                "Three", [Card(picture(), EVIL, overlay=picture((1, 2, 3, 4), "RGBA"), details=EVIL), Card(picture())]
            ),
        ],
        lead=EVIL,
    )


def test_all_text_is_escaped_and_tags_balance() -> None:
    source = full_page()
    parsed = outline(source)
    assert source.count("alert(") == source.count("&lt;script&gt;alert(")
    assert "".join(parsed.text).count(EVIL) >= 9
    assert len([tag for tag, _ in parsed.tags if tag == "script"]) == 1


def test_nothing_is_fetched_from_anywhere() -> None:
    source = full_page()
    for tag, attributes in outline(source).tags:
        for name in ("src", "href"):
            address = attributes.get(name)
            assert address is None or address.startswith(("data:image/png;base64,", "#")), (tag, address)
    assert "http://" not in source
    assert "https://" not in source
    assert "default-src 'none'" in source
    assert "@import" not in source
    assert "url(" not in source


def test_pictures_survive_the_way_into_the_page_and_load_lazily() -> None:
    images = [attributes for tag, attributes in outline(full_page()).tags if tag == "img"]
    assert len(images) == 3
    assert all(image["loading"] == "lazy" for image in images)
    decoded = [Image.open(io.BytesIO(base64.b64decode(str(i["src"]).partition(",")[2]))) for i in images]
    assert decoded[0].getpixel((0, 0)) == (10, 20, 30)
    assert decoded[1].mode == "RGBA"
    assert decoded[1].getpixel((3, 3)) == (1, 2, 3, 4)


def test_picture_from_a_file_of_any_kind(tmp_path: Path) -> None:
    for name, mode in (("a.jpg", "CMYK"), ("b.png", "I;16"), ("c.gif", "P")):
        Image.fromarray(np.zeros((4, 4), np.uint8)).convert(mode if mode != "I;16" else "I").convert(
            "CMYK" if mode == "CMYK" else "P"
        ).save(tmp_path / name)
        assert "data:image/png;base64," in page("p", [Cards("c", [Card(tmp_path / name)])])


def test_numbers_sort_as_numbers() -> None:
    source = full_page()
    assert re.search(r'<td class="number" data-value="0\.75123">0\.7512</td>', source)
    assert '<td class="number" data-value="12">12</td>' in source
    assert "<td></td>" in source


def test_mask_switch_only_where_there_are_masks() -> None:
    assert 'id="all"' in full_page()
    assert 'id="all"' not in page("p", [Cards("c", [Card(picture(), "x")])])


def test_ragged_table_is_refused_and_leaves_the_old_page(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "page.html"
    assert write_page(out, "old", [Text("t")]) == out
    with pytest.raises(ValueError, match="columns"):
        write_page(out, "new", [Table("t", ["a", "b"], [["x"]])])
    assert "<title>old</title>" in out.read_text(encoding="utf-8")
    assert [path.name for path in out.parent.iterdir()] == ["page.html"]
