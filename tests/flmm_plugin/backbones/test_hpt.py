"""HPT with a stand-in for its projector: the user's word, the pin, what is lent to old code, tokens on a grid."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers.modeling_utils
import transformers.pytorch_utils
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModel

from flmm_plugin.backbones import family_of, load_backbone
from flmm_plugin.backbones.hpt.model import resize_tower
from flmm_plugin.backbones.hpt.projector import check_projector, lent_names, load_projector
from flmm_plugin.errors import BackboneUnsupported, BadCheckpoint

from .families import clip_numbers
from .hpt_family import save_projector
from .test_conformance import noise, user

Load = Callable[..., Any]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def projector(folder: Path, **changes: Any) -> nn.Module:
    options = {"name": "x/hpt", "revision": None, "trust_remote_code": True, "dtype": torch.float32, **changes}
    return load_projector(str(folder), **options)


@pytest.fixture
def own_folder(family_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(family_folder("hpt_clip"), tmp_path / "hpt"))


def test_it_is_known_by_its_folders(family_folder: Callable[[str], Path]) -> None:
    """One published repository has an empty config.json, the other none."""
    assert (family_folder("hpt_clip") / "config.json").read_bytes() == b""
    assert not (family_folder("hpt_siglip") / "config.json").exists()
    assert family_of(family_folder("hpt_clip")) == family_of(family_folder("hpt_siglip")) == "hpt"


def test_no_code_runs_that_the_user_did_not_ask_for(own_folder: Path) -> None:
    ran = own_folder / "ran"
    for name in ("configuration_hformer.py", "modeling_hformer.py"):
        code = own_folder / "projector" / name
        code.write_text(f"open({str(ran)!r}, 'w').close()\n" + code.read_text())
    files = "configuration_hformer.py, modeling_hformer.py, parts.py"
    with pytest.raises(BackboneUnsupported, match=rf"{files}.*Read that code, then pass trust_remote_code=True"):
        load_backbone(own_folder, device="cpu")
    assert not ran.exists()
    load_backbone(own_folder, device="cpu", trust_remote_code=True)
    assert ran.exists()


@pytest.mark.parametrize("revision", [None, "main", COMMIT[:12]])
def test_code_from_the_hub_must_be_pinned(revision: str | None) -> None:
    with pytest.raises(BackboneUnsupported, match="revision="):
        load_projector("x/hpt", name="x/hpt", revision=revision, trust_remote_code=True, dtype=torch.float32)


def test_the_commit_that_was_given_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackboneUnsupported, match=f"revision={COMMIT}, so that no other code runs"):
        load_projector("x/hpt", name="x/hpt", revision=COMMIT, trust_remote_code=False, dtype=torch.float32)
    from flmm_plugin.backbones.hpt import projector as hpt_projector

    monkeypatch.setattr(hpt_projector, "_commit_of", lambda folder, revision: COMMIT)
    with pytest.raises(BackboneUnsupported, match=f"revision={COMMIT}, so that no other code runs"):
        load_projector("x/hpt", name="x/hpt", revision="main", trust_remote_code=True, dtype=torch.float32)


def test_names_are_lent_and_taken_back() -> None:
    places = (transformers.modeling_utils, transformers.pytorch_utils)
    names = ("find_pruneable_heads_and_indices", "prune_linear_layer", "apply_chunking_to_forward")
    before = [(place, name, getattr(place, name, None)) for place in places for name in names]
    with lent_names():
        for place in places:
            for name in names:
                assert callable(getattr(place, name))
        with pytest.raises(BackboneUnsupported, match="not pruned"):
            transformers.pytorch_utils.find_pruneable_heads_and_indices([0], 2, 4, set())
    assert [(place, name, getattr(place, name, None)) for place, name, _ in before] == before


def test_its_weights_are_loaded_strictly(tmp_path: Path) -> None:
    save_projector(tmp_path / "projector")
    stored = load_file(tmp_path / "projector" / "model.safetensors")
    loaded = projector(tmp_path).state_dict()
    assert all(torch.equal(loaded[key], stored[key]) for key in stored)
    weight = stored.pop("linear.weight")
    save_file(stored, tmp_path / "projector" / "model.safetensors")
    with pytest.raises(BadCheckpoint, match=r"linear\.weight"):
        projector(tmp_path)
    save_file({**stored, "linear.weight": weight[:-1]}, tmp_path / "projector" / "model.safetensors")
    with pytest.raises(BadCheckpoint, match="another shape"):
        projector(tmp_path)


def test_code_that_does_not_run_here_is_said_to(tmp_path: Path) -> None:
    save_projector(tmp_path / "projector")
    code = tmp_path / "projector" / "modeling_hformer.py"
    code.write_text(code.read_text().replace("self.init_weights()", "self.a_method_of_old()"))
    with pytest.raises(BackboneUnsupported, match="a_method_of_old"):
        projector(tmp_path)


class Pooled(nn.Module):
    """Makes as many tokens as it is told, however many patches there are."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.linear, self.tokens = nn.Linear(16, 32), tokens

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)[:, : self.tokens]


