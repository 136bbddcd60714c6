"""Arms of the paper's ablations: which recipes they are, and that each is trained once, measured, and drawn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flmm_plugin.cli import main
from flmm_plugin.errors import TrainingStopped, UnknownArgument
from flmm_plugin.reports.tables import read_csv
from flmm_plugin.training import ablations
from flmm_plugin.training.ablations import (
    DECODER,
    REFINER,
    STUDIES,
    chosen,
    finished_run,
    run_name,
    run_study,
    variant_recipe,
    with_sams,
)
from flmm_plugin.training.recipe import read_recipe

CONFIG = "flmm_tiny_ablation"
#: Of every run here: next to nothing is learnt from next to nothing.
SMALL = ["data.scenes=2", "steps=1", "batch_size=2", "validation.parts=[{dataset: refcoco, split: train, limit: 1}]"]


@pytest.mark.parametrize("study", STUDIES.values(), ids=lambda study: study.key)
@pytest.mark.parametrize("config", [CONFIG, "flmm_deepseekvl"])  # the small one, and the paper's
def test_every_arm_is_a_recipe_of_its_own(study: Any, config: str, tmp_path: Path) -> None:
    base = read_recipe(config)
    study = with_sams(study, base)
    for part in study.parts:
        made = [
            variant_recipe(config, [*study.changes, *variant.changes], 0, tmp_path).to_dict()
            for variant in part.variants
        ]
        assert len({json.dumps(one, sort_keys=True) for one in made}) == len(made), part.key
        names = [run_name([*study.changes, *variant.changes], 0) for variant in part.variants]
        assert len(set(names)) == len(names)


def test_the_decoder_is_studied_without_the_refiner(tmp_path: Path) -> None:
    for part in DECODER.parts:
        for variant in part.variants:
            recipe = variant_recipe(CONFIG, [*DECODER.changes, *variant.changes], 3, tmp_path)
            assert not recipe.heads.refiner.enabled
            assert recipe.seed == 3
            assert recipe.cache.folder == str(tmp_path / "features")


def test_table_5a_gives_sam_one_prompt_more_per_row(tmp_path: Path) -> None:
    (prompts,) = REFINER.parts
    made = [variant_recipe(CONFIG, variant.changes, 0, tmp_path).heads.refiner for variant in prompts.variants]
    assert [one.enabled for one in made] == [False, True, True, True]
    given = [(one.prompts.mask, one.prompts.box, one.prompts.text) for one in made[1:]]
    assert given == [(True, False, False), (True, True, False), (True, True, True)]


def test_sams_are_compared_by_name() -> None:
    tiny = read_recipe(CONFIG)
    small = with_sams(REFINER, tiny).parts[1].variants
    assert [variant.name for variant in small] == ["small SAM, initial weights", "small SAM, trained"]
    official = (
        with_sams(REFINER, read_recipe("flmm_deepseekvl", ["heads.refiner.checkpoint=own.pth"])).parts[1].variants
    )
    assert [variant.name for variant in official] == ["SAM ViT-B", "SAM ViT-L", "SAM ViT-H"]
    assert official[1].changes == ()  # the recipe's own
    made = variant_recipe("flmm_deepseekvl", official[2].changes, 0, Path("out")).heads.refiner
    assert (made.sam, made.checkpoint) == ("vit_h", None)
    assert with_sams(DECODER, tiny) == DECODER


def test_the_study_of_maps_trains_heads_for_values() -> None:
    (part,) = STUDIES["maps"].parts
    rows = [variant_recipe(CONFIG, variant.changes, 0, Path("out")).heads.rows for variant in part.variants]
    assert rows == ["attention", "value"]


def test_parts_and_arms_are_chosen_by_name() -> None:
    assert [part.key for part in chosen(DECODER, ["merge", "layers"]).parts] == ["merge", "layers"]
    with pytest.raises(UnknownArgument, match="layers, merge, normalise, size"):
        chosen(DECODER, ["layer"])
    smaller = chosen(DECODER, ["merge", "size"], ["96", "max", "mean"])
    assert [[variant.name for variant in part.variants] for part in smaller.parts] == [["token grid", "32", "64"]]
    with pytest.raises(UnknownArgument, match="late"):
        chosen(DECODER, ["merge"], ["late"])
    with pytest.raises(UnknownArgument, match="leave one"):
        chosen(DECODER, ["merge"], ["max", "mean"])


def test_names_of_runs_are_file_names() -> None:
    name = run_name(["heads.refiner.sam=vit_b", "heads.refiner.checkpoint=/some where/sam_vit_b.pth"], 0)
    assert name == "sam-vit-b+checkpoint-sam-vit-b-pth+seed-0"
    assert run_name([], 2) == "seed-2"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder study of two parts that share an variant, run through the command."""
    folder = tmp_path_factory.mktemp("ablations")
    words = ["ablate", "decoder", "--config", CONFIG, *SMALL, "--parts", "merge", "normalise", "--out", str(folder)]
    assert main([*words, "--quiet"]) == 0
    return folder


