"""Answers with masks through lmms-eval's own evaluator: GCG and ReasonSeg from official files, by two models."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flmm_plugin.adapters.answering import grounded_chat
from flmm_plugin.adapters.lmms_eval import task_folder
from flmm_plugin.errors import BadAnnotation, BadImage, ToolNotFound, UnknownArgument
from flmm_plugin.records import encode_rle, parse_masks_json
from flmm_plugin.tasks.metrics import text
from flmm_plugin.tasks.rescoring import Options, rescore
from flmm_plugin.tiny import layouts_gcg
from tests.tasks import metric_names

torch = pytest.importorskip("torch")
evaluator = pytest.importorskip("lmms_eval.evaluator")

TASKS = ("flmm_gcg_val", "flmm_reasonseg_test")


@pytest.fixture(scope="module")
def arguments(llava_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny random LLaVA, and random heads with a keyword selector that fit it."""
    from flmm_plugin.heads.checkpoint import save_heads
    from flmm_plugin.heads.grounding_heads import GroundingHeads
    from flmm_plugin.heads.manifest import HeadsManifest

    torch.manual_seed(0)
    small = {"base_channels": 8, "upsample_to": 16}
    manifest = HeadsManifest(
        backbone="tiny", layers=3, heads=4, hidden_size=64, decoder=small, sam=None, keyword_selector=True
    )
    path = tmp_path_factory.mktemp("heads") / "heads.safetensors"
    save_heads(path, GroundingHeads.build(manifest))
    return f"pretrained={llava_folders['mha']},heads={path},device=cpu"


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three pictures a split in both official layouts."""
    root = tmp_path / "data"
    layouts_gcg.write_grandf(root, scenes=3, splits=("val",))
    layouts_gcg.write_reasonseg(root, scenes=3, splits=("test",))
    monkeypatch.setenv("FLMM_DATA", str(root))
    monkeypatch.setenv("FLMM_SENTENCE_ENCODER", "words")
    # METEOR takes its program long to start; without Java the other numbers must come all the same.
    monkeypatch.setattr(text, "need_java", no_java)
    return root


def no_java() -> None:
    raise ToolNotFound("there is no Java here")


@functools.cache
def index() -> Any:
    from lmms_eval.tasks import TaskManager

    return TaskManager(include_path=str(task_folder.TASKS_FOLDER), include_defaults=False)


def run(tasks: list[str], model: Any, **options: Any) -> dict[str, Any]:
    result: dict[str, Any] = evaluator.simple_evaluate(
        model=model, tasks=tasks, task_manager=index(), bootstrap_iters=0, process_docs_parallel=1, **options
    )
    return result


def numbers(result: dict[str, Any], task: str) -> dict[str, Any]:
    return {key.split(",")[0]: value for key, value in result["results"][task].items() if key.endswith(",none")}


def test_this_plugin_s_models_answer_and_ground(data: Path, arguments: str, tmp_path: Path) -> None:
    bad = data / "GranDf_HA_images" / "val_test" / "sa_100001.jpg"
    bad.write_bytes(b"no picture")
    result = run(list(TASKS), "flmm_tiny", model_args=arguments, gen_kwargs="max_new_tokens=6")
    conversation, reasoning = (numbers(result, task) for task in TASKS)
    assert set(conversation) >= set(metric_names.GCG)
    assert (conversation["items"], conversation["errors"], conversation["complete"]) == (3, 1, 0)
    assert conversation["METEOR"] is conversation["CIDEr"] is None
    assert (reasoning["items"], reasoning["complete"]) == (3, 0)
    assert all(math.isfinite(reasoning[name]) for name in metric_names.REASONSEG_TEST)
    assert result["configs"]["flmm_gcg_val"]["metadata"]["sentence_encoder"] == "words"
    assert result["configs"]["flmm_gcg_val"]["metadata"]["annotations"].startswith("sha256:")

    for sample in result["samples"]["flmm_reasonseg_test"]:
        reply = parse_masks_json(sample["filtered_resps"][0])
        assert reply.error is None
        assert reply.text.startswith("It is")
        assert len(reply.masks) <= 1
        assert "It is" not in "".join(phrase["phrase"] for phrase in reply.phrases)
    for sample in result["samples"]["flmm_gcg_val"]:
        reply = parse_masks_json(sample["filtered_resps"][0])
        if sample["doc"]["image_path"] == str(bad):
            assert reply.error is not None
            assert reply.error["type"] == "BadImage"
        else:
            assert all(phrase["phrase"] in reply.text for phrase in reply.phrases)
            assert len(reply.masks) == len(reply.phrases)

    # What was logged gives the printed numbers again.
    for task, printed in zip(TASKS, (conversation, reasoning), strict=True):
        path = tmp_path / f"run_samples_{task}.jsonl"
        logged = [{key: value for key, value in one.items() if key != "doc"} for one in result["samples"][task]]
        path.write_text("".join(json.dumps(line, default=str) + "\n" for line in logged))
        again = rescore(path, options=Options(resamples=0))
        assert (again.source, again.changed) == ("predictions", 0)
        assert {score.metric: score.value for score in again.scores} == {
            score.metric: pytest.approx(printed[score.metric]) for score in again.scores
        }


def test_any_model_that_answers_with_masks_is_scored(data: Path) -> None:
    """A stranger in lmms-eval's simple form, right on the first picture alone; it marks the phrases in its text."""
    from lmms_eval.api.model import lmms

    asked: dict[tuple[str, int], str] = {}

    class Stranger(lmms):
        is_simple = True

        def generate_until(self, requests: list[Any]) -> list[str]:
            replies = []
            for request in requests:
                context, options, doc_to_visual, doc_id, task, split = request.args
                doc = self.task_dict[task][split][doc_id]
                (picture,) = doc_to_visual(doc)
                asked[task, doc_id] = context
                assert options["flmm_grounded_chat"] in grounded_chat.KINDS
                codes = doc["masks"] if "masks" in doc else [doc["mask"]]
                said = " ".join(f"<p>{label}</p> [SEG]" for label in doc.get("labels", [doc.get("query")]))
                whole = encode_rle(np.ones((picture.height, picture.width)))
                # Right on the first document alone.
                masks = codes if doc_id == 0 else [whole] * len(codes)
                replies.append(json.dumps({"text": said, "masks": masks}))
            return replies

        def loglikelihood(self, requests: list[Any]) -> list[Any]:
            raise NotImplementedError("this model only generates")

        def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
            raise NotImplementedError("this model only generates")

    result = run(list(TASKS), Stranger())
    conversation, reasoning = (numbers(result, task) for task in TASKS)
    assert (conversation["errors"], reasoning["errors"]) == (0, 0)
    assert 0 < conversation["mask_recall"] < 100
    assert 33 < conversation["mIoU"] < 100
    assert 33 < reasoning["gIoU"] < 100
    first = result["samples"]["flmm_reasonseg_test"][0]["gIoU"]
    assert first["I"] == first["U"]
    assert asked["flmm_gcg_val", 0] == "Briefly describe the objects that appear in this image."
    queries = [sample["doc"]["query"] for sample in result["samples"]["flmm_reasonseg_test"]]
    instruction = "Briefly answer the question in a single sentence."
    assert asked["flmm_reasonseg_test", 0] == f"{queries[0]} {instruction}"
    assert asked["flmm_reasonseg_test", 1] == f"What is {queries[1]} in this image? {instruction}"


