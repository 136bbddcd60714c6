"""``flmm train`` from a YAML file: what it prints, and what it leaves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from flmm_plugin.cli import build_parser, main
from flmm_plugin.cli.train import write_validation_page
from flmm_plugin.grounded_lmm import GroundedLMM
from flmm_plugin.training.validation import Scores, ValidationReport
from tests.flmm_plugin.backbones.families import save_vipllava

SAM = {
    "image_size": 32, "patch_size": 4, "encoder_dim": 16, "depth": 1, "heads": 2, "prompt_dim": 16,
    "decoder_mlp_dim": 16, "decoder_heads": 2,
}  # fmt: skip


@pytest.fixture
def config(refer_folder: Callable[..., Any], llava_folders: dict[str, Path], tmp_path: Path) -> Path:
    refer_folder()
    parts = [{"dataset": "refcoco", "split": "val"}]
    recipe = {
        "backbone": {"pretrained": str(llava_folders["mha"])},
        "heads": {"decoder": {"base_channels": 4, "upsample_to": 16}, "refiner": {"sam": SAM}},
        "data": {"root": str(tmp_path), "parts": parts},
        "validation": {"parts": parts},
        "trackers": [],
    }
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def test_estimate_build_train_and_the_page(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["train", str(config), "steps=1", "--out", str(tmp_path / "run"), "--quiet"]
    assert main([*line, "--estimate"]) == 0
    assert "4 samples, 6 phrases, 2 pictures" in capsys.readouterr().err
    assert not list((tmp_path / "run" / "features").glob("*/*.safetensors")), "nothing is written to estimate"
    assert main([*line, "--build-cache-only"]) == 0
    assert "2 samples were there, 2 were read" in capsys.readouterr().out
    assert main([*line, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["steps"], result["best_step"], result["scores"]["phrases"]) == (1, 1, 3)
    assert Path(result["heads"]).is_file()
    page = (tmp_path / "run" / "validation.html").read_text()
    assert "The 0 Thing!" in page or "thing no. 0, again" in page
    assert main(["heads", "show", str(tmp_path / "run" / "heads.safetensors")]) == 0
    assert main(["train", str(config), "steps=1", "epochs=9", "--out", str(tmp_path / "run"), "--quiet"]) == 2
    assert "epochs: 8, now 9" in capsys.readouterr().err


def test_a_model_without_a_family_of_its_own_gets_heads(
    refer_folder: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = tmp_path / "vipllava", tmp_path / "run"
    save_vipllava(model)
    refer_folder()
    small = {
        "backbone.pretrained": model, "data.root": tmp_path, "data.parts": "[{dataset: refcoco, split: val}]",
        "validation.parts": "[]", "heads.refiner.sam": json.dumps(SAM), "heads.decoder.base_channels": 4,
        "heads.decoder.upsample_to": 16, "trackers": "[]", "steps": 1,
    }  # fmt: skip
    changes = [f"{key}={value}" for key, value in small.items()]
    assert main(["train", "flmm_auto", *changes, "--out", str(out), "--quiet"]) == 0
    assert "1 steps" in capsys.readouterr().out
    lmm = GroundedLMM.from_pretrained(str(model), heads=str(out), device="cpu")
    assert lmm.heads is not None
    manifest = lmm.heads.manifest
    assert (type(lmm.backbone).__name__, lmm.backbone.preprocessing) == ("AutoBackbone", "stock")
    assert (manifest.template, manifest.placement, manifest.separator) == ("", "exact", ";")
    picture = min((tmp_path / "coco" / "train2014").glob("*.jpg"))
    (found,) = lmm.ground(picture, ["the thing"])
    assert found.mask.shape == (60, 100)


def test_what_a_recipe_lacks_is_on_one_screen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FLMM_CACHE", str(tmp_path / "cache"))
    line = ["train", "flmm_deepseekvl", f"data.root={tmp_path}", "--out", str(tmp_path / "run"), "--no-fetch"]
    assert main(line) == 2
    said = capsys.readouterr().err
    for part in ("deepseek-vl-1.3b-chat", "sam_vit_l_0b3195.pth", "refcoco", "png"):
        assert part in said


def test_flags_change_the_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "flmm_tiny", "seed=3", "--no-cache", "--early-stop", "2", "--print"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert (printed["seed"], printed["cache"]["enabled"], printed["validation"]["patience"]) == (3, False, 2)
    assert main(["train", "--list"]) == 0
    assert "flmm_deepseekvl" in capsys.readouterr().out
    assert main(["train"]) == 2
    assert "flmm_tiny" in capsys.readouterr().err
    assert main(["train", "flmm_tinny"]) == 2
    assert "did you mean 'flmm_tiny'" in capsys.readouterr().err


def test_a_torn_log_costs_its_half_line_alone(tmp_path: Path) -> None:
    report = ValidationReport(8, 2.0, Scores(0.5, 0.4, 0.4, 0.6, None, 10, 0), (), True)
    log = tmp_path / "log.jsonl"
    log.write_bytes(b'{"step": 4, "epoch": 1.0, "recall": 0.25, "ciou": 0.125}\n\xff\n[1]\n{"step": 5, "recall": 0.')
    write_validation_page(tmp_path / "validation.html", report)
    page = (tmp_path / "validation.html").read_text()
    assert "0.125" in page
    assert "0.5" in page


@pytest.mark.parametrize(
    ("content", "word"),
    [(b"epochs: \xff", "UTF-8"), (b"epochs: " + b"[" * 900, "deeply"), (b"epochs: &a [*a]", "line 1")],
)
def test_a_recipe_that_cannot_be_read_is_named(
    tmp_path: Path, content: bytes, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "own.yaml"
    path.write_bytes(content)
    assert main(["train", str(path)]) == 2
    told = capsys.readouterr().err
    assert "own.yaml" in told
    assert word in told


def test_what_is_saved_is_said_to_whoever_stops_a_run(tmp_path: Path) -> None:
    args = build_parser("train").parse_args(["train", "flmm_tiny", "--out", str(tmp_path)])
    assert "no step is saved" in args.stopped(args)
    (tmp_path / "checkpoints" / "step_00000030").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step_00000040.part").mkdir()
    assert "step_00000030 is saved" in args.stopped(args)
    assert "same line" in args.stopped(args)
    args = build_parser("ablate").parse_args(["ablate", "decoder", "--out", str(tmp_path)])
    assert "same line" in args.stopped(args)


@pytest.mark.parametrize("words", [["train", "flmm_tiny"], ["ablate", "decoder"]])
def test_an_output_that_cannot_be_is_said_at_once(
    tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").write_text("")
    assert main([*words, "--out", str(tmp_path / "taken" / "run")]) == 2
    assert "OutputFailed" in capsys.readouterr().err
