"""``flmm report``: what is asked for is written, and what is missing is said in words that help."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from flmm_plugin.cli import main
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
