"""The page in a real browser, at 0, 1 and 10,000 samples: usable, escaped, worst first, masks as they were logged."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flmm_plugin.errors import DataNotFound
from flmm_plugin.records import decode_rle, encode_rle
from flmm_plugin.reports.comparison import compare
from flmm_plugin.reports.explorer import write_explorer
from flmm_plugin.reports.result_files import read_results
from flmm_plugin.reports.sample_files import PhraseView, SampleView, read_samples
from flmm_plugin.reports.table_layouts import LAYOUTS
from flmm_plugin.reports.verdicts import read_verdicts
from tests.browser import Browser
from tests.reports.conftest import chat_sample, mask_sample, square

EVIL = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"> & <b>"
PAINTED = "document.querySelectorAll('canvas[data-painted]')"
CARDS = "document.querySelectorAll('.card')"
TYPED = "byId('find').dispatchEvent(new Event('input', {bubbles: true}))"


@pytest.fixture
def browse(browser: Browser) -> Callable[..., str]:
    """``browse(page, fragment, masks)``: the page's DOM once that many masks are painted."""

    def dom(page: Path, fragment: str = "", masks: int = 0) -> str:
        with browser.open(page, fragment) as opened:
            opened.wait(f"{PAINTED}.length >= {masks}")
            return opened.dom()

    return dom


def cards(dom: str) -> list[tuple[str, int]]:
    """Task and document of every card, in order."""
    return [(m[2], int(m[1])) for m in re.finditer(r'<figure class="card" data-doc="(\d+)" data-task="([^"]*)"', dom)]


def count(dom: str) -> str:
    return re.search(r'<output id="count">([^<]*)', dom)[1]


def models(dom: str) -> list[str]:
    """Rows of the page's tables, in order."""
    return re.findall(r'<tr class="(?:published|flmm|stock)"><th scope="row">([^<]*)', dom)


def painted(dom: str) -> list[int]:
    return [int(number) for number in re.findall(r'data-painted="(\d+)"', dom)]


def sample(doc: int, iou: float, phrase: str = "a thing", image: str = "", **more: object) -> SampleView:
    target = encode_rle(square((40, 60), 5, 5, 10))
    phrases = (PhraseView(phrase, iou, 0.5, encode_rle(square((40, 60), 8, 5, 10)), target),)
    view = SampleView("F-LMM", "flmm_refcoco_val", doc, "find", phrase, "", image=image, phrases=phrases)
    return replace(view, **more)


def test_no_samples(tmp_path: Path, browser: Browser) -> None:
    facts = write_explorer(tmp_path / "page.html", [compare(LAYOUTS["2"], [])], [])
    assert facts.samples == 0
    with browser.open(facts.path) as page:
        dom = page.dom()
        page.run("document.querySelectorAll('th button')[1].click()")
        by_value = page.dom()
        page.run("document.querySelectorAll('th button')[1].click()")
        again = page.dom()
    assert "No samples: the runs were made without --log_samples" in dom
    assert cards(dom) == []
    assert models(dom) == ["X-Decoder", "SEEM", "GroundingSAM", "OVSeg", "LISA", "F-LMM"]
    # By the numbers of that column, the highest first, each group by itself.
    assert models(by_value) == ["LISA", "OVSeg", "GroundingSAM", "SEEM", "X-Decoder", "F-LMM"]
    assert models(again) == ["X-Decoder", "SEEM", "GroundingSAM", "OVSeg", "LISA", "F-LMM"]


def test_one_sample_with_text_that_attacks(tmp_path: Path, picture: Path, browse: Callable[..., str]) -> None:
    one = sample(7, 0.5, EVIL, str(picture), answer=EVIL, stock="another " + EVIL, question=EVIL)
    facts = write_explorer(tmp_path / "page.html", [], [one], title=f"Report {EVIL}", notes=[EVIL])
    assert (facts.pictures, facts.left_out, facts.unreadable) == (1, 0, 0)
    dom = browse(facts.path, masks=1)
    assert unescape(re.search(r"<title>(.*?)</title>", dom, re.DOTALL)[1]) == f"Report {EVIL}"
    assert '<img src="x"' not in dom
    assert cards(dom) == [("flmm_refcoco_val", 7)]
    # The page's own decoder paints exactly the pixels of the mask.
    assert painted(dom) == [int(decode_rle(one.phrases[0].predicted).sum())] == [100]
    assert painted(browse(facts.path, "predicted=0", masks=1)) == [0]
    assert 'class="answers different"' in dom
    assert 'src="data:image/jpeg;base64,' in dom


