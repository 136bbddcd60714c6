"""How commands end: one named line, and a status that is 0 only for success."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flmm_plugin.errors import DataNotFound
from flmm_plugin.exit_codes import status_of
from flmm_plugin.needs import NotReady


def _deep() -> int:
    return _deep()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (DataNotFound("first\n  second"), "DataNotFound: first second"),
        (FileNotFoundError(2, "No such file or directory", "gone.json"), "gone.json: No such file"),
        (OSError(30, "Read-only file system", "/ro/x"), "/ro/x: Read-only file system"),
        (OSError(28, "No space left on device"), "No space left"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "UTF-8"),
        (MemoryError(), "memory"),
    ],
)
def test_what_has_a_name_is_one_line(error: BaseException, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> int:
        raise error

    assert status_of(fail) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("flmm: ")
    assert said in shown
    assert shown.count("\n") == 1


def test_what_is_missing_is_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> int:
        raise NotReady("this is missing:\n  model  a\n  sam    b")

    assert status_of(fail) == 2
    assert capsys.readouterr().err == "flmm: NotReady: this is missing:\n  model  a\n  sam    b\n"


def test_deep_input_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(_deep) == 2
    assert "nested too deeply" in capsys.readouterr().err


def test_a_bug_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        status_of(lambda: 1 // 0)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_command_says_what_is_saved(
    number: signal.Signals, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def stop() -> int:
        os.kill(os.getpid(), number)
        return 0

    assert status_of(stop, stopped=lambda: "3 steps are saved; the same line goes on") == status
    assert "; 3 steps are saved; the same line goes on\n" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before


def test_output_that_cannot_be_written_is_a_failure() -> None:
    code = "import sys; from flmm_plugin.exit_codes import status_of; sys.exit(status_of(lambda: print('x') or 0))"
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_torch_is_announced_once_and_only_if_it_is_needed() -> None:
    code = (
        "import sys; from flmm_plugin.command_line import announce; announce(); announce();"
        "import importlib.util as u; {}; print(len([f for f in sys.meta_path if 'Before' in type(f).__name__]))"
    )
    for what, left in (("pass", "1"), ("u.find_spec('torch'), u.find_spec('torch')", "0")):
        done = subprocess.run(
            [sys.executable, "-c", code.format(what)], capture_output=True, text=True, check=True, env={**os.environ}
        )
        assert done.stdout.strip() == left
        assert done.stderr.count("loading torch") == 1 - int(left)
