"""The page of ``flmm serve`` in a real browser: what a visitor does, and what the browser then shows."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pycocotools.coco import COCO

ASK = "Please give me a description of the image."
STOCK = "document.querySelectorAll('#chat .stock').length"
#: Every address that the page asked for, its own left out.
OUTSIDE = (
    "performance.getEntriesByType('resource').map(one => one.name)"
    ".filter(name => !['data:', 'blob:', location.origin].some(own => name.startsWith(own)))"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """``flmm serve`` in a process of its own, ended as Ctrl-C ends it; it must end well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log.txt"
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-c", "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
             "from flmm_plugin.cli import main; raise SystemExit(main())",
             "serve", "--port", str(port), "--max-upload", "1"],
            stdout=stream, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "2"},
        )  # fmt: skip
    try:
        while f"http://127.0.0.1:{port}" not in log.read_text():
            assert process.poll() is None, log.read_text()
            try:
                process.wait(0.2)
            except subprocess.TimeoutExpired:
                continue
        yield f"http://127.0.0.1:{port}/"
        process.send_signal(signal.SIGINT)
        assert process.wait(120) in (0, 130), log.read_text()
        assert "Traceback" not in log.read_text()
    finally:
        process.kill()


def type_into(page: Any, where: str, text: str) -> None:
    """Type a text and press the button beside it."""
    page.run(
        f"""(() => {{ const box = document.querySelector('{where} textarea, {where} input');
        Object.getOwnPropertyDescriptor(Object.getPrototypeOf(box), 'value').set.call(box, {json.dumps(text)});
        box.dispatchEvent(new Event('input', {{bubbles: true}})); return 1; }})()"""
    )
    page.wait(f"!document.querySelector('{where} button.submit-button').disabled")
    page.run(f"document.querySelector('{where} button.submit-button').click()")


def ask(page: Any, question: str = ASK) -> None:
    """Ask, and wait until the turn is complete."""
    before = page.run(STOCK)
    type_into(page, "#question", question)
    page.wait(f"{STOCK} > {before}")


def tab(page: Any, name: str) -> None:
    page.run(
        f"[...document.querySelectorAll('button[role=tab]')].find(one => one.innerText.trim() == '{name}').click()"
    )


