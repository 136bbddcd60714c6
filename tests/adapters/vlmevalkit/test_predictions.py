"""Result files: an answer is read as it was written, and a failed one is nothing that a rule could read."""

from __future__ import annotations

import csv
import errno
import functools
import pickle
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from flmm_plugin.adapters.vlmevalkit import messages, predictions
from flmm_plugin.errors import BadAnnotation, OutputFailed

ODD = ["NA", "None", "null", "", "nan", "N/A", "<NA>", "1e5", "007", "1.0", "True", " a ", "a\r\nb\rc\nd", 'q"t\t\\"',
       "=1+1", "#DIV/0!", "a\0b", "é\u4e2d\U0001f600", "x" * 40_500, messages.FAILED]  # fmt: skip


def kit_dump(content: Any, path: str) -> None:
    """As the kit writes: by the ending, and a pickle of another name where that fails."""
    try:
        if path.endswith(".xlsx"):
            content.to_excel(path, index=False)
        elif path.endswith(".tsv"):
            content.to_csv(path, sep="\t", index=False, quoting=csv.QUOTE_ALL)
        else:
            Path(path).write_bytes(pickle.dumps(content))
    except Exception:
        Path(path).with_suffix(".pkl").write_bytes(pickle.dumps(content))


write = functools.partial(predictions.keeping, functools.partial(predictions.whole, kit_dump))


def table(replies: list[str]) -> pd.DataFrame:
    return pd.DataFrame({"index": range(len(replies)), "answer": "x", "prediction": replies})


@pytest.mark.parametrize("replies", [ODD, ["007", "1"], ["", ""], ["NA"]])
def test_every_answer_is_read_as_it_was_written(tmp_path: Path, replies: list[str]) -> None:
    path = tmp_path / "m_D.tsv"
    write(table(replies), str(path))
    assert list(predictions.read(path)["prediction"]) == replies
    scored = predictions.Readers().read_csv(path, sep="\t")
    assert list(scored["prediction"]) == [messages.NOTHING if one == messages.FAILED else one for one in replies]
    shown = predictions.marked(lambda _: scored, path)
    assert list(shown["prediction"]) == replies, "the kit asks again what has its mark"


def test_what_a_format_does_not_keep_is_refused_and_not_left_behind(tmp_path: Path) -> None:
    path = tmp_path / "m_D.xlsx"
    kept = ["NA", "None", "", "007", "Yes", "1e5"]
    write(table(kept), path)
    assert list(predictions.read(path)["prediction"]) == kept
    for lost in ("=1+1", "x" * 40_500):
        with pytest.raises(OutputFailed, match="PRED_FORMAT=tsv"):
            write(table(["Yes", lost]), path)
        assert not path.exists()


def test_words_of_the_reference_stay_words_and_nothing_stays_nothing(tmp_path: Path) -> None:
    path = tmp_path / "D.tsv"
    pd.DataFrame({"index": range(4), "answer": ["None", "2", "", "NA"], "C": ["NA", "", "x", "y"]}).to_csv(
        path, sep="\t", index=False
    )
    read = predictions.Readers().read_csv(path, sep="\t")
    assert [str(one) for one in read["answer"]] == ["None", "2", "nan", "NA"]
    assert list(read["C"].isna()) == [True, True, False, False], "other columns are the kit's"


def test_what_cannot_be_written_whole_leaves_the_older_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m_D.tsv"
    write(table(["Yes"]), path)
    before = path.read_bytes()

    def full(content: Any, target: str) -> None:
        Path(target).write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OutputFailed, match="full"):
        predictions.whole(full, table(["No"]), path)
    assert [one.name for one in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == before
    write({0: "Yes"}, tmp_path / "01_D.pkl")
    assert pickle.loads((tmp_path / "01_D.pkl").read_bytes()) == {0: "Yes"}
    path.unlink()
    monkeypatch.setattr(pd.DataFrame, "to_csv", lambda self, target, **_: Path(target).write_text("half") / 0)
    with pytest.raises(OutputFailed, match="1 of 1 answers"):
        write(table(["Yes"]), path)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["01_D.pkl", "m_D.pkl"], "what the kit does, but not half"


def test_what_is_no_result_file_is_named(tmp_path: Path) -> None:
    for name, content in {
        "a.tsv": "index\tquestion\n0\tx\n",
        "b.tsv": "",
        "c.json": "[",
        "d.xlsx": "x",
        "e.json": "3",
    }.items():
        (tmp_path / name).write_text(content)
        with pytest.raises(BadAnnotation, match=name):
            predictions.read(tmp_path / name)
