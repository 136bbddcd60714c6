"""``flmm ground``, ``chat`` and ``attention`` with a real tiny LLaVA and random heads, through the command line."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flmm_plugin.cli import main
from flmm_plugin.errors import BadCheckpoint
from flmm_plugin.grounded_lmm import GroundedLMM
from flmm_plugin.heads import GroundingHeads, HeadsManifest, save_heads
from flmm_plugin.records import parse_masks_json

SAM = {
    "image_size": 32, "patch_size": 8, "encoder_dim": 16, "depth": 1, "heads": 2,
    "prompt_dim": 16, "decoder_mlp_dim": 16, "decoder_heads": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def model(llava_folders: dict[str, Path]) -> Path:
    return llava_folders["mha"]


@pytest.fixture(scope="module")
def write_heads(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    def write(**changes: Any) -> Path:
        entries = {
            "backbone": str(model), "layers": 3, "heads": 4, "hidden_size": 64, "sam": SAM, "keyword_selector": True,
            "decoder": {"base_channels": 4, "upsample_to": 16}, "keyword_threshold": 0.0,
        }  # fmt: skip
        torch.manual_seed(0)
        path = tmp_path_factory.mktemp("heads") / "heads.safetensors"
        save_heads(path, GroundingHeads.build(HeadsManifest(**{**entries, **changes})))
        return path

    return write


@pytest.fixture(scope="module")
def heads(write_heads: Callable[..., Path]) -> Path:
    return write_heads()


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (60, 100, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "scene.png")
    return tmp_path / "scene.png"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_ground_writes_masks_of_the_pictures_size(
    scene: Path, model: Path, heads: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["ground", "scene.png", "a brown horse", "the dog", "--model", str(model), "--heads", str(heads)]
    assert main([*words, "--device", "cpu"]) == 0
    assert names(scene.parent) == ["scene.ground.json", "scene.ground.png", "scene.png"]
    text = (scene.parent / "scene.ground.json").read_text(encoding="utf-8")
    reply = parse_masks_json(text)
    assert reply.error is None
    assert [mask.shape for mask in reply.masks] == [(60, 100)] * 2
    assert [phrase["phrase"] for phrase in reply.phrases] == ["a brown horse", "the dog"]
    provenance = json.loads(text)["provenance"]
    assert len(provenance["heads_sha256"]) == 64
    assert provenance["refined"] is True
    expected = GroundedLMM.from_pretrained(model, heads, device="cpu").ground(scene, ["a brown horse", "the dog"])
    assert all(np.array_equal(one.mask, mask) for one, mask in zip(expected, reply.masks, strict=True))
    with Image.open(scene.parent / "scene.ground.png") as drawing:
        assert drawing.width == 500
    assert "a brown horse" in capsys.readouterr().out


def test_options_reach_the_model(scene: Path, model: Path, heads: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    real = GroundedLMM.ground

    def spy(self: GroundedLMM, *args: Any, **kwargs: Any) -> Any:
        asked.append(kwargs)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(GroundedLMM, "ground", spy)
    common = ["ground", "scene.png", "a dog", "--model", str(model), "--heads", str(heads), "--device", "cpu"]
    assert main([*common, "--separate", "--no-refine", "--prompt", "Look.", "--out", "other.png"]) == 0
    assert asked == [{"prompt": "Look.", "joint": False, "refine": False}]
    assert names(scene.parent) == ["other.json", "other.png", "scene.png"]


def test_chat_says_what_the_model_says_and_grounds_it(
    scene: Path, model: Path, heads: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = GroundedLMM.from_pretrained(model, None, device="cpu").chat(scene, "What is it?", max_new_tokens=6)
    words = ["chat", "scene.png", "What is it?", "--model", str(model), "--heads", str(heads), "--device", "cpu"]
    assert main([*words, "--max-new-tokens", "6"]) == 0
    content = json.loads((scene.parent / "scene.chat.json").read_text(encoding="utf-8"))
    assert content["text"] == plain.text
    assert capsys.readouterr().out.startswith(plain.text + "\n")
    for phrase in content["phrases"]:
        start, end = phrase["span"]
        assert plain.text[start:end] == phrase["phrase"]


def test_chat_without_grounding_loads_no_heads_and_writes_nothing(
    scene: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["chat", "scene.png", "What is it?", "--no-ground", "--model", str(model), "--device", "cpu"]
    assert main([*words, "--max-new-tokens", "4"]) == 0
    assert names(scene.parent) == ["scene.png"]
    assert "score" not in capsys.readouterr().out


def test_attention_draws_every_map(scene: Path, model: Path) -> None:
    assert main(["attention", "scene.png", "the dog", "--model", str(model), "--device", "cpu", "--clusters", "2"]) == 0
    with Image.open(scene.parent / "scene.attention.png") as sheet:
        assert sheet.height > 3 * 72
        assert sheet.width >= 4 * 72


@pytest.mark.parametrize(
    ("words", "kind", "fix"),
    [
        (["ground", "absent.png", "a dog"], "BadImage", "no file absent.png"),
        (["ground", "scene.png", "a dog"], "HeadsMismatch", "flmm train"),
        (["ground", "scene.png", " ", "--heads", "HEADS"], "EmptyPhrase", ""),
        (["ground", "scene.png", "a dog", "--heads", "nowhere.safetensors"], "BadCheckpoint", "no heads file"),
        (["ground", "scene.png", "a dog", "--heads", "scene.png"], "BadCheckpoint", "not a safetensors file"),
        (["ground", "scene.png", "a dog", "--heads", "HEADS", "--sam", "scene.png"], "UnknownArgument", "sam"),
        (["chat", "scene.png", "What?", "--heads", "NO_SELECTOR"], "HeadsMismatch", "no keyword selector"),
        (
            ["ground", "scene.png", "a dog", "--heads", "OTHER"],
            "HeadsMismatch",
            "24 attention maps (6 layers x 4 heads)",
        ),
        (["ground", "scene.png", "a dog", "--heads", "HEADS", "--out", "no/where"], "DataNotFound", "no folder no"),
    ],
)
def test_trouble_is_one_line_and_status_2(
    words: list[str],
    kind: str,
    fix: str,
    scene: Path,
    model: Path,
    heads: Path,
    write_heads: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    made: dict[str, Callable[[], Path]] = {
        "HEADS": lambda: heads,
        "NO_SELECTOR": lambda: write_heads(keyword_selector=False),
        "OTHER": lambda: write_heads(layers=6),
    }
    words = [str(made[word]()) if word in made else word for word in words]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main([*words, "--model", str(model), "--device", "cpu"]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith(f"flmm: {kind}: ")
    assert fix in last
    assert names(scene.parent) == ["scene.png"]


def test_a_file_that_is_no_picture(scene: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scene.write_text("not a picture")
    assert main(["attention", "scene.png", "a dog"]) == 2
    assert capsys.readouterr().err.startswith("flmm: BadImage: ")


# What can be known from the command line alone is said before torch is imported.
_EARLY = [
    (["ground", "absent.png", "a"], "BadImage", "absent.png"),
    (["ground", "https://host/a.jpg", "a"], "BadImage", ""),
    (["ground", "a red circle " * 40, "scene.png"], "BadImage", "the picture comes first"),
    (["ground", "scene.png", "a", "--model", "m" * 300], "UnknownArgument", "no model"),
    (["ground", "scene.png", "a", "--heads", "h" * 300 + ".safetensors"], "BadCheckpoint", "no heads file"),
    (["ground", "scene.png", " "], "EmptyPhrase", "phrase 0"),
    (["ground", "scene.png", "\u200b"], "EmptyPhrase", "phrase 0"),
    (["ground", "scene.png", "a", "--prompt", "\udcff"], "BadText", "--prompt"),
    (["ground", "scene.png", "a", "--sam", "nope.pth"], "UnknownArgument", "--sam"),
    (["ground", "scene.png", "a", "--sam", "nope.pth", "--heads", "scene.png"], "BadCheckpoint", "nope.pth"),
    (["ground", "scene.png", "a", "--sam", "scene.png", "--no-refine"], "UnknownArgument", "--sam"),
    (["ground", "scene.png", "a", "--heads", "nope.safetensors"], "BadCheckpoint", "nope.safetensors"),
    (["ground", "scene.png", "a", "--heads", "none"], "UnknownArgument", "--no-ground"),
    (["ground", "scene.png", "a", "--model", "flmm_llava"], "UnknownArgument", "--model llava-hf/llava-1.5-7b-hf"),
    (["ground", "scene.png", "a", "--model", "flmm_auto"], "UnknownArgument", "harness"),
    (["ground", "scene.png", "a", "--model", "flmm_tinny"], "UnknownArgument", "'flmm_tiny'"),
    (["ground", "scene.png", "a", "--model", ""], "UnknownArgument", "no model"),
    (["ground", "scene.png", "a", "--model", "scene.png"], "UnknownArgument", "is a file"),
    (["ground", "scene.png", "a", "--revision", "main"], "UnknownArgument", "--revision"),
    (["ground", "scene.png", "a", "--out", "scene.png"], "OutputFailed", "the picture itself"),
    (["ground", "scene.png", "a", "--out", "."], "OutputFailed", "names no file"),
    (["ground", "scene.png", "a", "--out", "folder"], "OutputFailed", "folder.png"),
    (["ground", "scene.png", "a", "--out", "a" * 300], "OutputFailed", "too long"),
    (["ground", "scene.png", "a", "--out", "scene.png/a"], "DataNotFound", "scene.png"),
    (["chat", "scene.png", " "], "EmptyPhrase", "question"),
    (["chat", "scene.png", "a", "--no-ground", "--heads", "x"], "UnknownArgument", "--heads"),
    (["chat", "scene.png", "a", "--no-ground", "--out", "x"], "UnknownArgument", "--out"),
    (["chat", "scene.png", "a", "--heads", "none", "--threshold", "0.5"], "UnknownArgument", "--threshold"),
    (["attention", "scene.png", ""], "EmptyPhrase", "phrase 0"),
    (["attention", "scene.png", "a", "--no-refine"], "UnknownArgument", "--no-refine"),
    (["attention", "scene.png", "a", "--masks", "--compare", "flmm_tiny"], "UnknownArgument", "--compare"),
    (["attention", "scene.png", "a", "--compare", "flmm_tiny", "--clusters", "3"], "UnknownArgument", "--clusters"),
    (["attention", "scene.png", "a", "--compare", "flmm_mgm"], "UnknownArgument", "YanweiLi/MGM-2B"),
    (["doctor", "--backbone", "nope"], "UnknownArgument", "'nope'"),
    (["doctor", "--backbone", "flmm_tinny"], "UnknownArgument", "'flmm_tiny'"),
    (["doctor", "--backbone", "flmm_tiny", "--run"], "UnknownArgument", "--run"),
    (["doctor", "--device", "cpu"], "UnknownArgument", "--device"),
    (["doctor", "--dtype", "float32"], "UnknownArgument", "--dtype"),
    (["heads", "localize", "--model", "flmm_mgm"], "UnknownArgument", "YanweiLi/MGM-2B"),
]
_RUN = """
import contextlib, io, json, sys
from flmm_plugin.cli import main
for words in json.load(sys.stdin):
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        status = main(words)
    print(json.dumps([status, said.getvalue(), "torch" in sys.modules]))
