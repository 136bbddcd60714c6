"""Processor files that are old or incomplete: the answer of complete ones, or a refusal on loading that names why."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flmm_plugin.backbones import load_backbone
from flmm_plugin.errors import BackboneUnsupported
from flmm_plugin.grounded_lmm import GroundedLMM

Load = Callable[..., Any]
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8))
GONE = object()


@pytest.fixture
def changed(family_folder: Callable[[str], Path], tmp_path: Path) -> Load:
    """``changed(kind, {"patch_size": None, "image_processor.size": GONE})``: its folder with that processor file."""

    def change(kind: str, changes: dict[str, Any]) -> Path:
        folder = Path(shutil.copytree(family_folder(kind), tmp_path / "copy"))
        path = folder / "processor_config.json"
        content = json.loads(path.read_text())
        for name, value in changes.items():
            *parents, last = name.split(".")
            place = content
            for parent in parents:
                place = place[parent]
            place.pop(last, None)
            if value is not GONE:
                place[last] = value
        path.write_text(json.dumps(content))
        return folder

    return change


def answer(backbone: Any) -> Any:
    return GroundedLMM(backbone).chat(PICTURE, "What is it?", max_new_tokens=4, do_sample=False)


LLAVA = ["llava", "auto_vipllava", "llava_next_vicuna"]


@pytest.mark.parametrize("kind", LLAVA)
@pytest.mark.parametrize("value", [None, GONE])
@pytest.mark.parametrize(
    "fields",
    [
        ["patch_size"],
        ["vision_feature_select_strategy"],
        ["num_additional_image_tokens"],
        ["patch_size", "vision_feature_select_strategy", "num_additional_image_tokens", "image_token"],
    ],
)
def test_what_is_missing_is_the_models(
    kind: str, fields: list[str], value: Any, changed: Load, load_family: Load
) -> None:
    completed = load_backbone(changed(kind, dict.fromkeys(fields, value)), device="cpu")
    assert answer(completed) == answer(load_family(kind))
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Where?"}]}]
    found, whole = (one.encode([chat], [[PICTURE]]).image_tokens[0][0] for one in (completed, load_family(kind)))
    assert (found.grid, found.slots.tolist()) == (whole.grid, whole.slots.tolist())


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        ("llava_next_vicuna", "image_processor.image_grid_pinpoints"),
        ("llava_onevision", "num_image_tokens"),
        ("llava_onevision", "vision_feature_select_strategy"),
        ("qwen2_5_vl", "image_processor.patch_size"),
        ("qwen3_vl", "image_processor.merge_size"),
        ("internvl", "image_seq_length"),
        ("deepseek_vl", "num_image_tokens"),
    ],
)
def test_empty_fields_of_other_families_too(kind: str, field: str, changed: Load, load_family: Load) -> None:
    assert answer(load_backbone(changed(kind, {field: None}), device="cpu")) == answer(load_family(kind))


@pytest.mark.parametrize("kind", ["llava", "llava_next_vicuna"])
def test_the_layout_of_old_checkpoints(kind: str, changed: Load, load_family: Load) -> None:
    """No processor_config.json at all, the chat template in the tokenizer's file."""
    folder = changed(kind, {})
    processor, template = folder / "processor_config.json", folder / "chat_template.jinja"
    pictures = json.loads(processor.read_text())["image_processor"]
    (folder / "preprocessor_config.json").write_text(json.dumps(pictures))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer["chat_template"] = template.read_text()
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    processor.unlink()
    template.unlink()
    assert answer(load_backbone(folder, device="cpu")) == answer(load_family(kind))


@pytest.mark.parametrize(
    ("kind", "changes", "named"),
    [
        ("llava", {"patch_size": 17}, "patch_size is 17"),
        ("llava", {"num_additional_image_tokens": 4}, "num_additional_image_tokens is 4"),
        ("llava", {"vision_feature_select_strategy": "full"}, "vision_feature_select_strategy is full"),
        ("llava", {"image_processor.crop_size": GONE}, "crop_size is .*the vision tower takes 56"),
        ("llava", {"image_processor.image_mean": None}, "image_mean is empty"),
        ("llava", {"image_processor.size": None}, "size is empty"),
        ("llava", {"image_processor.do_center_crop": None}, "do_center_crop is empty"),
        ("llava_next_vicuna", {"image_processor.image_grid_pinpoints": GONE}, "image_grid_pinpoints is"),
        ("llava_onevision", {"num_image_tokens": 19}, "num_image_tokens is 19"),
        ("qwen2_vl", {"image_processor.merge_size": 3}, "merge_size is 3"),
        ("qwen3_vl", {"image_processor.patch_size": 9}, "patch_size is 9"),
        ("internvl", {"image_seq_length": 9}, "image_seq_length is 9"),
        ("deepseek_vl", {"num_image_tokens": 9}, "num_image_tokens is 9"),
    ],
)
def test_what_contradicts_the_model_is_refused_on_loading(
    kind: str, changes: dict[str, Any], named: str, changed: Load
) -> None:
    with pytest.raises(BackboneUnsupported, match=named):
        load_backbone(changed(kind, changes), device="cpu")


@pytest.mark.parametrize("content", ["[]", "{", "{}", '{"image_processor": 5}'])
def test_a_processor_file_that_is_none(content: str, changed: Load) -> None:
    folder = changed("llava", {})
    (folder / "processor_config.json").write_text(content)
    with pytest.raises(BackboneUnsupported, match="cannot load the processor"):
        load_backbone(folder, device="cpu")


def test_numbers_that_agree_in_another_way_are_left_alone(changed: Load, load_family: Load) -> None:
    """ "full" without a class token counts as "default" with one does: the stock model answers, and so it stays."""
    other = {"vision_feature_select_strategy": "full", "num_additional_image_tokens": 0}
    backbone = load_backbone(changed("llava", other), device="cpu")
    assert backbone.processor.num_additional_image_tokens == 0
    assert answer(backbone) == answer(load_family("llava"))


def test_a_processor_that_runs_out_of_pictures_is_refused_by_name(
    load_family: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = load_family("llava")
    monkeypatch.setattr(type(backbone.processor), "__call__", lambda *_, **__: next(iter(())))
    with pytest.raises(BackboneUnsupported, match="StopIteration"):
        backbone.try_processor()