def test_every_task_file_prints_what_its_scoring_gives() -> None:
    from lmms_eval import utils

    expected = {
        "gcg": {"flmm_gcg_val": metric_names.GCG, "flmm_gcg_test": metric_names.GCG, "flmm_gcg_tiny": metric_names.GCG},
        "reasonseg": {
            "flmm_reasonseg_val": metric_names.REASONSEG_VAL,
            "flmm_reasonseg_test": metric_names.REASONSEG_TEST,
            "flmm_reasonseg_tiny": metric_names.REASONSEG_TEST,
        },
    }
    for folder, tasks in expected.items():
        for path in sorted((task_folder.TASKS_FOLDER / folder).glob("flmm_*.yaml")):
            config = utils.load_yaml_config(str(path), mode="full")
            assert path.stem == config["task"]
            assert tuple(entry["metric"] for entry in config["metric_list"]) == tasks.pop(config["task"])
            assert all(callable(entry["aggregation"]) for entry in config["metric_list"])
        assert not tasks


def request(**options: Any) -> Any:
    return SimpleNamespace(options=options, task="some", doc_id=3)


@pytest.mark.parametrize(
    ("options", "pictures", "error", "said"),
    [
        ({"flmm_grounded_chat": "everything"}, 1, UnknownArgument, "keywords, answer"),
        ({"flmm_grounded_chat": "keywords"}, 2, BadImage, "2 pictures"),
        ({"flmm_grounded_chat": "answer", "flmm_answer_start": 7}, 1, BadAnnotation, "flmm_answer_start"),
    ],
)
def test_marks_that_make_no_sense_are_refused(
    options: dict[str, Any], pictures: int, error: type[Exception], said: str
) -> None:
    lmm = SimpleNamespace(backbone=SimpleNamespace(tokenizer=SimpleNamespace(eos_token_id=2)))
    with pytest.raises(error, match=said):
        grounded_chat.reply(lmm, request(**options), [], [Image.new("RGB", (4, 4))] * pictures)
