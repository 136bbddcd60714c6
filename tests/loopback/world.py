"""Play a user with an empty home, and servers on this machine that stand for the real ones.

A forward proxy is between the user and everything else. Product code asks the real addresses; an environment variable,
``HTTPS_PROXY``, leads it here, and another, ``SSL_CERT_FILE``, has it trust certificates made for the run.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from .proxy import Answered, Fault, Proxy
from .sites import Drive, FileServer, Hub

REPOSITORY = Path(__file__).resolve().parents[2]

#: Hosts that hold plain files. The last two hold none: `datasets` asks them first, for what they know of a data set.
FILE_HOSTS = (
    "dl.fbaipublicfiles.com", "images.cocodataset.org", "bvisionweb1.cs.unc.edu", "web.archive.org",
    "opencompass.openxlab.space", "s3.amazonaws.com", "datasets-server.huggingface.co",
)  # fmt: skip

_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@dataclass
class World:
    """Servers and a user; runs between ``with`` and its end.

    Attributes:
        folder: Becomes the user's home (``home``) and working folder (``work``), both empty.
        drive, hub, files: What the hosts hold; ``files`` by host name.
        proxy: What all requests go through.
        paths: Folders in front of the path on which the user's interpreters find modules.
    """

    folder: Path
    drive: Drive = field(default_factory=Drive)
    hub: Hub = field(default_factory=Hub)
    files: dict[str, FileServer] = field(default_factory=lambda: {host: FileServer() for host in FILE_HOSTS})
    proxy: Proxy = field(default_factory=Proxy)
    paths: list[Path] = field(default_factory=list)

    def __enter__(self) -> World:
        for folder in (self.home, self.work):
            folder.mkdir(parents=True, exist_ok=True)
        self.proxy.sites |= {**self.drive.sites, **self.hub.sites, **self.files}
        self.proxy.authority.cert_pem.write_to_path(str(self.authority_file))
        self.proxy.__enter__()
        return self

    def __exit__(self, *why: Any) -> None:
        self.proxy.__exit__(*why)

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def work(self) -> Path:
        return self.folder / "work"

    @property
    def authority_file(self) -> Path:
        return self.folder / "authority.pem"

    @property
    def settings(self) -> dict[str, str]:
        """Variables that lead every client through the proxy, and into the empty home."""
        settings = {"HOME": str(self.home), "HF_HOME": str(self.home / ".cache/huggingface")}
        settings |= dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), self.proxy.address)
        trusted = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
        settings |= dict.fromkeys(trusted, str(self.authority_file))
        return settings | {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}

    def environment(self, **more: str) -> dict[str, str]:
        """Return the whole environment of a command: this process's without what would lead it elsewhere."""
        kept = {name: value for name, value in os.environ.items() if not _leads_elsewhere(name)}
        threads = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        path = os.pathsep.join(map(str, (*self.paths, REPOSITORY, *filter(None, [kept.get("PYTHONPATH")]))))
        return {**kept, **threads, **self.settings, "PYTHONPATH": path, **more}

    def here(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Have this process be the user until the test ends."""
        import huggingface_hub
        from huggingface_hub import constants

        for name in [name for name in os.environ if _leads_elsewhere(name)]:
            monkeypatch.delenv(name)
        for name, value in self.settings.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        for name, folder in (("HF_HOME", ""), ("HF_HUB_CACHE", "hub"), ("HF_XET_CACHE", "xet")):
            monkeypatch.setattr(constants, name, str(self.home / ".cache/huggingface" / folder))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(self.home / ".cache/huggingface/token"))
        monkeypatch.chdir(self.work)
        # urllib reads the variables at the first request of a process, and keeps them.
        monkeypatch.setattr(urllib.request, "_opener", None)
        huggingface_hub.close_session()

    def start(self, *words: str, **more: str) -> subprocess.Popen[bytes]:
        """Start a command of the package (``lmms_eval``, ``flmm``, ``flmm-vlmeval``) in the working folder."""
        with self.said.open("wb") as out:
            return subprocess.Popen(
                command(*words), cwd=self.work, env=self.environment(**more), stdin=subprocess.DEVNULL, stdout=out,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def run(self, *words: str, timeout: float = 600, **more: str) -> Run:
        """Run a command of the package to its end."""
        before = len(self.proxy.answered)
        process = self.start(*words, **more)
        try:
            status = process.wait(timeout)
        finally:
            self.kill(process)
        return Run(words, status, self.output, self.proxy.answered[before:])

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """Send SIGKILL to a command and what it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    @property
    def said(self) -> Path:
        """Where the output of the last command is."""
        return self.folder / "output.txt"

    @property
    def output(self) -> str:
        """What the last command wrote so far, without the colours of lmms-eval's log."""
        return re.sub(r"\x1b\[\d*m", "", self.said.read_text(errors="replace"))

    def break_(self, where: str, **how: Any) -> Fault:
        """Have something go wrong; see `Fault`."""
        fault = Fault(where, **how)
        self.proxy.faults.append(fault)
        return fault

    def mend(self) -> None:
        """Have everything work again."""
        self.proxy.faults.clear()

    @property
    def unknown(self) -> list[str]:
        """Requests that no host here answers: a client did what this world does not know."""
        return [str(one) for one in self.proxy.answered if one.bad]


@dataclass(frozen=True)
class Run:
    """A command that has ended.

    Attributes:
        words: The command and its arguments.
        status: Exit status of the command.
        output: What it wrote to both streams.
        answered: Requests that were made meanwhile.
    """

    words: Sequence[str]
    status: int
    output: str
    answered: Sequence[Answered]

    def asked(self, *parts: str) -> list[str]:
        """Return the requests whose address contains one of the texts; all without any."""
        found = (one for one in self.answered if not parts or any(part in one.request.address for part in parts))
        return [str(one) for one in found]

    @property
    def fetched(self) -> dict[str, int]:
        """Bytes of files that came, by address; pages and what the hub says about its repositories are left out."""
        found: dict[str, int] = {}
        for one in self.answered:
            address = one.request.address
            if one.sent and one.status in (200, 206) and not one.is_page and "/api/" not in address:
                found[address] = found.get(address, 0) + one.sent
        return found

    @property
    def scores(self) -> dict[str, float]:
        """Values of the metrics in the table that lmms-eval prints, the last of each name."""
        rows = re.findall(r"\|([\w@.]+)\s*\|[↑↓]\s*\|\s*([\d.]+)\s*\|", self.output)
        return {metric: float(value) for metric, value in rows}


_MODULES: Mapping[str, str] = {
    "lmms_eval": "flmm_plugin.adapters.lmms_eval.command",
    "flmm": "flmm_plugin.cli",
    "flmm-vlmeval": "flmm_plugin.adapters.vlmevalkit.command",
}


def command(name: str, *words: str) -> list[str]:
    """Return the words that start a console script of this checkout, whichever is installed."""
    code = f"import sys; sys.argv[0] = {name!r}; from {_MODULES[name]} import main; sys.exit(main())"
    return [sys.executable, "-c", code, *words]


def _leads_elsewhere(name: str) -> bool:
    upper = name.upper()
    return upper.startswith(("HF_", "FLMM_", "HUGGING", "TRANSFORMERS_", "LMMS_EVAL", "XDG_", "GDOWN")) or (
        upper in (*_PROXIES, "SSL_CERT_DIR", "LMUDATA")
    )