def test_an_arm_of_two_parts_is_trained_once(out: Path) -> None:
    assert {path.parent.name for path in out.glob("*/run.json")} == {
        "selector-false+enabled-false+seed-0",
        "selector-false+merge-max+enabled-false+seed-0",
        "selector-false+normalise-false+enabled-false+seed-0",
    }


def test_the_table_says_where_it_is_from(out: Path) -> None:
    table = read_csv(out / "decoder.csv")
    assert table["variant"].tolist() == ["mean", "max", "normalised", "as they are"]
    score = "average recall (mean IoU), %"
    assert table[score][0] == table[score][2]  # the shared variant
    assert all(0 <= float(value) <= 100 for value in table[score])
    assert all(float(value) > 0 for value in table["decoder, GFLOP per phrase"])
    head = (out / "decoder.csv").read_text().split("in the paper")[0]
    for fact in ("command: flmm ablate decoder data.scenes=2", "frozen weights: ", "learnt from: ", "versions: "):
        assert f"# {fact}" in head
    assert str(out) not in head
    assert (out / "decoder.png").read_bytes().startswith(b"\x89PNG")


def test_finished_arms_are_read_and_others_are_not(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*given: Any) -> None:
        raise AssertionError("a finished variant was trained again")

    monkeypatch.setattr(ablations, "_trained", fails)
    said: list[str] = []
    study = chosen(DECODER, ["merge"])
    found = list(run_study(study, CONFIG, SMALL, out, say=said.append))
    assert [(one.part, one.variant) for one in found] == [("merge", "mean"), ("merge", "max")]
    assert all(line.endswith("finished before") for line in said)
    folder = found[0].folder
    again = variant_recipe(CONFIG, [*SMALL, *study.changes], 0, out)
    assert finished_run(folder, again) is not None
    for other in ("steps=2", "validation.parts=[{dataset: refcoco, split: train, limit: 2}]"):
        assert finished_run(folder, variant_recipe(CONFIG, [*SMALL, other, *study.changes], 0, out)) is None
    with pytest.raises(AssertionError, match="trained again"):
        list(run_study(study, CONFIG, SMALL, out, seeds=[1]))


def test_arms_of_another_model_are_not_compared(out: Path) -> None:
    record = out / "selector-false+merge-max+enabled-false+seed-0" / "run.json"
    before = record.read_text()
    content = json.loads(before)
    record.write_text(json.dumps({**content, "frozen": ["another model", *content["frozen"][1:]]}))
    with pytest.raises(TrainingStopped, match=r"selector-false.enabled-false.seed-0"):
        list(run_study(chosen(DECODER, ["merge"]), CONFIG, SMALL, out))
    record.write_text(before)


def test_the_selector_is_read_at_every_threshold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = [*SMALL[:-1], "validation.parts=[{dataset: png, split: val, limit: 1}]", "heads.refiner.enabled=false"]
    words = ["ablate", "selector", "--config", CONFIG, *small, "--out", str(tmp_path), "--quiet"]
    assert main(words) == 0
    table = read_csv(tmp_path / "selector.csv")
    assert [name for name in table["method"] if "threshold" in name] == [
        f"keyword selector, threshold {limit}" for limit in ablations.THRESHOLDS
    ]
    recalls = [float(value) for value in table["recall, %"] if value][: len(ablations.THRESHOLDS)]
    assert recalls == sorted(recalls, reverse=True)
    assert "82.8" in table["F1, %"].tolist()  # the paper's own row
    assert (tmp_path / "selector.png").exists()
    assert "82.8" in capsys.readouterr().out


def test_parts_and_arms_are_listed_without_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ablate", "decoder", "--list"]) == 0
    assert "layers     early, mid, late, all" in capsys.readouterr().out
