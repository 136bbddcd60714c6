"""The weights inside the package: small enough, plain transformers, and as good as the committed table says."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flmm_plugin import tiny
from flmm_plugin.grounded_lmm import GroundedLMM
from flmm_plugin.records import mask_box
from flmm_plugin.tasks.metrics.viscot import box_iou
from flmm_plugin.tiny import evaluate, language, scenes

RESULTS = Path(__file__).parents[3] / "docs" / "results"


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    """Fifteen scenes of a seed that no committed table used."""
    return evaluate.evaluate(seed=77, scenes=15, controls=False)


def test_everything_that_ships_stays_under_20_mb() -> None:
    folder = tiny.tiny_path().parent
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 20e6


def test_plain_transformers_loads_it_in_single_precision() -> None:
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(tiny.tiny_path(), dtype="auto").eval()
    processor = AutoProcessor.from_pretrained(tiny.tiny_path())
    assert type(model).__module__.startswith("transformers.")
    assert model.dtype == torch.float32
    scene = scenes.sample_scene(np.random.default_rng(0))
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": language.DESCRIBE_PROMPT}]}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    inputs = processor(images=Image.fromarray(scenes.render(scene)), text=text, return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=72, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert processor.decode(ids, skip_special_tokens=True).strip().startswith("A ")


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_boxes_of_the_readme_s_example_are_those_of_the_things(order: tuple[int, int]) -> None:
    """A few pixels on another circle stretched the second box to an IoU of 0.41."""
    *_, (scene, _) = evaluate.held_out(2026, 5)
    named = {"red circle": ("red", "left"), "orange circle at the right": ("orange", "right")}
    phrases = [list(named)[index] for index in order]
    masks = scenes.visible_masks(scene, evaluate.SIZE)
    lmm = GroundedLMM.from_pretrained("flmm_tiny", device="cpu")
    for found in lmm.ground(scenes.render(scene, evaluate.SIZE), phrases):
        (index,) = [i for i, one in enumerate(scene.things) if (one.color, one.place_name) == named[found.phrase]]
        assert box_iou(found.box, mask_box(masks[index])) > 0.9


def test_a_string_and_a_list_of_parts_make_the_same_prompt() -> None:
    """lmms-eval's stock adapter writes the first form, transformers' chats the second."""
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(tiny.tiny_path())
    parts = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    plain = [{"role": "user", "content": "<image>\nWhat?"}]
    prompts = {
        source.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        for source, chat in ((processor, parts), (processor.tokenizer, plain))
    }
    assert prompts == {"USER: <image>\nWhat? ASSISTANT:"}


def test_chat_is_as_good_as_the_table_says(measured: dict[str, Any]) -> None:
    """Within what fifteen samples can tell: three standard errors."""
    with (RESULTS / "tiny_chat.csv").open() as file:
        table = {r["question"]: float(r["exact"]) for r in csv.DictReader(r for r in file if not r.startswith("#"))}
    for kind, got in measured["chat"].items():
        claimed = table[kind]
        slack = 3 * np.sqrt(max(claimed * (1 - claimed), 0.05) / got["n"])
        assert got["exact"] > claimed - slack, kind
    assert measured["captions"]["recall"] > table["caption names, recall"] - 0.12


def test_heads_have_one_hash_wherever_it_is_shown() -> None:
    from types import SimpleNamespace

    from flmm_plugin.heads import read_manifest

    shipped = read_manifest(tiny.heads_path()).sha256
    backbone = SimpleNamespace(device="cpu", dtype="float32", kernel="sdpa")
    assert evaluate.provenance(SimpleNamespace(backbone=backbone), tiny.heads_path())["heads_sha256"] == shipped
    for name in ("tiny_evaluate.json", "tiny_evaluate_again.json"):
        assert json.loads((RESULTS / name).read_text())["provenance"]["heads_sha256"] == shipped
    for name in ("tiny.csv", "tiny_bars.csv", "tiny_chat.csv", "training_free.csv"):
        assert f"heads_sha256: {shipped}\n" in (RESULTS / name).read_text().replace("heads_sha256 ", "heads_sha256: ")


def test_grounding_is_as_good_as_the_table_says_and_above_looking_at_nothing(measured: dict[str, Any]) -> None:
    claimed = json.loads((RESULTS / "tiny_evaluate.json").read_text())["grounding"][0]
    ours, *others = measured["grounding"]
    for column in ("decoder_ciou", "refined_ciou", "caption_refined_ciou"):
        assert ours[column] > claimed[column] - 0.12, column
    assert all(ours["refined_ciou"] > 2 * other["refined_ciou"] for other in others)
