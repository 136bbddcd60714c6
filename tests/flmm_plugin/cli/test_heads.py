"""``flmm heads`` from the command line: a released file in, a heads file that a model takes out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from segment_anything.modeling import Sam

from flmm_plugin.cli import main
from flmm_plugin.grounded_lmm import GroundedLMM
from flmm_plugin.heads import GroundingHeads, HeadsManifest, build_sam, hub, load_heads, save_heads

SAM: dict[str, Any] = {
    "image_size": 32, "patch_size": 8, "encoder_dim": 16, "depth": 1, "heads": 2, "prompt_dim": 16,
    "decoder_mlp_dim": 16, "decoder_heads": 2,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A SAM, its numbers, and a released file for the tiny LLaVA (3 layers x 4 heads, hidden size 64)."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    sam: Sam = build_sam(SAM)
    torch.save(sam.state_dict(), "sam.pth")
    Path("sam.json").write_text(json.dumps(SAM))
    torch.save(released(), "released.pth")
    return tmp_path


def released(layers: int = 3, heads: int = 4, hidden: int = 64, views: int = 1) -> dict[str, torch.Tensor]:
    """A released file by renaming fresh heads; `tests/flmm_plugin/heads` has one that is written independently."""
    torch.manual_seed(0)
    small = {"base_channels": 4, "upsample_to": 64}
    manifest = HeadsManifest("x", layers, heads, hidden, maps_per_image=views, sam=SAM, decoder=small)
    names = {"mask_decoder.": "mask_head.", "mask_refiner.sam.": "sam.model."}
    state = {}
    for name, tensor in GroundingHeads.build(manifest, sam=_same_sam()).state_dict().items():
        for ours, theirs in names.items():
            if name.startswith(ours):
                name = theirs + name[len(ours) :]
                break
        if "image_encoder" not in name:
            state[name] = tensor
    return state


def _same_sam() -> Sam:
    sam: Sam = build_sam(SAM)
    sam.load_state_dict(torch.load("sam.pth"))
    return sam


def test_convert_show_and_ground(
    folder: Path, llava_folders: dict[str, Path], capsys: pytest.CaptureFixture[str], noise_image: Any
) -> None:
    model = str(llava_folders["pad"])
    words = ["heads", "convert", "released.pth", "out.safetensors", "--backbone", model]
    assert main([*words, "--sam", "sam.json", "--sam-checkpoint", "sam.pth"]) == 0
    assert "nothing else is needed" in capsys.readouterr().out
    manifest = load_heads(folder / "out.safetensors").manifest
    assert (manifest.layers, manifest.heads, manifest.hidden_size, manifest.placement) == (3, 4, 64, "cells")
    assert manifest.notes == {"converted_from": "released.pth"}
    lmm = GroundedLMM.from_pretrained(model, folder / "out.safetensors", device="cpu")
    found = lmm.ground(noise_image(100, 60), ["the dog", "a brown horse"])
    assert [one.mask.shape for one in found] == [(60, 100)] * 2
    assert main(["heads", "show", "out.safetensors", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["attention_maps"] == 12
    assert shown["numbers"]["mask_decoder"] == sum(p.numel() for p in lmm.heads.mask_decoder.parameters())  # type: ignore[union-attr]
    assert main(["heads", "show", "out.safetensors"]) == 0
    assert "sam_image_encoder  in the file" in capsys.readouterr().out
    assert main([*words, "--sam", "sam.json", "--sam-checkpoint", "sam.pth"]) == 2
    assert "is there already; give another OUT, or --overwrite" in capsys.readouterr().err
    options = ["--overwrite", "--placement", "exact", "--template", "U: {image} {prompt} A:", "--storage", "float16"]
    assert main([*words, "--sam", "sam.json", "--sam-checkpoint", "sam.pth", *options]) == 0
    manifest = load_heads(folder / "out.safetensors").manifest
    assert (manifest.placement, manifest.template, manifest.storage) == ("exact", "U: {image} {prompt} A:", "float16")


def test_show_says_what_a_released_file_has_the_shape_of(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(released(24, 16, 2048), "deepseek.pth")
    assert main(["heads", "show", "deepseek.pth", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["attention_maps"], shown["shape of heads for"]) == (384, "DeepSeekVL-1.3B")
    assert main(["heads", "show", "released.pth"]) == 0
    assert "no LMM of the paper" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "kind", "fix"),
    [
        (["released.pth", "out.bin", "--backbone", "mgm-2b"], "DataNotFound", "give out.safetensors"),
        (["released.pth", "no/out.safetensors", "--backbone", "mgm-2b"], "DataNotFound", "no folder no"),
        (["nowhere.pth", "out.safetensors", "--backbone", "mgm-2b"], "BadCheckpoint", "no released heads at"),
        (["released.pth", "out.safetensors", "--backbone", "lava-1.5-7b"], "UnknownArgument", "'llava-1.5-7b'"),
        (["released.pth", "out.safetensors", "--backbone", "mgm-2b"], "HeadsMismatch", "144 attention maps, 18 layers"),
        (["released.pth", "out.safetensors", "--backbone", "MODEL", "--sam", "vit_x"], "UnknownArgument", "vit_b"),
        (["released.pth", "out.safetensors", "--backbone", "MODEL", "--sam", "a.json"], "DataNotFound", "a.json;"),
        (["released.pth", "out.safetensors", "--backbone", "MODEL", "--sam", "sam.json"], "BadCheckpoint", "whole;"),
        (["sam.pth", "out.safetensors", "--backbone", "mgm-2b"], "BadCheckpoint", "no released heads: mask_head"),
    ],
)  # fmt: skip
def test_trouble_is_one_line_that_names_the_fix(
    words: list[str],
    kind: str,
    fix: str,
    folder: Path,
    llava_folders: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [str(llava_folders["mha"]) if word == "MODEL" else word for word in words]
    assert main(["heads", "convert", *words]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"flmm: {kind}: ")
    assert fix in line
    assert not list(folder.glob("out*"))


class OneFolder:
    """A hub with one repository."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> str:
        return f"https://hub.example/{repo_id}"

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> None:
        shutil.copytree(folder_path, self.root)

    def hf_hub_download(self, repo_id: str, filename: str, *, revision: str | None) -> str:
        return str(self.root / filename)


