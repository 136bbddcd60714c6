"""Model names and families: which checkpoint is whose, and what the arguments of loading become."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flmm_plugin.adapters.answering.arguments import ModelArguments
from flmm_plugin.adapters.answering.defaults import DEFAULTS, model_for
from flmm_plugin.adapters.lmms_eval import models
from flmm_plugin.adapters.lmms_eval.classes import FlmmAuto, FlmmLlava, FlmmQwen25Vl
from flmm_plugin.adapters.lmms_eval.model import FlmmModel
from flmm_plugin.backbones.registry import FAMILIES, Family
from flmm_plugin.errors import UnknownArgument
from flmm_plugin.options import LoadOptions, as_switch

DOCS = Path(__file__).resolve().parents[3] / "docs"
PAGE, TASKS_PAGE = ((DOCS / name).read_text(encoding="utf-8") for name in ("backbones.md", "tasks.md"))


def checkpoint(folder: Path, family: str) -> Path:
    (folder / "config.json").write_text(json.dumps({"model_type": family}))
    return folder


class Remembering(FlmmModel):
    def load(self, arguments: ModelArguments, device: str) -> Any:
        self.asked = arguments
        return SimpleNamespace(
            seal=None, heads=None, backbone=SimpleNamespace(device="cpu", tokenizer=None, name="it"), merge="mean"
        )


def test_a_checkpoint_of_another_family_names_its_model(tmp_path: Path) -> None:
    with pytest.raises(UnknownArgument, match=r"is a 'qwen3_vl' model: use --model flmm_qwen3_vl"):
        FlmmLlava(pretrained=str(checkpoint(tmp_path, "qwen3_vl")), device="cpu")
    with pytest.raises(UnknownArgument, match=r"qwen2_5_vl and qwen2_vl models.*use --model flmm_auto"):
        FlmmQwen25Vl(pretrained=str(checkpoint(tmp_path, "ovis2")), device="cpu")


@pytest.mark.parametrize(
    ("family", "name"),
    [("llava", "flmm_llava"), ("llava_next", "flmm_llava_next"), ("qwen2_vl", "flmm_qwen2_5_vl"),
     ("deepseek_vl_hybrid", "flmm_deepseekvl"), ("internvl", "flmm_internvl"), ("qwen3_5_moe", "flmm_qwen3_5"),
     ("glm46v", "flmm_glm4v"), ("something", "flmm_auto")],
)  # fmt: skip
def test_every_family_has_a_model(family: str, name: str) -> None:
    assert model_for(family) == name
    assert name in models.MODELS.keys() & DEFAULTS.keys()
    assert models.MODELS.keys() == DEFAULTS.keys()


@pytest.mark.parametrize("named", FAMILIES, ids=lambda one: one.model)
def test_a_name_and_its_checkpoint_are_in_the_docs(named: Family) -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith(f"| `{named.model}` | `{named.pretrained}`")]
    assert len(rows) == 1
    assert f"`{named.model}`" in TASKS_PAGE


def test_flmm_auto_must_be_told_which_model() -> None:
    with pytest.raises(UnknownArgument, match="pretrained="):
        FlmmAuto(device="cpu")


def test_arguments_of_loading_arrive_as_what_they_mean() -> None:
    model = Remembering(
        pretrained="x", device="cpu", load_in_4bit="True", load_in_8bit="false", preprocessing="paper", sam="none"
    )
    asked = model.asked
    assert (asked.pretrained, asked.heads, asked.device) == ("x", "auto", "cpu")
    assert asked.options == LoadOptions(load_in_4bit=True, preprocessing="paper")
    assert asked.grounding == {"sam": "none"}
    with pytest.raises(UnknownArgument, match="did you mean 'preprocessing'"):
        Remembering(pretrained="x", device="cpu", preprocesing="paper")
    with pytest.raises(UnknownArgument, match="load_in_4bit is 'four'"):
        as_switch("load_in_4bit", "four")