def test_one_token_per_patch_or_none_at_all(own_folder: Path) -> None:
    check_projector(Pooled(64), patches=64, visual_size=16, hidden_size=32, name="x")
    with pytest.raises(BackboneUnsupported, match=r"\(1, 32, 32\)"):
        check_projector(Pooled(32), patches=64, visual_size=16, hidden_size=32, name="x")
    shutil.rmtree(own_folder / "projector")
    save_projector(own_folder / "projector", hidden_size=24)
    with pytest.raises(BackboneUnsupported, match=r"\(1, 64, 24\)"):
        load_backbone(own_folder, device="cpu", trust_remote_code=True)


def test_the_tower_works_at_another_size() -> None:
    torch.manual_seed(0)
    tower = CLIPVisionModel(CLIPVisionConfig(**clip_numbers(image_size=42))).eval()
    table = next(value for name, value in tower.state_dict().items() if name.endswith("position_embedding.weight"))
    before = table.clone()
    resize_tower(tower, 70)
    after = next(value for name, value in tower.state_dict().items() if name.endswith("position_embedding.weight"))
    assert torch.equal(after[0], before[0])  # the class token has no place to move
    square = before[1:].T.reshape(1, 16, 3, 3)
    expected = F.interpolate(square, size=(5, 5), mode="bicubic", align_corners=False).reshape(16, 25).T
    torch.testing.assert_close(after[1:], expected)
    assert tower(torch.zeros(1, 3, 70, 70)).last_hidden_state.shape == (1, 26, 16)


def test_features_are_the_projector_of_the_last_but_one_layer(load_family: Load) -> None:
    backbone = load_family("hpt_clip")
    inputs = backbone.encode([user("Where?")], [[noise(60, 100, 0)]]).inputs
    body = backbone.model.model
    with torch.no_grad():
        hidden = body.vision_tower(inputs["pixel_values"], output_hidden_states=True).hidden_states
        expected = body.multi_modal_projector(hidden[-2][:, 1:])
        found = backbone.model.picture_features(inputs["pixel_values"])
    assert inputs["pixel_values"].shape == (1, 3, 112, 112)
    assert torch.equal(found, expected)


def test_chat_squashes_and_the_paper_pads(family_folder: Callable[[str], Path], load_family: Load) -> None:
    stock = load_family("hpt_siglip")
    chat = [user("Where?")], [[noise(100, 60, 0)]]
    plain = stock.encode(*chat)
    grid = plain.image_tokens[0][0].grid
    assert (grid.scale_y * 8, grid.scale_x * 8, grid.offset_y) == pytest.approx((60, 100, 0))
    paper = load_backbone(family_folder("hpt_siglip"), device="cpu", trust_remote_code=True, preprocessing="paper")
    padded = paper.encode(*chat)
    seen = padded.image_tokens[0][0].grid
    assert seen.scale_y == pytest.approx(seen.scale_x, rel=0.02)
    assert seen.offset_y < -15
    assert torch.equal(padded.inputs["pixel_values"], plain.inputs["pixel_values"])  # chat is as it was
    assert not torch.equal(padded.grounding_inputs["pixel_values"], plain.inputs["pixel_values"])


def test_conversations_end_where_their_language_model_ends_a_turn(load_family: Load) -> None:
    llama = load_family("hpt_siglip")
    assert llama.render(user("What?")) == (
        "<|start_header_id|>user<|end_header_id|>\n\n<image>\nWhat?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    yi = load_family("hpt_clip")
    assert yi.render(user("What?")) == "<|im_start|>user\n<image>\nWhat?<|im_end|>\n<|im_start|>assistant\n"
    for backbone, end in ((llama, "<|eot_id|>"), (yi, "<|im_end|>")):
        assert backbone.tokenizer.eos_token_id == backbone.tokenizer.convert_tokens_to_ids(end)
        assert backbone.model.generation_config.eos_token_id == backbone.tokenizer.eos_token_id


def test_device_map_is_the_language_models(family_folder: Callable[[str], Path], load_family: Load) -> None:
    split = load_backbone(family_folder("hpt_clip"), device_map={"": "cpu"}, trust_remote_code=True)
    plain = load_family("hpt_clip")
    encoded = plain.encode([user("Where?")], [[noise(60, 100, 2)]])
    options = {"max_new_tokens": 4, "do_sample": False}
    assert torch.equal(split.generate(encoded, **options).sequences, plain.generate(encoded, **options).sequences)