def drag(page: Any, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Drag over the picture, from and to fractions of it."""
    page.run(
        f"""(() => {{ const stage = document.querySelector('#picture .stage'), box = stage.getBoundingClientRect();
        stage.setPointerCapture = () => {{}};
        const at = (kind, x, y) => stage.dispatchEvent(new PointerEvent(kind, {{bubbles: true, pointerId: 1,
            clientX: box.left + x * box.width, clientY: box.top + y * box.height}}));
        at('pointerdown', {start[0]}, {start[1]}); at('pointermove', {end[0]}, {end[1]});
        at('pointerup', {end[0]}, {end[1]}); return 1; }})()"""
    )


def test_a_visitor_chats_and_looks_at_words_places_and_heads(browser: Any, server: str) -> None:
    with browser.open(server, width=1400) as page:
        page.wait("document.querySelector('#picture img.base')")
        ask(page)
        assert "equal to the stock model" in page.run("document.querySelector('#chat .stock').innerText")
        named = page.run("document.querySelectorAll('#picture .layer').length")
        assert named >= 3
        assert page.run("document.querySelectorAll('#chat .said button.named').length") > named

        # A word has a mask: the frame around it and its words beside the chat.
        page.run("document.querySelector('#chat .said button.named').click()")
        page.wait("document.querySelector('#picture .frame')")
        page.wait("document.querySelector('#told').innerText.includes('box')")
        # A word of the question gets one of its own.
        page.run("[...document.querySelectorAll('#chat .asked button')].at(-1).click()")
        page.wait(f"document.querySelectorAll('#picture .layer').length == {named + 1}")

        type_into(page, "#phrase", "the heart")
        page.wait(f"document.querySelectorAll('#picture .key').length == {named + 2}")

        drag(page, (0.1, 0.1), (0.4, 0.4))
        page.wait("document.querySelectorAll('#ranked li').length > 5")
        page.wait("document.querySelector('#told').innerText.includes('Looks there most')")
        # The same by the keyboard alone.
        first = page.run("document.querySelector('#told').innerText")
        page.run(
            """(() => { const stage = document.querySelector('#picture .stage');
            const press = key => stage.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true}));
            for (let i = 0; i < 14; i++) { press('ArrowDown'); } for (let i = 0; i < 12; i++) press('ArrowRight');
            press('Enter'); return 1; })()"""
        )
        page.wait(f"document.querySelector('#told').innerText != {json.dumps(first)}")

        tab(page, "Attention")
        page.wait("document.querySelector('#mixed-phrase textarea, #mixed-phrase input')")
        type_into(page, "#mixed-phrase", "the heart")
        page.wait("document.querySelectorAll('#heads .cells button').length == 36")
        page.wait("document.querySelectorAll('#heads button[aria-pressed=true]').length == 8")
        page.wait("document.querySelector('#mixer img')")
        before = page.run("document.querySelector('#mixer img').src")
        page.run("document.querySelector('#heads button[aria-pressed=false]').click()")
        page.wait("document.querySelectorAll('#heads button[aria-pressed=true]').length == 9")
        page.wait(f"document.querySelector('#mixer img').src != {json.dumps(before)}")

        tab(page, "Second look")
        page.wait("document.querySelector('#twice textarea, #twice input')")
        type_into(page, "#twice", "What color is the heart?")
        page.wait("document.querySelector('#compared').innerText.includes('second look')")

        tab(page, "Share")
        page.wait("document.querySelector('#save')")
        page.run("document.querySelector('#coco').click()")
        page.wait("document.querySelector('#json textarea').value.includes('segmentation')")
        coco = COCO()
        coco.dataset = json.loads(page.run("document.querySelector('#json textarea').value"))
        coco.createIndex()
        assert len(coco.anns) == named + 2
        assert coco.annToMask(coco.anns[1]).sum() == coco.anns[1]["area"]
        page.run("document.querySelector('#save').click()")
        page.wait("document.querySelector('#file a[href]')")
        with urllib.request.urlopen(page.run("document.querySelector('#file a[href]').href")) as reply:
            shared = reply.read().decode()
        assert 'src="http' not in shared
        assert shared.count("<img") >= named
        assert ASK in shared
        assert page.run(OUTSIDE) == []


def test_visitors_do_not_see_each_other(browser: Any, server: str) -> None:
    with browser.open(server) as one, browser.open(server) as other:
        for page in (one, other):
            page.wait("document.querySelector('#picture img.base')")
        type_into(one, "#question", ASK)
        type_into(other, "#question", "How many stars are there?")
        for page in (one, other):
            page.wait(f"{STOCK} == 1")
        assert ASK in one.run("document.querySelector('#chat').innerText")
        said = other.run("document.querySelector('#chat').innerText")
        assert ASK not in said
        assert "How many stars" in said


def test_what_is_typed_is_text_and_what_is_wrong_is_told(browser: Any, server: str) -> None:
    evil = "<img src=x onerror=\"document.title='owned'\"> {{value}} ${document.title='owned'} ` \\u0041 **b**"
    with browser.open(server) as page:
        page.wait("document.querySelector('#picture img.base')")
        ask(page, evil)
        assert evil in page.run("document.querySelector('#chat .asked').innerText")
        type_into(page, "#phrase", evil)
        page.wait("document.querySelector('#picture .key')")
        page.wait("document.querySelector('#told').innerText.includes('onerror')")
        assert page.run("document.title") == "F-LMM"
        type_into(page, "#phrase", "   ")
        page.wait("document.querySelector('.toast-body.error')")
        assert "empty" in page.run("document.querySelector('.toast-body.error').innerText")


@pytest.mark.slow  # FLMM_SCREENSHOTS=docs/images makes those of docs/serve.md
@pytest.mark.parametrize(("width", "dark"), [(1400, False), (400, False), (1400, True), (400, True)])
def test_nothing_is_wider_than_the_window(browser: Any, server: str, tmp_path: Path, width: int, dark: bool) -> None:
    with browser.open(f"{server}?__theme={'dark' if dark else 'light'}", width=width, dark=dark) as page:
        page.wait("document.querySelector('#picture img.base')")
        ask(page)
        assert page.run("document.documentElement.scrollWidth") <= width
        folder = Path(os.environ.get("FLMM_SCREENSHOTS", tmp_path))
        page.picture(folder / f"serve-{width}-{'dark' if dark else 'light'}.jpg")
