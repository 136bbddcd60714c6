"""Inside the kit itself, in one process: what is lost, mixed up, cut or counted wrongly without this package's care."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from flmm_plugin.adapters.vlmevalkit import inference, messages, predictions
from flmm_plugin.errors import BadAnnotation, FrozenWeightsChanged, UnknownArgument
from flmm_plugin.tasks.benchmarks import benchmark_of

#: The first test of a session imports the kit, which takes minutes on a machine that does other things too.
pytestmark = pytest.mark.timeout(600)


def test_an_answer_is_the_same_text_in_every_mode_of_a_later_run(
    run: Callable[..., int], kit: Path, says: Callable[..., list[Any]]
) -> None:
    odd = ["NA", "None", "null", "", "nan", "N/A", "1e5", "007", "True", " a ", "=1+1", "a\r\nb\tc"]
    words = [one for one in odd if one.strip()]
    questions = pd.DataFrame({"index": range(len(words)), "image_path": "/x.png", "question": "?", "answer": words})
    questions.to_csv(kit / "LMUData" / "OddGQA.tsv", sep="\t", index=False)
    config = {"model": {"flmm_tiny": {"class": "FLMM", "name": "flmm_tiny"}},
              "data": {"OddGQA": {"class": "ImageVQADataset", "dataset": "OddGQA"}}}  # fmt: skip
    (kit / "odd.json").write_text(json.dumps(config))
    for options, named, file, replies in [
        (["--data", "POPE_TINY"], True, "flmm_tiny_POPE_TINY.tsv", (odd * 4)[:40]),
        (["--config", str(kit / "odd.json")], False, "flmm_tiny_OddGQA.tsv", words),
    ]:
        asked = says(*replies)
        path = kit / "odd" / "flmm_tiny" / file
        assert run(kit / "odd", *options, "--mode", "infer", named=named) == 0
        assert len(asked) == len(replies)
        written = path.read_bytes()
        for mode in ("infer", "all", "eval"):
            assert run(kit / "odd", *options, "--mode", mode, named=named) == 0
            assert list(predictions.read(path)["prediction"]) == replies
            assert path.read_bytes() == written
        assert len(asked) == len(replies), "what is answered is not asked again"
    scores = pd.read_csv(kit / "odd" / "flmm_tiny" / "flmm_tiny_OddGQA_acc.csv")
    assert float(scores["Overall"][0]) == 100.0, "text equals the reference, whatever its words look like"


def test_a_failed_sample_earns_no_point_by_the_kit_s_own_rules(
    run: Callable[..., int], kit: Path, says: Callable[..., list[Any]], capfd: pytest.CaptureFixture[str]
) -> None:
    from vlmeval.dataset.utils import extract_answer_from_item
    from vlmeval.dataset.utils.multiple_choice import extract_characters_regex

    out, failed = kit / "allfailed", messages.failure("BadImage: there is no file A of red.png")
    says(failed)
    words = ["--data", "POPE_TINY", "MME_TINY", "MMBench_TINY", "RefCOCO_SEG_TINY", "--limit", "8"]
    assert run(out, *words) == 1, "nothing could be answered"
    said = capfd.readouterr().err.strip().splitlines()
    assert sum("FAILED: no sample could be answered; 8 of 8" in line for line in said) == 4
    assert said[-1] == "flmm: 4 of 4 combinations have no result; 32 of 32 samples FAILED"
    folder = out / "flmm_tiny"
    pope = pd.read_csv(folder / "flmm_tiny_POPE_TINY_score.csv")
    assert float(pope["acc"].max()) == float(pope["Overall"].max()) == 0
    assert float(pd.read_csv(folder / "flmm_tiny_MME_TINY_score.csv")["perception"][0]) == 0
    assert float(pd.read_csv(folder / "flmm_tiny_MMBench_TINY_acc.csv")["Overall"][0]) == 0
    assert extract_characters_regex(messages.NOTHING) == ""
    item = {"index": 0, "question": "?", "A": "red", "B": "blue", "prediction": messages.NOTHING, "answer": "A"}
    judge = SimpleNamespace(generate=lambda prompt: pytest.fail("a judge was asked about a failed sample"))
    assert extract_answer_from_item(judge, item)["opt"] == "Z"
    asked = says("Yes", "No", failed, "Yes")
    assert run(out, "--data", "POPE_TINY", "--limit", "8") == 0
    assert len(asked) == 8, "failed samples are asked again, with their marks kept through the kit's scoring"
    assert capfd.readouterr().err.strip().splitlines()[-1] == "flmm: 2 of 8 samples FAILED"


def test_rows_of_another_model_under_the_same_names_are_refused(
    run: Callable[..., int], kit: Path, flmm: Any, says: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out, words = kit / "mixed", ["--data", "RefCOCO_SEG_TINY", "POPE_TINY", "--limit"]
    says('{"text": "", "phrases": [], "masks": [], "boxes": [], "scores": []}', "Yes")
    assert run(out, *words, "3") == 0
    tables = {path.name: path.read_bytes() for path in out.rglob("*.tsv")}
    weight = next(flmm.lmm.heads.parameters()).data
    before = weight.clone()
    asked = says("No")
    try:
        weight += 1  # other heads, loaded from the same path; chat does not depend on them
        with monkeypatch.context() as changed:
            changed.setattr(flmm.lmm.backbone, "system_prompt", "Be brief.")
            assert run(out, *words, "6") == 1
    finally:
        weight.copy_(before)
    said = [line for line in capfd.readouterr().err.strip().splitlines()[-3:] if "FAILED" in line]
    assert sum("other options" in line and "system_prompt" in line for line in said) == 2
    assert sum("heads" in line.partition("other options")[2].partition(")")[0] for line in said) == 1
    assert run(out, *words, "2") == 1, "rows that were answered would be lost"
    assert "leaves out 1 of their rows" in capfd.readouterr().err
    assert asked == []
    assert {path.name: path.read_bytes() for path in out.rglob("*.tsv")} == tables
    assert run(out, *words, "6") == 0
    assert len(asked) == 6, "the three of each that are there are not asked again"
    keys = predictions.read(out / "flmm_tiny" / "flmm_tiny_POPE_TINY.tsv")["flmm_key"]
    record = json.loads((out / "flmm_tiny" / "flmm_tiny_POPE_TINY_flmm.json").read_text())
    assert {key.partition("-")[0] for key in keys} == {record["answers"][:16]}


def test_spreadsheets_cut_masks_and_are_refused_by_name(
    run: Callable[..., int], kit: Path, flmm: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from vlmeval.dataset import build_dataset

    monkeypatch.setenv("PRED_FORMAT", "xlsx")
    assert run(kit / "cut", "--data", "PNG_TINY", "POPE_TINY") == 2
    assert "PRED_FORMAT is xlsx" in capfd.readouterr().err
    with pytest.raises(UnknownArgument, match="PRED_FORMAT is xlsx"):
        build_dataset("PNG_TINY")  # as an unmodified run.py makes it
    monkeypatch.setenv("PRED_FORMAT", "tsv")
    with pytest.raises(BadAnnotation, match="PRED_FORMAT=tsv"):
        build_dataset("PNG_TINY").evaluate(str(kit / "cut.xlsx"))


def test_names_that_do_not_exist_are_said_before_anything_is_asked(
    run: Callable[..., int], kit: Path, flmm: Any, says: Callable[..., list[Any]], capfd: pytest.CaptureFixture[str]
) -> None:
    asked = says("Yes")
    for words, hint in [
        (["--model", "flmm_tiny", "llava_v1.5_7", "--data", "MME_TINY"], "did you mean 'llava_v1.5_7b'"),
        (["--model", "flmm_tiny", "--data", "MME_TINY", "RefCOCO_SEG_vla"], "did you mean 'RefCOCO_SEG_val'"),
    ]:
        assert run(kit / "names", *words, named=False) == 2
        assert hint in capfd.readouterr().err
    assert asked == []
    assert not list((kit / "names").rglob("*.tsv"))


def test_a_broken_seal_and_an_error_that_stops_all_samples_are_failures(
    run: Callable[..., int], kit: Path, flmm: Any, says: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    says("Yes")

    def changed(self: Any, dataset: str) -> None:
        raise FrozenWeightsChanged("a weight changed")

    with monkeypatch.context() as patch:
        patch.setattr(type(flmm), "finished", changed)
        assert run(kit / "seal", "--data", "POPE_TINY", "--limit", "2") == 1
        assert "FAILED: a weight changed" in capfd.readouterr().err
        assert not [path for path in (kit / "seal").rglob("*POPE*") if path.suffix in (".tsv", ".pkl", ".jsonl")]

    def interrupted(self: Any, *_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(flmm), "generate", interrupted)
        assert run(kit / "seal", "--data", "POPE_TINY", "--limit", "2") == 130
        assert capfd.readouterr().err.strip().splitlines()[-1].startswith("flmm-vlmeval: interrupted")


def test_failed_samples_are_counted_and_retried_and_their_scores_renewed(
    run: Callable[..., int], kit: Path, refer_folder: Any, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    root = refer_folder().root
    monkeypatch.setenv("FLMM_DATA", str(root))
    picture = next((root / "coco" / "train2014").glob("*11.jpg"))
    content = picture.read_bytes()
    picture.write_bytes(b"no picture")
    out = kit / "failing"
    assert run(out, "--data", "RefCOCO_SEG_val") == 0
    assert "1 of 2 samples FAILED" in capfd.readouterr().err
    scores = out / "flmm_tiny" / "flmm_tiny_RefCOCO_SEG_val_score.json"
    assert json.loads(scores.read_text())["errors"] == 2
    picture.write_bytes(content)
    assert run(out, "--data", "RefCOCO_SEG_val") == 0
    assert "FAILED" not in capfd.readouterr().err
    assert json.loads(scores.read_text())["errors"] == 0


def test_a_combination_without_a_result_makes_the_status_non_zero(
    run: Callable[..., int],
    kit: Path,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # All files of PNG are there, and damaged: what is missing would be said before anything is run.
    monkeypatch.setenv("FLMM_DATA", str(tmp_path))
    for part in benchmark_of("png").parts_of(["val"]):
        place = tmp_path / part.places[0]
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.suffix:
            place.write_text("{")
        else:
            place.mkdir()
            (place / "000000000001.png").write_text("")
    assert run(kit / "none", "--data", "PNG", "MME_TINY", "--limit", "2") == 1
    said = capfd.readouterr().err
    assert "flmm_tiny x PNG: FAILED" in said
    assert "flmm_tiny x MME_TINY: done" in said
    assert "1 of 2 combinations have no result" in said


def test_answering_and_scoring_can_be_two_runs(
    run: Callable[..., int], kit: Path, refer_folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLMM_DATA", str(refer_folder().root))
    out = kit / "modes"
    scores = out / "flmm_tiny" / "flmm_tiny_RefCOCO_SEG_val_score.json"
    words = ["--data", "RefCOCO_SEG_val", "--verbose", "--judge", "exact_matching", "--mode"]
    assert run(out, *words, "eval") == 1, "there is nothing to score"
    assert run(out, *words, "infer") == 0
    assert not scores.exists()
    assert run(out, *words, "eval") == 0
    assert json.loads(scores.read_text())["errors"] == 0


def test_a_row_that_cannot_be_asked_about_costs_itself_alone(flmm: Any) -> None:
    def build_prompt(row: Any) -> Any:
        raise ValueError("not a picture")

    said = flmm.generate(inference._forgiving(build_prompt)({"index": 0}), dataset="MME")
    assert messages.is_failure(said)
    assert "not a picture" in said