"""


def test_what_is_wrong_with_a_line_is_said_before_torch_is_imported(scene: Path) -> None:
    (scene.parent / "folder.png").mkdir()
    lines = [words for words, *_ in _EARLY]
    done = subprocess.run(
        [sys.executable, "-c", _RUN], input=json.dumps(lines), capture_output=True, text=True, check=True
    )
    for (words, kind, fix), line in zip(_EARLY, done.stdout.splitlines(), strict=True):
        status, said, torch_is_there = json.loads(line)
        last = said.strip().splitlines()[-1]
        assert (status, torch_is_there) == (2, False), (words, said)
        assert last.startswith(f"flmm: {kind}: "), (words, said)
        assert fix in last, (words, said)
    assert names(scene.parent) == ["folder.png", "scene.png"]


def test_a_device_that_is_not_here_is_named(scene: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["ground", "scene.png", "a"], ["doctor", "--backbone", "flmm_tiny"], ["heads", "localize"]):
        for device in ("gpu", "cuda:99"):
            assert main([*words, "--device", device]) == 2
            assert "UnknownArgument: --device" in capsys.readouterr().err


def test_the_default_model_says_what_it_knows_and_one_that_was_asked_for_does_not(
    scene: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: Any, **__: Any) -> Any:
        raise BadCheckpoint("loaded")

    monkeypatch.setattr(GroundedLMM, "from_pretrained", stop)
    for words in (["ground", "scene.png", "a"], ["chat", "scene.png", "a"], ["attention", "scene.png", "a"]):
        for model, lines in ((), 2), (("--model", "flmm_tiny"), 1):
            assert main([*words, *model]) == 2
            said = capsys.readouterr().err.strip().splitlines()
            assert len(said) == lines
            assert ("knows only drawn shapes" in said[0]) == (lines == 2)


def test_heads_none_chats_as_in_lmms_eval(scene: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["chat", "scene.png", "What is it?", "--model", str(model), "--device", "cpu", "--max-new-tokens", "3"]
    assert main([*words, "--heads", "none"]) == 0
    assert names(scene.parent) == ["scene.png"]
