"""Recipes: strict, complete, and every one that the package carries can be built."""

from __future__ import annotations

import itertools
import re
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from flmm_plugin.backbones.registry import FAMILIES, Family
from flmm_plugin.cli import main
from flmm_plugin.errors import UnknownArgument
from flmm_plugin.heads import build_sam
from flmm_plugin.heads.manifest import BackboneFacts
from flmm_plugin.heads.released import find_released
from flmm_plugin.needs import NotReady
from flmm_plugin.training import models
from flmm_plugin.training.batches import data_order
from flmm_plugin.training.distributed import chosen_trackers
from flmm_plugin.training.loop import share_of_peak
from flmm_plugin.training.models import build_heads, layer_numbers, maps_of_layers
from flmm_plugin.training.recipe import TrainRecipe, read_recipe, recipes

# Numbers of LMMs that the paper has not, from their published configurations.
OTHERS = {
    "flmm_tiny": BackboneFacts("flmm_tiny", 6, 6, 192),
    "OWNER/NAME": BackboneFacts("any", 2, 4, 32),
}

CONFIGS = resources.files("flmm_plugin.training") / "configs"
FILES = sorted(one.name.removesuffix(".yaml") for one in CONFIGS.iterdir() if one.name.endswith(".yaml"))


def text_of(name: str) -> str:
    return (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", FILES)
def test_every_recipe_builds_its_heads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "load_sam", lambda sam, checkpoint: build_sam(sam))  # weights come from a file
    recipe = read_recipe(name, ["backbone.pretrained=OWNER/NAME"] if name == "flmm_auto" else [])
    released = find_released(recipe.backbone.pretrained)
    facts = released.facts if released is not None else OTHERS[recipe.backbone.pretrained]
    with torch.device("meta"):  # shapes alone: SAM's encoder would take a gigabyte
        heads = build_heads(recipe, SimpleNamespace(facts=facts))  # type: ignore[arg-type]
    assert heads.mask_decoder.encoder[0][0].convs[0].conv.weight.shape[1] == facts.attention_maps
    assert heads.mask_refiner is not None
    assert heads.keyword_selector is not None
    if released is not None:
        assert recipe.heads.template == released.template


@pytest.mark.parametrize("name", FILES)
def test_every_header_can_be_run_and_every_knob_says_its_consequence(name: str, capsys: Any) -> None:
    text = text_of(name)
    header = [line for line in text.splitlines() if line.startswith("#")]
    lines = [line.removeprefix("#").split("  #")[0].split() for line in header if re.match(r"#\s+flmm train", line)]
    assert lines
    for words in lines:
        assert main([*words[1:], "--print"]) == 0, words
        assert TrainRecipe.from_dict(yaml.safe_load(capsys.readouterr().out)) is not None
    if "\nextends: " in text:
        return
    told = sum("#" in line for line in text.splitlines() if re.match(r"\s*\w+:", line))
    assert told > 25


def test_every_model_of_the_package_has_a_recipe() -> None:
    from flmm_plugin.adapters.lmms_eval.models import MODELS

    assert set(recipes()) == set(MODELS) | set(FILES)


@pytest.mark.parametrize("family", [one for one in FAMILIES if one.model not in FILES], ids=lambda one: one.model)
def test_a_model_without_a_file_is_trained_as_any_other(family: Family) -> None:
    assert read_recipe(family.model) == read_recipe("flmm_auto", [f"backbone.pretrained={family.pretrained}"])