def test_push_and_pull(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(hub, "_client", lambda: OneFolder(folder / "hub"))
    manifest = HeadsManifest("x/y", 3, 4, 64, sam=SAM, decoder={"base_channels": 4, "upsample_to": 64})
    stored = save_heads("heads.safetensors", GroundingHeads.build(manifest))
    results = {"results": {"mme": {"score,none": 12.5}}, "config": {"model": "flmm_llava", "model_args": ""}}
    Path("a_results.json").write_text(json.dumps(results))
    push = ["heads", "push", "heads.safetensors", "me/heads", "--results", "."]
    assert main([*push, "--dry-run"]) == 0
    assert "| mme | score | 12.5 |" in capsys.readouterr().out
    assert not (folder / "hub").exists()
    assert main(push) == 0
    assert "https://hub.example/me/heads" in capsys.readouterr().out
    assert "| mme | score | 12.5 |" in (folder / "hub" / "README.md").read_text()
    assert main(["heads", "pull", "me/heads", "pulled.safetensors"]) == 0
    assert stored.sha256 in capsys.readouterr().out
    pulled = load_heads("pulled.safetensors").manifest
    assert (pulled.sha256, pulled.notes["source"]) == (stored.sha256, "https://huggingface.co/me/heads")


def test_every_command_has_help_that_shows_how(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("get", "convert", "show", "list", "push", "pull"):
        with pytest.raises(SystemExit) as exit_:
            main(["heads", command, "--help"])
        assert exit_.value.code == 0
        assert f"usage: flmm heads {command}" in capsys.readouterr().out


def test_the_documented_table_is_that_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["heads", "list", "--markdown"]) == 0
    table = capsys.readouterr().out
    page = Path(__file__).resolve().parents[3] / "docs" / "heads.md"
    assert table in page.read_text(encoding="utf-8")
    assert main(["heads", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 12
    assert "deepseek-community/deepseek-vl-1.3b-chat" in lines[4]
    assert main(["heads", "list", "--json"]) == 0
    assert [row["masks"] for row in json.loads(capsys.readouterr().out)].count("whole") == 2
