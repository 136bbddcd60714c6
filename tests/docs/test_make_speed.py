"""The page of speed: figures and the profile, from rows of a result file."""

from __future__ import annotations

from types import ModuleType

from flmm_plugin.bench.results import Row


def test_the_profile_stands_beside_that_of_before(script: ModuleType) -> None:
    now = {"stage/embedded/1/U-Net": Row("", 0.0084, "s"), "stage/embedded/1/all": Row("", 0.05, "s")}
    old = {"stage/embedded/1/U-Net": Row("", 0.0151, "s")}
    lines = script.profile(now, old, "file.json").splitlines()
    assert lines[1] == 'part,"1 phrase, before","1 phrase, now","8 phrases, before","8 phrases, now"'
    assert "U-Net,15.1,8.4,," in lines
    assert lines[-1] == "all,,50.0,,"


def test_a_figure_draws_now_and_before(script: ModuleType) -> None:
    rows = {f"growth/phrases/{count}": Row("", 0.01 * count, "s") for count in (1, 8)}
    axes = script.figure("phrases", rows, rows).axes[0]
    assert [line.get_label() for line in axes.lines] == ["ground, before", "ground"]
    assert list(axes.lines[1].get_xdata()) == [1, 8]


def test_the_limit_leaves_out_what_is_no_network(script: ModuleType) -> None:
    parts = {"processor": 1, "LMM": 5, "SAM encoder": 4, "U-Net": 2, "SAM prompts": 1, "SAM decoder": 1, "rest": 90}
    now = {f"stage/embedded/{count}/{part}": Row("", value, "s") for count in (1, 8) for part, value in parts.items()}
    now |= {f"stage/embedded/{count}/all": Row("", 104.0, "s") for count in (1, 8)}
    now["picture/embedded/1 phrase/grounded"] = Row("", 10.4)
    now["picture/embedded/8 over 1 encoded"] = Row("", 3.0)
    lines = script.limits(now, "file.json").splitlines()
    assert lines[2:] == [
        '"grounded over floor, 1 phrase",embedded,10.400,1.40,1.25',
        '"8 phrases over 1, picture encoded",embedded,3.000,1.00,1.6',
    ]
