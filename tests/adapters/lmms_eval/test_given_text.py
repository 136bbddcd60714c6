"""Given texts inside lmms-eval: a tiny random LLaVA, official files, the evaluator itself, and a model not ours."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from loguru import logger
from PIL import Image

from flmm_plugin.adapters.answering.given_text import text_of
from flmm_plugin.adapters.answering.requests import GIVEN_TEXT_FLAG, Request
from flmm_plugin.errors import BadAnnotation
from flmm_plugin.records import encode_rle, parse_masks_json

torch = pytest.importorskip("torch")
evaluator = pytest.importorskip("lmms_eval.evaluator")


@pytest.fixture(scope="module")
def heads_files(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """Random heads that fit the tiny LLaVA, with and without a keyword selector."""
    from flmm_plugin.heads.checkpoint import save_heads
    from flmm_plugin.heads.grounding_heads import GroundingHeads
    from flmm_plugin.heads.manifest import HeadsManifest

    files = {}
    for selects in (True, False):
        torch.manual_seed(0)
        manifest = HeadsManifest(
            backbone="tiny", layers=3, heads=4, hidden_size=64, decoder={"base_channels": 4, "upsample_to": 16},
            sam=None, keyword_selector=selects,
        )  # fmt: skip
        files[selects] = tmp_path_factory.mktemp("heads") / "heads.safetensors"
        save_heads(files[selects], GroundingHeads.build(manifest))
    return files


@pytest.fixture
def said() -> Iterator[list[str]]:
    lines: list[str] = []
    sink = logger.add(lambda message: lines.append(str(message)), format="{level} {message}")
    yield lines
    logger.remove(sink)


@pytest.fixture(scope="module")
def index() -> Any:
    """lmms-eval's index; making one reads a thousand files."""
    from lmms_eval.tasks import TaskManager

    return TaskManager(model_name="flmm_tiny")


@pytest.fixture
def run(
    index: Any, llava_folders: dict[str, Path], heads_files: dict[bool, Path], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, Any]]:
    monkeypatch.setitem(__import__("sys").modules, "spacy", None)

    def evaluate(folder: Any, *tasks: str, model: Any = "flmm_tiny", selects: bool = True, **options: Any) -> Any:
        monkeypatch.setenv("FLMM_DATA", str(folder.root))
        if model == "flmm_tiny":
            options["model_args"] = f"pretrained={llava_folders['mha']},heads={heads_files[selects]},device=cpu"
        return evaluator.simple_evaluate(
            model=model, tasks=list(tasks), task_manager=index, bootstrap_iters=0, process_docs_parallel=1, **options
        )

    return evaluate


def numbers(result: dict[str, Any], task: str) -> dict[str, Any]:
    return {
        key.split(",")[0]: value
        for key, value in result["results"][task].items()
        if key.endswith(",none") and "_stderr" not in key
    }


def test_masks_and_keywords_of_narratives(
    png_folder: Callable[..., Any], run: Callable[..., Any], said: list[str], tmp_path: Path
) -> None:
    folder = png_folder()
    arguments = SimpleNamespace(output_path=str(tmp_path / "out"), process_with_media=False)
    result = run(folder, "flmm_png", "flmm_keywords", batch_size=2, cli_args=arguments)
    png, keywords = numbers(result, "flmm_png"), numbers(result, "flmm_keywords")
    assert (png["items"], png["errors"], png["complete"]) == (5, 0, 0)
    assert (png["skipped_phrases"], png["skipped_narratives"]) == (0, 1)
    assert 0 < png["AR"] < 100
    assert (tmp_path / "out" / png["recall_curve"]).is_file()
    for sample in result["samples"]["flmm_png"]:
        reply = parse_masks_json(sample["filtered_resps"][0])
        assert [phrase["phrase"] for phrase in reply.phrases] == sample["reference"]["phrases"]
        assert all(mask.shape == (20, 30) for mask in reply.masks)
        assert reply.text == "".join(sample["doc"]["pieces"])
    assert (keywords["items"], keywords["errors"], keywords["complete"]) == (2, 0, 0)
    assert set(keywords) == {
        "F1", "recall", "precision", "phrase_F1", "phrase_recall", "phrase_precision", "items", "errors", "complete",
    }  # fmt: skip
    metadata = result["configs"]["flmm_keywords"]["metadata"]
    assert metadata["noun_chunks"] == "none"
    assert metadata["problems"] == ["narrative 1 (image 785): no phrase names a segment"]
    text = "".join(said)
    assert "2 documents with 5 phrases" in text
    assert ": 3 narratives" in text
    assert "pip install spacy" in text


