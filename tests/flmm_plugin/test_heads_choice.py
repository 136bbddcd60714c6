"""``heads=`` on real, small backbones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flmm_plugin import grounded_lmm
from flmm_plugin.cli import main
from flmm_plugin.errors import BadCheckpoint, UnknownArgument
from flmm_plugin.grounded_lmm import GroundedLMM
from flmm_plugin.heads.training_free import NAMES, TrainingFreeHeads
from flmm_plugin.heads_choice import choose_heads
from flmm_plugin.needs import NotReady


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    from flmm_plugin.tiny.evaluate import held_out
    from flmm_plugin.tiny.scenes import render

    ((scene, _),) = held_out(5, 1)
    return Image.fromarray(render(scene))


@pytest.fixture(scope="module")
def trained() -> GroundedLMM:
    return GroundedLMM.from_pretrained("flmm_tiny")


@pytest.mark.parametrize("name", NAMES)
def test_a_method_stands_where_a_file_may_stand(name: str, trained: GroundedLMM, picture: Image.Image) -> None:
    heads = choose_heads(trained.backbone, name)
    assert isinstance(heads, TrainingFreeHeads)
    lmm = GroundedLMM(trained.backbone, heads)
    assert (lmm._prompt(None), lmm._separator) == (trained._prompt(None), trained._separator)
    found = lmm.ground(picture, ["the red circle", "the star"])
    assert [one.phrase for one in found] == ["the red circle", "the star"]
    assert all(one.mask.shape == (picture.height, picture.width) for one in found)
    coarse = lmm.ground(picture, ["the red circle", "the star"], refine=False)
    assert np.array_equal(coarse[0].logits, found[0].decoder_logits)
    assert (heads.mask_refiner is None) == np.array_equal(coarse[0].logits, found[0].logits)


def test_any_backbone_can_do_without_training(load_llava: Callable[..., Any], noise_image: Callable[..., Any]) -> None:
    backbone = load_llava("mha")
    lmm = GroundedLMM(backbone, choose_heads(backbone, "attention-argmax"))
    (found,) = lmm.ground(noise_image(90, 60), ["a dog"])
    assert found.mask.any()
    assert found.mask.shape == (60, 90)
    with pytest.raises(NotReady, match="sam"):
        choose_heads(backbone, "attend-and-segment")
    assert choose_heads(backbone, "auto") is None


def test_heads_in_memory_and_none_stay_what_they_are(trained: GroundedLMM) -> None:
    assert choose_heads(trained.backbone, trained.heads) is trained.heads
    assert choose_heads(trained.backbone, None) is None
    assert choose_heads(trained.backbone, "none") is None


@pytest.mark.parametrize(
    ("heads", "options", "error"),
    [
        ("auto", {"sam_checkpoint": "there"}, UnknownArgument),  # they have their own
        ("auto", {"sam_checkpoint": "nope.pth"}, BadCheckpoint),
        ("auto", {"sam": "none", "sam_checkpoint": "there"}, UnknownArgument),
        (None, {"sam_checkpoint": "there"}, UnknownArgument),
        (None, {"sam": "vit_l"}, UnknownArgument),
        ("attention-argmx", {}, UnknownArgument),
        ("nope.safetensors", {}, BadCheckpoint),
        ("there", {}, BadCheckpoint),
    ],
)
def test_what_is_wrong_with_heads_costs_no_loading(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, heads: str | None, options: dict[str, str], error: type[Exception]
) -> None:
    def loads(*_: Any, **__: Any) -> Any:
        raise AssertionError("the model is loaded")

    monkeypatch.setattr(grounded_lmm, "load_backbone", loads)
    there = tmp_path / "file"
    there.write_bytes(b"no heads, no SAM")
    named = {key: str(there) if value == "there" else value for key, value in options.items()}
    with pytest.raises(error):
        GroundedLMM.from_pretrained("flmm_tiny", str(there) if heads == "there" else heads, **named)  # type: ignore[arg-type]


def test_on_the_command_line(picture: Image.Image, tmp_path: Path) -> None:
    picture.save(tmp_path / "scene.png")
    words = ["ground", str(tmp_path / "scene.png"), "the red circle", "--heads", "attend-and-segment"]
    assert main([*words, "--out", str(tmp_path / "found")]) == 0
    written = json.loads((tmp_path / "found.json").read_text())
    assert len(written["masks"]) == 1
    assert len(written["provenance"]["heads_sha256"]) == 64


def test_a_typo_is_no_file(capsys: pytest.CaptureFixture[str], picture: Image.Image, tmp_path: Path) -> None:
    picture.save(tmp_path / "scene.png")
    assert main(["ground", str(tmp_path / "scene.png"), "it", "--heads", "attention-argmin"]) == 2
    assert "did you mean 'attention-argmax'" in capsys.readouterr().err
