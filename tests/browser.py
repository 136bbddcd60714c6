"""A headless Chromium that tests drive over its debugging pipe: they wait for what they need to see, never for a time.

Chromium reads commands as JSON from descriptor 3 and writes answers and events to descriptor 4, each ended by a zero
byte (``--remote-debugging-pipe``), so no WebSocket library is needed. Protocol:
https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

#: Puts two inherited descriptors where Chromium looks for them, then becomes Chromium.
_LAUNCHER = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
os.dup2(ends[0], 3), os.dup2(ends[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
#: What a page that does not come to show it may take; a crowded machine is slow, not wrong.
_PATIENCE = 120.0
#: A page that is not in front draws no frames, so it is looked at by the clock.
_WAIT = "new Promise(done => { const look = () => (%s) ? done(true) : setTimeout(look, 16); look(); })"


class Browser:
    """A running Chromium; `open` gives pages of it."""

    def __init__(self, program: str, home: Path) -> None:
        reads, self._write = os.pipe()
        self._read, writes = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _LAUNCHER, str(reads), str(writes), program, "--headless", "--no-sandbox",
             "--disable-gpu", "--window-size=1200,1600", f"--user-data-dir={home}", "--remote-debugging-pipe"],
            pass_fds=(reads, writes), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(reads)
        os.close(writes)
        self._numbers = itertools.count(1)
        self._rest = b""

    def close(self) -> None:
        """End it."""
        os.close(self._write)  # Chromium ends when nobody is left to command it
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._read)

    @contextmanager
    def open(self, page: Path | str, fragment: str = "", *, width: int = 1200, dark: bool = False) -> Iterator[Page]:
        """A page from disk or of a server, loaded, in a tab of its own until the block ends."""
        address = f"{page.as_uri()}#{fragment}" if isinstance(page, Path) else page
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.ask("Page.enable", session)
        self.ask(
            "Emulation.setDeviceMetricsOverride", session, width=width, height=1600, deviceScaleFactor=1, mobile=False
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", session, features=[scheme])
        self.ask("Page.navigate", session, url=address)
        deadline = time.monotonic() + _PATIENCE
        while True:
            event = self._next(deadline, f"{page} to load")
            if event.get("method") == "Page.loadEventFired" and event.get("sessionId") == session:
                break
        try:
            yield Page(self, session)
        finally:
            self.ask("Target.closeTarget", targetId=target)

    def ask(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """What Chromium answers to a command; events that come first are passed over."""
        number = next(self._numbers)
        command = {"id": number, "method": method, "params": parameters}
        os.write(self._write, json.dumps(command | ({"sessionId": session} if session else {})).encode() + b"\0")
        deadline = time.monotonic() + _PATIENCE
        while True:
            message = self._next(deadline, f"{method} {parameters}")
            if message.get("id") == number:
                assert "error" not in message, message["error"]
                result: dict[str, Any] = message["result"]
                return result

    def _next(self, deadline: float, what: str) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError(f"Chromium did not come to {what[:500]} in {_PATIENCE:.0f} s")
            read = os.read(self._read, 1 << 20)
            if not read:
                raise RuntimeError(f"Chromium ended with {self._process.wait()} instead of {what[:500]}")
            self._rest += read
        message, _, self._rest = self._rest.partition(b"\0")
        parsed: dict[str, Any] = json.loads(message)
        return parsed


class Page:
    """One loaded page."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self._session = browser, session

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression; a promise is waited for."""
        done = self._browser.ask(
            "Runtime.evaluate", self._session, expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def wait(self, condition: str) -> None:
        """Until a JavaScript condition holds."""
        self.run(_WAIT % condition)

    def dom(self) -> str:
        """The document as it now is."""
        return str(self.run("document.documentElement.outerHTML"))

    def picture(self, path: Path) -> None:
        """What is to be seen, as a PNG or JPEG file."""
        form = "jpeg" if path.suffix == ".jpg" else "png"
        shot = self._browser.ask("Page.captureScreenshot", self._session, format=form)
        path.write_bytes(base64.b64decode(shot["data"]))
