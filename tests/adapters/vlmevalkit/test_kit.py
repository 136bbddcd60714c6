"""Inside the kit itself, in one process: registries, answers, scores, failures, results, tables."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from flmm_plugin.adapters.answering.defaults import DEFAULTS
from flmm_plugin.adapters.vlmevalkit import command, messages, predictions
from flmm_plugin.adapters.vlmevalkit.benchmarks import BENCHMARKS
from flmm_plugin.errors import BadAnnotation, FrozenWeightsChanged, UnknownArgument
from flmm_plugin.records import encode_rle, parse_masks_json


@pytest.fixture(scope="module")
def flmm(kit: Path) -> Any:
    """The embedded model as the kit makes it."""
    from flmm_plugin.adapters.vlmevalkit.register import register

    register()
    import vlmeval.config

    return vlmeval.config.supported_VLM["flmm_tiny"]()


@pytest.fixture
def run(flmm: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """``run(folder, *words)``: a whole run of the kit in this process, with the model that is there already."""

    def started(folder: Path, *words: str, named: bool = True) -> int:
        from flmm_plugin.adapters.vlmevalkit import outcomes

        monkeypatch.setattr(outcomes, "_outcomes", {})
        # The kit makes a model anew for each run; its weights are those that were loaded.
        monkeypatch.setattr("flmm_plugin.adapters.vlmevalkit.model.load_lmm", lambda *_, **__: flmm.lmm)
        model = ["--model", "flmm_tiny"] if named else []
        return command.main([*model, "--work-dir", str(folder), *words])

    return started


def test_registries_have_everything_once(flmm: Any) -> None:
    import vlmeval.config
    import vlmeval.dataset as datasets
    import vlmeval.vlm

    from flmm_plugin.adapters.vlmevalkit.register import register

    before = list(datasets.DATASET_CLASSES), list(datasets.SUPPORTED_DATASETS), len(vlmeval.config.supported_VLM)
    register()
    after = list(datasets.DATASET_CLASSES), list(datasets.SUPPORTED_DATASETS), len(vlmeval.config.supported_VLM)
    assert before == after
    assert set(DEFAULTS) <= set(vlmeval.config.supported_VLM)
    assert set(BENCHMARKS) <= set(datasets.SUPPORTED_DATASETS)
    assert vlmeval.vlm.FLMM is type(flmm)
    assert {datasets.DATASET_TYPE(name) for name in BENCHMARKS} == {"SEG"}
    types = {name: datasets.DATASET_TYPE(name) for name in ("MME", "MME_TINY", "MMBench_TINY", "RefCOCO")}
    assert types == {"MME": "Y/N", "MME_TINY": "Y/N", "MMBench_TINY": "MCQ", "RefCOCO": "GROUNDING"}


def test_the_same_prompt_has_the_same_answer_in_both_harnesses(flmm: Any) -> None:
    from vlmeval.dataset import build_dataset

    from flmm_plugin.adapters.lmms_eval.tiny import FlmmTiny

    theirs = FlmmTiny(device="cpu")
    for name, count in {"MME_TINY": 2, "MMBench_TINY": 1, "RefCOCO_SEG_TINY": 2, "PNG_TINY": 1, "ReasonSeg_TINY": 1,
                        "VisCoT_TINY": 1, "VisCoT_direct_TINY": 1}.items():  # fmt: skip
        data = build_dataset(name)
        for row in range(count):
            message = data.build_prompt(data.data.iloc[row])
            asked = messages.request_of(message, name)
            doc = messages.document_of(asked)
            turn = [{"type": "image", "url": message[0]["value"]}, {"type": "text", "text": message[1]["value"]}]
            chat: list[Any] = [{"role": "user", "content": turn}]
            theirs.task_dict["t"] = {"test": [doc]}
            arguments = (message[1]["value"], lambda _, chat=chat: chat, dict(asked.options), 0, "t", "test")
            (reply,) = theirs.generate_until([SimpleNamespace(args=arguments, metadata={})])
            said = flmm.generate(message, dataset=name)
            assert said == str(getattr(reply, "text", reply)), (name, row)
            assert said
            if name == "RefCOCO_SEG_TINY":
                assert any(mask.any() for mask in parse_masks_json(said).masks)


def test_choices_are_asked_in_words_that_the_embedded_model_learnt(flmm: Any) -> None:
    from vlmeval.dataset import build_dataset

    from flmm_plugin.tiny import language, panel
    from flmm_plugin.tiny.world import sample_scene

    rng = np.random.default_rng([panel.SEED, 60, 0])
    learnt = language.choice_question(sample_scene(rng), rng)
    data = build_dataset("MMBench_TINY")
    (picture, text) = data.build_prompt(data.data.iloc[0])
    assert text["value"] == learnt.question
    assert (data.data.iloc[0]["answer"], Path(picture["value"]).is_file()) == (learnt.answer, True)


def canned(doc: Any, size: tuple[int, int], seed: int) -> str:
    """A reply to a document: boxes at random, more of them than asked for now and then, or nonsense."""
    rng = np.random.default_rng(seed)
    if seed % 5 == 4:
        return "I see no masks."
    wanted = len(doc.get("expressions") or doc.get("labels") or [0])
    masks, phrases = [], []
    for number in range(wanted):
        mask = np.zeros(size, dtype=bool)
        y, x = (int(rng.integers(0, side // 2)) for side in size)
        mask[y : y + size[0] // 2, x : x + size[1] // 2] = True
        masks.append(encode_rle(mask))
        words = (doc.get("expressions") or doc.get("labels") or ["it"])[number]
        phrases.append({"phrase": words, "span": None, "mask": number})
    boxes = [{"x_min": 0.1, "y_min": 0.1, "x_max": 0.6, "y_max": 0.7}] * wanted
    text = str(doc.get("answer") or doc.get("caption") or "it")
    return json.dumps({"text": text, "phrases": phrases, "masks": masks, "boxes": boxes, "scores": [0.5] * wanted})


@pytest.mark.parametrize("name", ["RefCOCO_SEG_TINY", "PNG_TINY", "GCG_TINY", "ReasonSeg_TINY", "VisCoT_TINY"])
def test_equal_predictions_give_equal_numbers_in_both_harnesses(
    flmm: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lmms_eval.api.model import lmms
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager
    from vlmeval.dataset import build_dataset

    from flmm_plugin.adapters.lmms_eval import seam
    from flmm_plugin.tasks.plain_task import PlainTask

    monkeypatch.setattr("flmm_plugin.tasks.metrics.text.need_java", no_java)
    (part,) = BENCHMARKS[name]
    docs = PlainTask(part.task).docs
    sizes = [Image.open(doc["image_path"]).size[::-1] for doc in docs]
    replies = [canned(doc, size, seed) for seed, (doc, size) in enumerate(zip(docs, sizes, strict=True))]

    class Canned(lmms):  # type: ignore[misc]
        is_simple = True

        def generate_until(self, requests: list[Any]) -> list[str]:
            return [replies[request.args[3]] for request in requests]

        def loglikelihood(self, requests: list[Any]) -> Any:
            raise NotImplementedError

        def generate_until_multi_round(self, requests: list[Any]) -> Any:
            raise NotImplementedError

    seam.install()
    index = TaskManager(verbosity="ERROR", include_path=str(seam.TASKS_FOLDER), include_defaults=False)
    found = simple_evaluate(Canned(), tasks=[part.task], task_manager=index, bootstrap_iters=0, log_samples=False)
    printed = {key.partition(",")[0]: value for key, value in found["results"][part.task].items() if "," in key}

    data = build_dataset(name)
    table = pd.DataFrame({"index": data.data["index"], "prediction": replies})
    table.to_csv(tmp_path / "m_D.tsv", sep="\t", index=False)
    ours = data.evaluate(str(tmp_path / "m_D.tsv"), model="exact_matching")
    assert ours == {key: printed[key] for key in ours}
    assert len(ours) > 3
    assert json.loads((tmp_path / "m_D_score.json").read_text()) == ours
    assert any(isinstance(value, float) and value > 0 for value in ours.values())


def no_java() -> None:
    from flmm_plugin.errors import ToolNotFound

    raise ToolNotFound("no Java in this test")


def test_four_benchmarks_run_resume_and_fill_a_table(
    run: Callable[..., int], flmm: Any, kit: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from flmm_plugin.reports.comparison import compare
    from flmm_plugin.reports.result_files import read_results
    from flmm_plugin.reports.table_layouts import LAYOUTS

    names = ["MME_TINY", "POPE_TINY", "MMBench_TINY", "RefCOCO_SEG_TINY"]
    out = kit / "four"
    assert run(out, "--data", *names, "--limit", "4") == 0
    said = capfd.readouterr().err
    assert all(f"flmm: flmm_tiny x {name}: done" in said for name in names)
    folder = out / "flmm_tiny"
    assert all((folder / f"flmm_tiny_{name}.tsv").is_file() for name in names)
    assert not list(folder.rglob("*.flmm.jsonl")), "journals are removed when the kit has all answers"
    record = json.loads((folder / "flmm_tiny_MME_TINY_flmm.json").read_text())
    assert (record["arguments"], record["processes"]) == ({"name": "flmm_tiny"}, 1)
    (found,) = read_results([out])
    assert set(found.tasks) == {*names[:3], "flmm_tiny_refcoco"}
    assert 0 < found.tasks["flmm_tiny_refcoco"].metrics["cIoU"] <= 100
    row = next(row for row in compare(LAYOUTS["1"], [found]).rows if row.kind == "flmm")
    filled = [cell.column.name for cell in row.cells if cell.value is not None]
    assert filled == ["MME perception", "MMBench", "RefCOCO val"]
    assert row.cells[0].provenance is not None
    assert row.cells[0].provenance.not_recorded() == ()
    asked: list[Any] = []
    monkeypatch.setattr(type(flmm), "generate", lambda self, message, dataset=None: asked.append(message))
    assert run(out, "--data", *names, "--limit", "4") == 0
    assert asked == [], "what is answered is not asked again"


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


@pytest.fixture
def says(flmm: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """``says(*replies)``: let the model give these in turn; what it was asked is in the list that comes back."""

    def given(*replies: str) -> list[Any]:
        asked: list[Any] = []

        def generate(self: Any, message: Any, dataset: str | None = None) -> str:
            asked.append(message)
            return replies[(len(asked) - 1) % len(replies)]

        monkeypatch.setattr(type(flmm), "generate", generate)
        return asked

    return given


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
        weight += 1  # other heads, loaded from the same path
        assert run(out, *words, "6") == 1
    finally:
        weight.copy_(before)
    said = capfd.readouterr().err
    assert said.count("other options (heads)") == 2
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


def test_a_combination_without_a_result_makes_the_status_non_zero(
    run: Callable[..., int], kit: Path, capfd: pytest.CaptureFixture[str]
) -> None:
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


def test_a_configuration_file_names_both_classes(run: Callable[..., int], kit: Path) -> None:
    config = {
        "model": {"mine": {"class": "FLMM", "name": "flmm_tiny", "device": "cpu"}},
        "data": {"RefCOCO_SEG_TINY": {"class": "FlmmBenchmark", "dataset": "RefCOCO_SEG_TINY"}},
    }
    (kit / "runs.json").write_text(json.dumps(config))
    words = ["--config", str(kit / "runs.json"), "--limit", "2"]
    assert run(kit / "configured", *words, named=False) == 0
    record = json.loads((kit / "configured" / "mine" / "mine_RefCOCO_SEG_TINY_flmm.json").read_text())
    assert record["arguments"] == {"device": "cpu", "name": "flmm_tiny"}


def test_one_dataset_name_is_all_splits(flmm: Any, refer_folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from vlmeval.dataset import build_dataset

    monkeypatch.setenv("FLMM_DATA", str(refer_folder().root))
    data = build_dataset("RefCOCO_SEG")
    assert list(data.data["split"]) == ["val", "val", "testA"]
    assert data.report_primary_metric({"val.cIoU": 1.0, "testA.cIoU": 2.0, "val.items": 2}) == {
        "val.cIoU": 1.0,
        "testA.cIoU": 2.0,
    }


def test_chat_is_what_it_is_without_the_plugin_in_the_kit_too(flmm: Any, tmp_path: Path) -> None:
    from flmm_plugin.adapters.preserving.record import ArmSpec
    from flmm_plugin.adapters.vlmevalkit.preserve import preserve
    from flmm_plugin.adapters.vlmevalkit.preserve_arm import run_arm

    ours = ArmSpec(role="F-LMM", model="flmm_tiny", model_args={}, tasks=("MME_TINY", "MMBench_TINY"), limit=2)
    verdict = preserve(ours, tmp_path, launch=run_arm)
    assert verdict.unchanged, verdict.reason
    compared = {check.name: check.compared for check in verdict.checks}
    assert compared["generated ids"] == compared["texts"] == compared["pictures"] == 4
    assert compared["logits"] == 1
    assert compared["metrics"] > 2
    assert verdict.arms[1].grounded == {"asked": 4, "failed": 0}
    planted = preserve(dataclasses.replace(ours, plant="logit"), tmp_path, launch=run_arm)
    assert planted.exit_status == 1
    assert planted.first is not None
    masks = dataclasses.replace(ours, tasks=("RefCOCO_SEG_TINY",))
    with pytest.raises(UnknownArgument, match="asks for masks"):
        preserve(masks, tmp_path, launch=run_arm)


def test_a_model_of_the_kit_s_own_that_asks_otherwise_is_told_apart_by_its_prompts(
    flmm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import vlmeval.config

    from flmm_plugin.adapters.preserving.record import ArmSpec
    from flmm_plugin.adapters.vlmevalkit.preserve import preserve
    from flmm_plugin.adapters.vlmevalkit.preserve_arm import run_arm
    from flmm_plugin.adapters.vlmevalkit.preserve_plain import PlainTransformers
    from flmm_plugin.tiny import tiny_path

    class Asking(PlainTransformers):
        """As most models of the kit: words of its own around a question."""

        def generate_inner(self, message: Any, dataset: str | None = None) -> str:
            return super().generate_inner([*message, {"type": "text", "value": "\nBe brief."}], dataset)

    models = vlmeval.config.supported_VLM
    monkeypatch.setitem(models, "kit_plain", functools.partial(PlainTransformers, str(tiny_path())))
    monkeypatch.setitem(models, "kit_asking", functools.partial(Asking, str(tiny_path())))
    ours = ArmSpec(role="F-LMM", model="flmm_tiny", model_args={}, tasks=("MME_TINY",), limit=0.05)
    alike = preserve(ours, tmp_path, stock="kit_plain", launch=run_arm)
    assert alike.unchanged, alike.reason
    assert alike.arms[0].adapter == "the kit's kit_plain"
    assert {check.name: check.compared for check in alike.checks}["texts"] == 2, "a share of 40 rows"
    otherwise = preserve(ours, tmp_path, stock="kit_asking", launch=run_arm)
    differing = {check.name: check.differing for check in otherwise.checks}
    assert differing["prompts"] == 2
    assert otherwise.exit_status != 0
    with pytest.raises(UnknownArgument, match="vlmutil mlist all"):
        preserve(ours, tmp_path, stock="no_such_model", launch=run_arm)


def test_the_stock_arm_owes_nothing_to_this_package() -> None:
    from importlib import resources

    source = resources.files("flmm_plugin.adapters.vlmevalkit").joinpath("preserve_plain.py").read_text()
    assert "flmm_plugin" not in source
