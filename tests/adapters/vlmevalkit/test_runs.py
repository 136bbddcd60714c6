"""Whole runs of the kit in processes of their own: killed and resumed by two; an unmodified run.py with the hook."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from flmm_plugin.adapters.vlmevalkit.command import HOOK_FOLDER

#: Each starts the kit anew up to three times, which is slow on a machine that does other things too.
pytestmark = pytest.mark.timeout(1500)

MODULE = "flmm_plugin.adapters.vlmevalkit"
SAMPLES = 8


def words(out: Path) -> list[str]:
    return ["--model", "flmm_tiny", "--data", "RefCOCO_SEG_TINY", "--limit", str(SAMPLES), "--work-dir", str(out)]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def test_a_killed_run_is_resumed_by_two_processes_and_asks_nothing_twice(kit: Path) -> None:
    out = kit / "killed"
    env = {**os.environ, "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}
    journal = out / "flmm_tiny" / "0of1_RefCOCO_SEG_TINY.flmm.jsonl"
    first = subprocess.Popen(
        [sys.executable, "-P", "-m", MODULE, *words(out)], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline and first.poll() is None:
        if journal.is_file() and journal.read_bytes().count(b"\n") >= 3:
            first.send_signal(signal.SIGKILL)
        time.sleep(0.02)
    assert first.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    kept = journal.read_bytes().count(b"\n")
    assert 3 <= kept < SAMPLES
    launcher = [sys.executable, "-P", "-m", "torch.distributed.run", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launcher, f"--master-port={free_port()}", "-m", MODULE, *words(out)], env=env, capture_output=True, text=True,
        timeout=700, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    said = re.findall(r"(\d+) answers from disk, (\d+) new", done.stderr)
    assert len(said) == 2, "each of two processes says what it did"
    assert sum(int(found) for found, _ in said) == kept
    assert sum(int(new) for _, new in said) == SAMPLES - kept
    table = pd.read_csv(out / "flmm_tiny" / "flmm_tiny_RefCOCO_SEG_TINY.tsv", sep="\t")
    assert list(table["index"]) == list(range(SAMPLES))
    assert all(str(reply).startswith('{"text"') for reply in table["prediction"])
    assert (out / "flmm_tiny" / "flmm_tiny_RefCOCO_SEG_TINY_score.json").is_file()
    assert not list(out.rglob("*.flmm.jsonl"))


def test_an_unmodified_run_of_a_clone_finds_everything_with_the_hook(kit: Path) -> None:
    import importlib.util

    spec = importlib.util.find_spec("vlmeval")
    assert spec is not None
    assert spec.origin is not None
    package, clone = Path(spec.origin).parent, kit / "clone"
    (clone / "vlmeval").mkdir(parents=True)
    for entry in package.iterdir():  # a clone has run.py beside the package, not in it
        if entry.name not in ("run.py", "__pycache__"):
            (clone / "vlmeval" / entry.name).symlink_to(entry)
    shutil.copy(package / "run.py", clone / "run.py")
    out = kit / "hooked"
    command = [sys.executable, str(clone / "run.py"), "--model", "flmm_tiny", "--data", "POPE_TINY", "NO_SUCH_DATA"]
    done = subprocess.run(
        [*command, "--limit", "2", "--work-dir", str(out)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HOOK_FOLDER)}, capture_output=True, text=True,
        timeout=700, check=False,
    )  # fmt: skip
    assert (out / "flmm_tiny" / "flmm_tiny_POPE_TINY_score.csv").is_file(), done.stderr[-3000:]
    assert (out / "flmm_tiny" / "flmm_tiny_POPE_TINY.tsv").is_file(), "the hook asks for a format that cuts nothing"
    assert "no judge and no key" in done.stderr
    assert "flmm: flmm_tiny x POPE_TINY: done" in done.stderr
    assert "flmm: flmm_tiny x NO_SUCH_DATA: FAILED: invalid_dataset" in done.stderr
    assert done.returncode == 1
