"""``flmm bench``: its groups, what it refuses, and a quick run."""

from __future__ import annotations

from pathlib import Path

import pytest

from flmm_plugin.bench import groups
from flmm_plugin.cli import bench, main


def test_groups_that_are_named_are_those_that_exist() -> None:
    assert tuple(groups.GROUPS) == bench.GROUPS
    assert set(bench.FULL) <= set(bench.GROUPS)


@pytest.mark.parametrize(
    ("words", "said"),
    [(["pases"], "passes"), (["--full"], "--device cuda"), (["--device", "cuda:99"], "not on this machine")],
)
def test_what_cannot_be_measured_is_refused(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *words]) == 2
    assert said in capsys.readouterr().err


def test_quick_run_writes_results_named_by_device_and_versions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "seals", "--quick", "--out", str(tmp_path)]) == 0
    assert "seal/wall" in capsys.readouterr().out
    (targets,) = tmp_path.glob("cpu-*-torch*-transformers*-targets.csv")
    assert "seal on the weights" in targets.read_text()
