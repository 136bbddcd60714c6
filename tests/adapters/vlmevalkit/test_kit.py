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
from flmm_plugin.adapters.vlmevalkit import messages
from flmm_plugin.adapters.vlmevalkit.benchmarks import BENCHMARKS
from flmm_plugin.errors import UnknownArgument
from flmm_plugin.records import encode_rle, parse_masks_json

#: The first test of a session imports the kit, which takes minutes on a machine that does other things too.
pytestmark = pytest.mark.timeout(600)


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

    from flmm_plugin.adapters.lmms_eval.classes import FlmmTiny

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
    from flmm_plugin.tiny.scenes import sample_scene

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


def add_own_data(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Add the pictures and objects of the synthetic RefCOCO as somebody's own data, with things that are absent."""
    from flmm_plugin.adapters.vlmevalkit.dataset import FlmmBenchmark
    from flmm_plugin.cli import main
    from flmm_plugin.datasets.refer import ReferDataset

    refs = list(ReferDataset("flmm_tiny_world", "refcoco", "val"))[:12]
    pictures = {one.image_id: one for one in refs}
    shape = [{"id": one.ref_id, "image_id": one.image_id, "caption": one.sentences[0], "segmentation": one.segmentation}
             for one in refs]  # fmt: skip
    absent = [{"id": 9000 + number, "image_id": number, "caption": "a cat", "segmentation": []} for number in pictures]
    images = [{"id": number, "file_name": one.image_path.name, "height": one.height, "width": one.width}
              for number, one in pictures.items()]  # fmt: skip
    (folder / "refs.json").write_text(json.dumps({"images": images, "annotations": [*shape, *absent]}))
    home = refs[0].image_path.parent
    monkeypatch.setenv("FLMM_CACHE", str(folder / "cache"))
    assert main(["data", "add", "mine", str(folder / "refs.json"), "--images", str(home)]) == 0
    # As they are where the kit is imported afterwards.
    monkeypatch.setitem(BENCHMARKS, "OWN_mine", {"": "flmm_own_mine"})
    monkeypatch.setitem(FlmmBenchmark.DATASET_URL, "OWN_mine", "")


@pytest.mark.parametrize(
    "name",
    ["RefCOCO_SEG_TINY", "PNG_TINY", "GCG_TINY", "ReasonSeg_TINY", "VisCoT_TINY", "gRefCOCO_SEG_TINY", "OWN_mine"],
)
def test_equal_predictions_give_equal_numbers_in_both_harnesses(
    flmm: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lmms_eval.api.model import lmms
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager
    from vlmeval.dataset import build_dataset

    from flmm_plugin.adapters.lmms_eval import task_folder
    from flmm_plugin.tasks.standalone import StandaloneTask

    monkeypatch.setattr("flmm_plugin.tasks.metrics.text.need_java", no_java)
    if name == "OWN_mine":
        add_own_data(tmp_path, monkeypatch)
    (task,) = BENCHMARKS[name].values()
    docs = StandaloneTask(task).docs
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

    task_folder.install()
    index = TaskManager(verbosity="ERROR", include_path=str(task_folder.TASKS_FOLDER), include_defaults=False)
    found = simple_evaluate(Canned(), tasks=[task], task_manager=index, bootstrap_iters=0, log_samples=False)
    printed = {key.partition(",")[0]: value for key, value in found["results"][task].items() if "," in key}

    data = build_dataset(name)
    table = pd.DataFrame({"index": data.data["index"], "prediction": replies})
    table.to_csv(tmp_path / "m_D.tsv", sep="\t", index=False)
    ours = data.evaluate(str(tmp_path / "m_D.tsv"), model="exact_matching")
    assert ours == {key: printed[key] for key in ours}
    assert len(ours) > 3
    assert json.loads((tmp_path / "m_D_score.json").read_text()) == ours
    assert any(isinstance(value, float) and value > 0 for value in ours.values())
    assert ours["complete"] == (name == "OWN_mine"), "a benchmark of this world's size is not the official one"
    first = {"RefCOCO_SEG_TINY": "cIoU", "PNG_TINY": "AR", "GCG_TINY": "mIoU"}
    first |= dict.fromkeys(("ReasonSeg_TINY", "gRefCOCO_SEG_TINY", "OWN_mine"), "gIoU")
    assert list(data.report_primary_metric(ours)) == [first.get(name, "anls")] == list(ours)[:1]


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
    from flmm_plugin.adapters.preservation.proof import Plan, prove
    from flmm_plugin.adapters.preservation.run import run_here

    plan = Plan(model="flmm_tiny", harness="vlmevalkit", tasks=("MME_TINY", "MMBench_TINY"), limit=2, out=tmp_path)
    verdict = prove(plan, run_here)
    assert verdict.unchanged, verdict.reason
    compared = {check.name: check.compared for check in verdict.checks}
    assert compared["generated ids"] == compared["texts"] == compared["pictures"] == 4
    assert compared["logits"] == 1
    assert compared["metrics"] > 2
    assert verdict.runs[1].grounded == {"asked": 4, "failed": 0}
    planted = prove(dataclasses.replace(plan, plant="logit"), run_here)
    assert planted.exit_status == 1
    assert planted.first is not None
    masks = dataclasses.replace(plan, tasks=("RefCOCO_SEG_TINY",))
    with pytest.raises(UnknownArgument, match="asks for masks"):
        prove(masks, run_here)


def test_a_model_of_the_kit_s_own_that_asks_otherwise_is_told_apart_by_its_prompts(
    flmm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import vlmeval.config

    from flmm_plugin.adapters.preservation.plain_vlmevalkit import PlainTransformers
    from flmm_plugin.adapters.preservation.proof import Plan, prove
    from flmm_plugin.adapters.preservation.run import run_here
    from flmm_plugin.tiny import tiny_path

    class Asking(PlainTransformers):
        """As most models of the kit: words of its own around a question."""

        def generate_inner(self, message: Any, dataset: str | None = None) -> str:
            return super().generate_inner([*message, {"type": "text", "value": "\nBe brief."}], dataset)

    models = vlmeval.config.supported_VLM
    monkeypatch.setitem(models, "kit_plain", functools.partial(PlainTransformers, str(tiny_path())))
    monkeypatch.setitem(models, "kit_asking", functools.partial(Asking, str(tiny_path())))
    plan = Plan(model="flmm_tiny", harness="vlmevalkit", tasks=("MME_TINY",), limit=0.05, out=tmp_path)
    alike = prove(dataclasses.replace(plan, stock="kit_plain"), run_here)
    assert alike.unchanged, alike.reason
    assert alike.runs[0].adapter == "the kit's kit_plain"
    assert {check.name: check.compared for check in alike.checks}["texts"] == 2, "a share of 40 rows"
    otherwise = prove(dataclasses.replace(plan, stock="kit_asking"), run_here)
    differing = {check.name: check.differing for check in otherwise.checks}
    assert differing["prompts"] == 2
    assert otherwise.exit_status != 0
    with pytest.raises(UnknownArgument, match="vlmutil mlist all"):
        prove(dataclasses.replace(plan, stock="no_such_model"), run_here)


def test_the_stock_model_owes_nothing_to_this_package() -> None:
    from importlib import resources

    source = resources.files("flmm_plugin.adapters.preservation").joinpath("plain_vlmevalkit.py").read_text()
    assert "flmm_plugin" not in source