def test_the_page_decodes_any_mask(tmp_path: Path, browse: Callable[..., str]) -> None:
    noise = [np.random.default_rng(side).random((side, 200 - side)) > 0.4 for side in (1, 3, 53)]
    views = [sample(n, n / 4, phrases=(PhraseView("", n / 4, None, encode_rle(m), None),)) for n, m in enumerate(noise)]
    facts = write_explorer(tmp_path / "page.html", [], views)
    assert painted(browse(facts.path, masks=len(noise))) == [int(mask.sum()) for mask in noise]


def many(picture: Path) -> Iterable[SampleView]:
    for doc in range(10_000):
        kind = "rare unicorn" if doc % 1000 == 3 else f"thing number {doc}"
        yield sample(doc, (doc * 37 % 10_000) / 10_000, kind, str(picture), stock="" if doc % 2 else "differs")


def test_ten_thousand_samples(tmp_path: Path, picture: Path, browser: Browser) -> None:
    facts = write_explorer(tmp_path / "page.html", [], many(picture))
    assert (facts.samples, facts.pictures) == (10_000, 1)
    assert facts.path.stat().st_size < 6_000_000
    with browser.open(facts.path) as page:
        page.wait(f"{PAINTED}.length > 0")
        dom = page.dom()
        assert count(dom) == "10000 of 10000 samples"
        first = cards(dom)
        assert 48 <= len(first) <= 240  # made while scrolling, never all at once
        values = [doc * 37 % 10_000 for _, doc in first]
        assert values == sorted(values)
        assert values[0] == 0
        assert len(painted(dom)) < len(first)
        page.run("window.scrollTo(0, document.body.scrollHeight)")
        page.wait(f"{CARDS}.length > {len(first)}")
        # What is far away keeps neither its picture nor its masks.
        page.wait(f"!{CARDS}[0].querySelector('img').src && !('painted' in {CARDS}[0].querySelector('canvas').dataset)")
        page.run("byId('find').value = 'UNICORN rare'; byId('order').value = 'document'; " + TYPED)
        page.wait("byId('count').textContent.startsWith('10 ')")
        assert [doc for _, doc in cards(page.dom())] == list(range(3, 10_000, 1000))
    with browser.open(facts.path, "low=0.2&high=0.2004&order=best&differ=1") as page:
        both = page.dom()
    assert count(both) == "3 of 10000 samples"
    assert [doc * 37 % 10_000 for _, doc in cards(both)] == [2004, 2002, 2000]


def test_masks_are_switched_on_the_page(tmp_path: Path, picture: Path, browser: Browser) -> None:
    facts = write_explorer(tmp_path / "page.html", [], [sample(0, 0.5, image=str(picture))])
    with browser.open(facts.path) as page:
        page.wait(f"{PAINTED}.length == 1")
        for name, expected in (("predicted", [0, True]), ("target", [0, False])):
            page.run(f"byId('{name}').click()")
            drawn = f"{PAINTED}[0].getContext('2d').getImageData(0, 0, 60, 40).data.some(value => value > 0)"
            assert [page.run(f"Number({PAINTED}[0].dataset.painted)"), page.run(drawn)] == expected, name
        page.run("document.querySelector('.stack').click()")
        assert page.run("getComputedStyle(document.querySelector('.stack canvas')).display") == "none"


def test_pictures_beyond_the_budget_go_to_the_worst_first(tmp_path: Path) -> None:
    for number in range(3):
        Image.effect_noise((300, 300), 90).save(tmp_path / f"{number}.png")
    samples = [sample(n, iou, image=str(tmp_path / f"{n}.png")) for n, iou in enumerate((0.9, 0.1, 0.5))]
    samples.append(sample(3, 0.3, image=str(tmp_path / "gone.png")))
    facts = write_explorer(tmp_path / "page.html", [], samples, megabytes=0.05)
    assert (facts.pictures, facts.left_out, facts.unreadable) == (1, 2, 1)
    data = json.loads(re.search(r'id="data">(.*?)</script>', facts.path.read_text())[1])
    assert [(one[2], one[7]) for one in data["samples"]] == [(1, 0), (3, -2), (2, -3), (0, -3)]


