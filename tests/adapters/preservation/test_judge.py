"""Judges say the same thing twice: the second run gets the first one's answers, where the texts are equal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from lmms_eval import llm_judge
from lmms_eval.tasks.mmbench.mmbench_evals import MMBench_Evaluator
from PIL import Image

from flmm_plugin.adapters.preservation.judge import JudgeMemo


class Moody(llm_judge.ServerInterface):
    """Never says the same twice."""

    said: list[str] = []  # noqa: RUF012 (shared on purpose: each run makes a judge of its own)
    replies: list[str] = []  # noqa: RUF012

    def is_available(self) -> bool:
        return True

    def evaluate(self, request: Any) -> Any:
        self.said.append(request.messages[0]["content"])
        reply = self.replies.pop(0) if self.replies else str(len(self.said))
        if reply == "raise":
            raise ConnectionError("no judge")
        return llm_judge.Response(content=reply, model_used="moody-1")


@pytest.fixture(autouse=True)
def moody(monkeypatch: pytest.MonkeyPatch) -> type[Moody]:
    Moody.said, Moody.replies = [], []
    monkeypatch.setitem(llm_judge.ProviderFactory._provider_classes, "moody", Moody)
    return Moody


def ask(text: str, temperature: float = 0.0) -> str:
    """As a task of lmms-eval asks."""
    config = llm_judge.ServerConfig(model_name="moody", temperature=temperature)
    judge = llm_judge.get_server("moody", config)
    response = judge.evaluate(llm_judge.Request(messages=[{"role": "user", "content": text}], config=config))
    assert response.model_used == "moody-1"
    return str(response.content)


def test_the_second_run_gets_the_answers_of_the_first(tmp_path: Path, moody: type[Moody]) -> None:
    path = tmp_path / "judge.jsonl"
    with JudgeMemo(path).active() as first:
        assert [ask("yes"), ask("no"), ask("yes")] == ["1", "2", "3"]
    with JudgeMemo(path).active() as second:
        assert [ask("yes"), ask("nope"), ask("yes"), ask("no")] == ["1", "4", "3", "2"]
    assert moody.said == ["yes", "no", "yes", "nope"]
    assert first.counts == {"asked": 3, "reused": 0, "failed": 0}
    assert second.counts == {"asked": 4, "reused": 3, "failed": 0}


def test_another_temperature_is_another_question(tmp_path: Path, moody: type[Moody]) -> None:
    with JudgeMemo(tmp_path / "judge.jsonl").active():
        ask("yes")
    with JudgeMemo(tmp_path / "judge.jsonl").active():
        assert ask("yes", temperature=0.5) == "2"


def test_failures_and_silence_are_not_kept(tmp_path: Path, moody: type[Moody]) -> None:
    moody.replies = ["raise", ""]
    with JudgeMemo(tmp_path / "judge.jsonl").active() as memo:
        with pytest.raises(ConnectionError):
            ask("yes")
        assert ask("maybe") == ""
    assert memo.counts["failed"] == 2
    with JudgeMemo(tmp_path / "judge.jsonl").active():
        assert ask("yes") == "3"


def test_a_record_that_a_kill_cut_off_goes_on(tmp_path: Path, moody: type[Moody]) -> None:
    path = tmp_path / "judge.jsonl"
    with JudgeMemo(path).active():
        assert [ask("yes"), ask("no")] == ["1", "2"]
    path.write_text(path.read_text()[:-20])
    with JudgeMemo(path).active() as second:
        assert [ask("yes"), ask("no")] == ["1", "3"], "only what was lost is asked again"
    with JudgeMemo(path).active() as third:
        assert [ask("yes"), ask("no")] == ["1", "3"]
    assert (second.counts["reused"], third.counts["reused"]) == (1, 2)


def test_lines_that_are_no_records_are_not_read(tmp_path: Path, moody: type[Moody]) -> None:
    path = tmp_path / "judge.jsonl"
    path.write_text('5\n[1]\n{"key": "x"}\nnull\n')
    with JudgeMemo(path).active():
        assert ask("yes") == "1"


def test_another_address_is_another_judge_and_the_same_picture_the_same_question(
    tmp_path: Path, moody: type[Moody], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = llm_judge.ServerConfig(model_name="moody")

    def show(colour: int) -> str:
        request = llm_judge.Request(messages=[{"role": "user", "content": "what?"}], config=config)
        request.images = [Image.new("RGB", (2, 2), (colour, 0, 0)), "data:image/png;base64,xyz", b"bytes"]
        return str(llm_judge.get_server("moody", config).evaluate(request).content)

    for colour, address, said in ((1, "a", "1"), (1, "a", "1"), (2, "a", "2"), (1, "b", "3")):
        monkeypatch.setattr(Moody, "base_url", address, raising=False)
        with JudgeMemo(tmp_path / "judge.jsonl").active():
            assert show(colour) == said


def test_lmms_eval_is_left_as_it_was(tmp_path: Path) -> None:
    before = MMBench_Evaluator.get_chat_response
    with JudgeMemo(tmp_path / "judge.jsonl").active():
        assert MMBench_Evaluator.get_chat_response is not before
    assert MMBench_Evaluator.get_chat_response is before
    assert [ask("yes"), ask("yes")] == ["1", "2"]
    assert not (tmp_path / "judge.jsonl").exists()


def score(prediction: str, monkeypatch: pytest.MonkeyPatch) -> float:
    """MMBench's own evaluation of one free answer, which names no option."""
    monkeypatch.setenv("API_TYPE", "moody")
    row = {"index": 1, "question": "what is it ?", "A": "cat", "B": "dog", "C": float("nan"),
           "D": float("nan"), "answer": "B", "prediction": prediction,
           "category": "c", "L2-category": "l", "split": "dev"}  # fmt: skip
    evaluator = MMBench_Evaluator(model_version="moody")
    result: float = evaluator.eval_sub_data(pd.DataFrame([row]), {1: "B"})
    return result


def test_mmbench_asks_through_the_judge_layer(
    tmp_path: Path, moody: type[Moody], monkeypatch: pytest.MonkeyPatch
) -> None:
    moody.replies = ["B", "A"]
    path = tmp_path / "judge.jsonl"
    with JudgeMemo(path).active():
        assert score("an animal that barks", monkeypatch) == 1
    with JudgeMemo(path).active():
        assert score("an animal that barks", monkeypatch) == 1, "the judge would now say A"
        assert score("an animal that purrs", monkeypatch) == 0
    assert len(moody.said) == 2
    assert "an animal that barks" in moody.said[0]


def test_mmbench_goes_on_without_a_judge(tmp_path: Path, moody: type[Moody], monkeypatch: pytest.MonkeyPatch) -> None:
    moody.replies = ["raise"] * 3
    with JudgeMemo(tmp_path / "judge.jsonl").active() as memo:
        score("an animal that barks", monkeypatch)
    assert memo.counts == {"asked": 3, "reused": 0, "failed": 3}
