"""A misspelt command, option or choice: the nearest known name in one line, exit status 2."""

from __future__ import annotations

import pytest

from flmm_plugin.cli import main


@pytest.mark.parametrize(
    ("line", "near"),
    [
        ("gruond a.png x", "ground"),
        ("list --jsn", "--json"),
        ("ground a.png x --devcie cuda", "--device"),
        ("heads shwo", "show"),
        ("preserve --model flmm_tiny --tasks mme --plant logt", "logit"),
        ("tiny pth", "path"),
        ("demo --scens 3", "--scenes"),
    ],
)
def test_the_nearest_name(line: str, near: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(line.split())
    assert exit_.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"did you mean {near!r}?" in said


def test_nothing_near_is_nothing_offered(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["list", "--zzzzzz"])
    assert "did you mean" not in capsys.readouterr().err