def test_both_arms_side_by_side_from_their_logs(
    write_run: Callable[..., Path], picture: Path, tmp_path: Path, browse: Callable[..., str]
) -> None:
    llava = "pretrained=llava-hf/llava-1.5-7b-hf"
    asked = [chat_sample(n, f"Question {n}?", "Yes", "Yes") | {"score": float(n != 1)} for n in range(3)]
    theirs = [*asked[:1], chat_sample(1, "Question 1?", "No", "Yes"), chat_sample(2, "Another question?", "Yes", "Yes")]
    masks = [mask_sample(0, ["left thing", "right thing"], str(picture), [0, 5])]
    ours = write_run("ours", "flmm_llava", {"mme": {"score": 1.0}, "flmm_refcoco_val": {"cIoU": 50.0}}, arguments=llava,
                     record={}, samples={"mme": asked, "flmm_refcoco_val": masks})  # fmt: skip
    stock = write_run("stock", "llava_hf", {"mme": {"score": 1.0}}, arguments=llava, samples={"mme": theirs})
    runs = read_results([ours, stock])
    views = {(view.task, view.doc_id): view for view in read_samples(runs)}
    assert [views["mme", n].stock for n in range(3)] == [" Yes", " No", None]  # another question's answer is not beside
    grounded = views["flmm_refcoco_val", 0]
    assert [round(phrase.iou, 3) for phrase in grounded.phrases] == [1.0, 0.333]
    assert grounded.image == str(picture)
    assert decode_rle(grounded.phrases[1].target).sum() == 100
    facts = write_explorer(tmp_path / "page.html", [compare(LAYOUTS["1"], runs)], views.values())
    dom = browse(facts.path, "differ=1")
    assert cards(dom) == [("mme", 1)]
    assert re.search(r"F-LMM</h4><span[^>]*>\s*Yes</span>.*stock</h4><span[^>]*>\s*No</span>", dom)


def test_verdict_of_preservation_stands_first(tmp_path: Path) -> None:
    first = {"where": "x", "left": "Yes", "right": "No <b>", "question": "Is it?"}
    checks = [
        {"name": "texts", "compared": 8, "differing": 1, "first": first, "detail": ""},
        {"name": "logits", "compared": 1, "differing": 0, "first": None, "detail": ""},
    ]
    (tmp_path / "verdict.json").write_text(json.dumps({"status": "changed", "line": "CHANGED: one", "checks": checks}))
    facts = write_explorer(tmp_path / "page.html", [], [], verdicts=read_verdicts([tmp_path]))
    text = facts.path.read_text()
    assert text.index("CHANGED: one") < text.index('id="tables"')
    assert "<div><h4>F-LMM</h4>No &lt;b&gt;</div><div><h4>stock</h4>Yes</div>" in text
    (tmp_path / "verdict.json").write_text("{}")
    with pytest.raises(DataNotFound, match="preserve"):
        read_verdicts([tmp_path])


def test_what_settings_did_is_shown_as_theirs(tmp_path: Path) -> None:
    def checks(differing: int, left: str) -> list[dict[str, object]]:
        first = {"where": "x", "left": left, "right": "Yes.", "question": "Is it?"}
        return [{"name": "texts", "compared": 8, "differing": differing, "first": first if differing else None}]

    verdict = {"status": "unchanged", "line": "UNCHANGED", "checks": checks(3, "Yes"), "noise": checks(3, "Yes"),
               "same_settings": checks(0, "")}  # fmt: skip
    page = tmp_path / "page.html"

    def shown() -> str:
        (tmp_path / "verdict.json").write_text(json.dumps(verdict))
        return write_explorer(page, [], [], verdicts=read_verdicts([tmp_path])).path.read_text()

    row = '<th scope="row">texts</th><td class="number">8</td>' + '<td class="number">3</td>' * 2
    text = shown()
    assert "<th>stock from itself</th><th>F-LMM from stock under the same settings</th>" in text
    assert row + '<td class="number">0</td>' in text
    assert "First difference" not in text
    verdict |= {"status": "changed", "same_settings": checks(1, "Yes!")}
    text = shown()
    assert row + '<td class="number">1</td>' in text
    assert "<h4>F-LMM</h4>Yes.</div><div><h4>stock</h4>Yes!</div>" in text


def test_failed_and_foreign_replies_are_shown_as_they_are(write_run: Callable[..., Path]) -> None:
    error = json.dumps({"masks": [], "boxes": [], "scores": [], "error": {"type": "BadImage", "message": "cut off"}})
    lines = [
        {"doc_id": 0, "input": "q", "target": "t", "filtered_resps": error},
        {"doc_id": 1, "input": "q", "target": "t", "filtered_resps": '{"not": "masks"}'},
        {"doc_id": 2, "input": "q", "target": "t", "resps": [["{broken"]], "filtered_resps": "x"},
    ]
    run = write_run("a", "flmm_llava", {"flmm_refcoco_val": {"cIoU": 0.0}}, samples={"flmm_refcoco_val": lines})
    views = list(read_samples(read_results([run])))
    assert views[0].error == "BadImage: cut off"
    assert [view.answer for view in views[1:]] == ['{"not": "masks"}', "{broken"]
