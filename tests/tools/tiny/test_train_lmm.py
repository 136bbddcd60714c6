"""A killed run goes on where it was, and the whole recipe runs from nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flmm_plugin.tiny import evaluate, language
from tools.tiny import train_heads, train_lmm
from tools.tiny.__main__ import build_parser
from tools.tiny.sam_file import make_sam
from tools.tiny.train_sam import SamConfig

FAST = train_lmm.TrainConfig(tower_steps=2, tower_batch=4, steps=4, batch=2, turns_per_scene=2)
FAST_HEADS = ["data.scenes=3", "steps=2", "batch_size=2", "validation.parts=[]", "trackers=[]"]


def test_a_killed_run_resumes_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train_lmm.train(tmp_path / "whole", FAST)
    original, calls = train_lmm.chat_loss, {"n": 0}

    def dies(*args: Any) -> Any:
        calls["n"] += 1
        if calls["n"] == 3:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(train_lmm, "chat_loss", dies)
    monkeypatch.setattr(train_lmm, "SAVE_EVERY", 2)
    with pytest.raises(KeyboardInterrupt):
        train_lmm.train(tmp_path / "killed", FAST)
    again = train_lmm.train(tmp_path / "killed", FAST)
    for name in ("model.safetensors",):
        assert (whole / name).read_bytes() == (again / name).read_bytes()


def test_the_whole_recipe_runs_from_nothing(tmp_path: Path) -> None:
    folder = train_lmm.train(tmp_path, replace(FAST, steps=1))
    make_sam(tmp_path, SamConfig(steps=2, batch=2))
    heads = train_heads.train_heads(tmp_path, folder, FAST_HEADS)
    result = evaluate.evaluate(seed=1, scenes=2, lmm_path=folder, heads_file=heads)
    json.dumps(result)
    assert set(result["chat"]) <= set(language.QUESTION_KINDS)
    methods = [row["method"] for row in result["grounding"]]
    assert len(methods) == 6
    assert all(0 <= row["refined_ciou"] <= 1 for row in result["grounding"])


@pytest.mark.parametrize("command", ["train", "sam"])
def test_commands_need_a_work_folder(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_parser().parse_args([command])
    assert "--out" in capsys.readouterr().err