def test_damaged_files_cost_their_documents_and_are_counted(
    png_folder: Callable[..., Any], run: Callable[..., Any], said: list[str]
) -> None:
    folder = png_folder()
    (folder.pictures / "000000000785.jpg").write_bytes(b"no picture")
    (folder.maps / "000000000139.png").write_bytes(b"no map")
    png = numbers(run(folder, "flmm_png", batch_size=4), "flmm_png")
    assert (png["items"], png["errors"], png["complete"]) == (1, 1, 0)
    assert (png["skipped_phrases"], png["skipped_narratives"]) == (4, 2)
    assert png["AR"] == pytest.approx(0.001)
    text = "".join(said)
    assert "is skipped and has no score: panoptic map" in text
    assert "flmm_png: PARTIAL RESULT over 1 of" in text
    assert "phrases (5 in" in text
    Image.new("RGB", (20, 30)).save(folder.pictures / "000000000785.jpg")
    run(folder, "flmm_png")
    assert "is 30 x 20, its annotation says 20 x 30" in "".join(said)


def test_heads_without_a_selector_are_refused_before_the_first_answer(
    png_folder: Callable[..., Any], run: Callable[..., Any]
) -> None:
    from flmm_plugin.errors import UnknownArgument

    with pytest.raises(UnknownArgument, match="no keyword selector"):
        run(png_folder(), "flmm_keywords", selects=False)


def test_a_model_that_is_not_ours_is_scored_by_its_masks(
    png_folder: Callable[..., Any], run: Callable[..., Any]
) -> None:
    from lmms_eval.api.model import lmms

    folder = png_folder()

    class Stranger(lmms):
        """Answers every narrative with the left cat, whatever is asked, and without a word on phrases."""

        is_simple = True

        def generate_until(self, requests: list[Any]) -> list[str]:
            replies = []
            for request in requests:
                context, _, doc_to_visual, doc_id, task, split = request.args
                doc = self.task_dict[task][split][doc_id]
                assert doc_to_visual(doc)[0].size == (30, 20)
                assert all(phrase in context for phrase in doc["expressions"])
                replies.append(json.dumps({"masks": [encode_rle(folder.mask(300))] * len(doc["expressions"])}))
            return replies

        def loglikelihood(self, requests: list[Any]) -> list[Any]:
            raise NotImplementedError

        def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
            raise NotImplementedError

    stranger = numbers(run(folder, "flmm_png_bcv", model=Stranger()), "flmm_png_bcv")
    # IoU 1 with the left cat, 0 with the right one and twice the grass, 1/2 with both cats.
    assert stranger["AR"] == pytest.approx(100 * np.mean([0.99999, 1e-5, 0.50001, 1e-5, 1e-5]))
    assert stranger["AR_plural"] == pytest.approx(50.001)
    assert stranger["AR_stuff"] == pytest.approx(0.001)


@pytest.mark.parametrize("changed", [{"question": None}, {"pieces": "a man"}, {"grounded": 0}, {"pieces": None}])
def test_documents_of_another_form_are_named(changed: dict[str, Any]) -> None:
    """None was read as the word "None", a string as a list of letters."""
    request = Request(0, "", None, True, {GIVEN_TEXT_FLAG: "ground"}, "flmm_png", "val", 0, False)
    with pytest.raises(BadAnnotation, match="list"):
        text_of(request, {"question": "What?", "pieces": ["a man"], "grounded": [0], **changed})
