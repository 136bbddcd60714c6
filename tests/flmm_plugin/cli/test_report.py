"""``flmm report``: what is asked for is written, and what is missing is said in words that help."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from flmm_plugin.cli import main
from tests.flmm_plugin.test_json_lines import no_file_grows_beyond
from tests.reports.conftest import chat_sample, mask_sample, picture, write_run

__all__ = ["picture", "write_run"]  # fixtures


@pytest.fixture
def results(write_run, picture: Path) -> Path:  # type: ignore[no-untyped-def]
    masks = [mask_sample(n, ["left thing", "right thing"], str(picture), [0, n]) for n in range(3)]
    return Path(
        write_run(
            "a", "flmm_llava",
            {"mme": {"mme_perception_score": 1500.0}, "flmm_refcoco_val": {"cIoU": 71.5, "items": 6, "complete": 0}},
            arguments="pretrained=llava-hf/llava-1.5-7b-hf", record={},
            samples={"mme": [chat_sample(0, "Is it?", "Yes", "Yes")], "flmm_refcoco_val": masks},
        )
    )  # fmt: skip


def test_table_to_the_terminal_and_to_files_by_their_ending(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(results), "--table", "1,A2"]) == 0
    said = capsys.readouterr().out
    assert "### Table 1." in said
    assert "### Table A2." in said
    assert "| F-LMM (LLaVA-1.5-7B) | 1500<sup>" in said
    for ending, sign in (("csv", "table,group,row"), ("tex", r"\begin{tabular}"), ("html", "<table"), ("md", "### ")):
        out = tmp_path / f"t.{ending}"
        assert main(["report", str(results), "--table", "1", "--out", str(out)]) == 0
        assert sign in out.read_text()
    assert main(["report", str(results), "--table", "A2", "--measured-only"]) == 0
    assert "LISA" not in capsys.readouterr().out


def test_check_names_gaps_and_planted_numbers(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", "--check", str(results), "--table", "A2"]) == 1
    captured = capsys.readouterr()
    assert "table A2, LLaVA-1.5-7B, RefCOCO val: 75.2 is reproduced by no result file: not the whole" in captured.out
    assert "80 of the paper's F-LMM numbers" in captured.err
    out = tmp_path / "t.md"
    main(["report", str(results), "--table", "A2", "--out", str(out)])
    assert main(["report", str(results), "--table", "A2", "--check", str(out)]) == 0
    out.write_text(out.read_text().replace("71.5", "81.5"))
    assert main(["report", str(results), "--table", "A2", "--check", str(out)]) == 1
    assert "81.5 is supported by no result file: they give 71.5" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["6", "recall", "ablation", "samples"])
def test_figures(results: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / f"{name}.png"
    assert main(["report", str(results), "--figure", name, "--out", str(out), "--count", "2"]) == 0
    with Image.open(out) as opened:
        assert opened.width > 400


def test_page(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "page.html"
    assert main(["report", str(results), "--html", str(out)]) == 0
    assert "4 samples, 1 pictures" in capsys.readouterr().err
    assert 'data-table="A2"' in out.read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "say what to make"),
        (["--table", "1"], "give result files or folders"),
        (["absent", "--table", "1"], "there is no absent"),
        (["RESULTS", "--table", "9"], "no table '9' of numbers; known: 1, 2"),
        (["RESULTS", "--figure", "recall"], "--out recall.png"),
        (["RESULTS", "--table", "1", "--out", "no/such/folder.md"], "no folder no/such"),
        (["RESULTS", "--table", "1", "--check", "absent.md"], "write it first"),
    ],
)
def test_errors_name_the_fix(results: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", *(str(results) if word == "RESULTS" else word for word in words)]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--table", "1", "--out", "/dev/full"], "full"),
        (["--html", "/dev/full"], "full"),
        (["--figure", "samples", "--out", "/dev/full"], "full"),
        (["--table", "1", "--out", "TAKEN/below.md"], "a file stands"),
        (["--html", "TAKEN/below/page.html"], "a file stands"),
        (["--figure", "6", "--out", "FOLDER"], "a folder stands"),
    ],
)
def test_a_place_that_cannot_be_written_is_named(
    results: Path, tmp_path: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").write_text("")
    places = {"TAKEN": str(tmp_path / "taken"), "FOLDER": str(tmp_path)}
    for short, place in places.items():
        words = [word.replace(short, place) for word in words]
    assert main(["report", str(results), *words]) == 2
    told = capsys.readouterr().err
    assert "OutputFailed" in told
    assert said in told
    assert words[-1] in told or str(Path(words[-1]).parent) in told


def test_a_table_on_a_full_disk_leaves_the_older_one(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x.md"
    assert main(["report", str(results), "--table", "1", "--out", str(out)]) == 0
    good = out.read_bytes()
    with no_file_grows_beyond(100):
        assert main(["report", str(results), "--table", "A2", "--out", str(out)]) == 2
    assert "OutputFailed" in capsys.readouterr().err
    assert out.read_bytes() == good
    assert not list(tmp_path.glob(".*"))


def test_damaged_tables_are_named(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for ending in ("md", "csv", "tex", "html"):
        out = tmp_path / f"t.{ending}"
        main(["report", str(results), "--table", "A2", "--out", str(out)])
        whole = out.read_bytes()
        assert main(["report", str(results), "--table", "A2", "--check", str(out)]) == 0
        at = whole.index(b"71.5") + 3
        damaged = [
            b"",
            whole[:at],
            whole[: at // 2],
            whole[:at] + b"\xff" + whole[at:],
            b"\n",
            b"|\n| Model |\n|",
            b"table,",
        ]
        damaged += [b"### Table A2.\n|\n", b"### Table A2.\n| Model | x |\n|---|---|\n| row |\n", b"table,x\n,\n"]
        for content in damaged:
            out.write_bytes(content)
            assert main(["report", str(results), "--table", "A2", "--check", str(out)]) == 2, content
            assert str(out) in capsys.readouterr().err