def test_a_recipe_states_what_differs_from_the_one_that_it_extends(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("extends: flmm_deepseekvl\nheads: {decoder: {upsample_to: 32}}\nepochs: 2\n")
    beside = tmp_path / "less.yaml"
    beside.write_text("extends: mine.yaml\ndata: {parts: [{dataset: png}]}\n")
    family, mine = read_recipe("flmm_deepseekvl"), read_recipe(beside, ["data.parts.0.limit=5", "epochs=3"])
    assert mine.heads.decoder.upsample_to == 32
    assert (mine.epochs, [(part.dataset, part.limit) for part in mine.data.parts]) == (3, [("png", 5)])
    assert (mine.heads.template, mine.optimiser) == (family.heads.template, family.optimiser)
    (tmp_path / "mine.yaml").write_text("extends: less.yaml\n")
    with pytest.raises(UnknownArgument, match="circle"):
        read_recipe(beside)
    beside.write_text("extends: [flmm_tiny]\n")
    with pytest.raises(UnknownArgument, match="extends"):
        read_recipe(beside)


def test_sam_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLMM_CACHE", str(tmp_path))
    for checkpoint in (None, "vit_b"):
        with pytest.raises(NotReady, match="sam_vit_b"):
            models.load_sam("vit_b", checkpoint)


def test_the_recipe_of_any_model_takes_nothing_of_another() -> None:
    with pytest.raises(UnknownArgument, match=r"backbone\.pretrained"):
        read_recipe("flmm_auto")
    recipe = read_recipe("flmm_auto", ["backbone.pretrained=OWNER/NAME"])
    said = (recipe.heads.template, recipe.heads.preprocessing, recipe.heads.placement, recipe.heads.refiner.checkpoint)
    assert said == ("", "stock", "exact", None)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("optimizer.lr=1", "unknown key 'optimizer'; did you mean 'optimiser'"),
        ("heads.decoder.base_channel=3", "unknown key 'heads.decoder.base_channel'; did you mean 'base_channels'"),
        ("epochs=many", "epochs is 'many'; it must be a whole number"),
        ("epochs=0", "at least 1"),
        ("heads.merge=median", "known: mean, max"),
        ("heads.decoder.layers=lat", "all | early | mid | late or a list"),
        ("optimiser.betas=[0.9]", "optimiser.betas is"),
        ("data.parts.7.limit=3", "'7' is no place in a list"),
        ("data.parts.0.dataset=coco", "dataset is 'coco'"),
        ("bad_samples", "no key=value"),
        ("data.parts=[]", "name at least one data set"),
        ("cache.cap_gb=[", "not YAML"),
        ("validation.every=0", "counts epochs"),
        ("optimiser.warmup=1", "share of all steps"),
        ("optimiser.decoder_first=1", "share of all steps"),
        ("control=randum", "did you mean 'random'"),
        ("data.parts.0.questions=['Where is it?']", "needs one {}"),
        ("data.parts.1.questions=['Where is the {}?']", "png"),
    ],
)
def test_what_is_wrong_is_said(change: str, said: str) -> None:
    with pytest.raises(UnknownArgument, match=re.escape(said)):
        read_recipe("flmm_tiny", [change])


def test_files_names_and_changes(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("backbone: {pretrained: x/y}\noptimiser: {lr: 1e-4}\nheads: {decoder: {layers: [2, 1]}}\n")
    recipe = read_recipe(path, ["data.parts=[{dataset: png, limit: 3}]", "data.parts.0.split=val", "steps=7"])
    assert recipe.optimiser.lr == 1e-4, "which YAML takes for a word"
    assert (recipe.data.parts[0].split, recipe.data.parts[0].limit, recipe.steps) == ("val", 3, 7)
    assert recipe.heads.decoder.layers == (2, 1)
    assert TrainRecipe.from_dict(yaml.safe_load(yaml.safe_dump(recipe.to_dict()))) == recipe
    with pytest.raises(UnknownArgument, match="did you mean 'flmm_tiny'"):
        read_recipe("flmm_tny")
    path.write_text("- 1")
    with pytest.raises(UnknownArgument, match="holds no keys"):
        read_recipe(path)


def test_layers_by_name_and_the_maps_that_are_theirs(load_llava: Any) -> None:
    backbone = load_llava("mha")  # 3 layers x 4 heads
    assert maps_of_layers(backbone, (2,)) == [4, 5, 6, 7]
    assert maps_of_layers(backbone, layer_numbers("late", 3)) == [8, 9, 10, 11]
    with pytest.raises(UnknownArgument, match="count from 1 to 3"):
        layer_numbers((0,), 3)
    recipe = TrainRecipe.from_dict(
        {"heads": {"decoder": {"layers": [2], "normalise": False}, "refiner": {"enabled": False}, "rows": "value"}}
    )
    heads = build_heads(recipe, backbone)
    assert heads.manifest.rows == "value"
    decoder = heads.mask_decoder.eval()
    maps = torch.rand(1, 12, 4, 4)
    others = maps.clone()
    others[:, [0, 1, 2, 3, 8, 9, 10, 11]] = 0
    assert torch.equal(decoder(maps), decoder(others))
    others[:, 5] *= 2
    assert not torch.equal(decoder(maps), decoder(others))


def test_schedule_and_order_depend_on_the_step_alone() -> None:
    numbers = TrainRecipe().optimiser
    rates = [share_of_peak(numbers, step, 100) for step in range(100)]
    assert rates[:3] == pytest.approx([1 / 3, 2 / 3, 1])
    assert all(one >= other for one, other in itertools.pairwise(rates[2:]))
    assert rates[-1] < 0.001
    orders = [data_order(50, 0, epoch).tolist() for epoch in (0, 1)]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(50))
    assert data_order(50, 1, 0).tolist() != orders[0]


def test_trackers_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from flmm_plugin.training import distributed

    monkeypatch.setattr(distributed, "_installed", lambda name: name == "wandb")
    assert chosen_trackers(["wandb"]) == (("wandb",), "")
    names, said = chosen_trackers(["auto"])
    assert names == ()
    assert "pip install tensorboard" in said
    monkeypatch.setattr(distributed, "_installed", lambda name: name == "tensorboard")
    assert chosen_trackers(["auto"]) == (("tensorboard",), "")
    with pytest.raises(UnknownArgument, match="did you mean 'wandb'"):
        chosen_trackers(["wandbb"])
    with pytest.raises(UnknownArgument, match="mlflow is not installed"):
        chosen_trackers(["mlflow"])
