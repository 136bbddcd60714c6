"""SAM by name: Meta's file, checked by the digits in its name; transformers' form gives the same model."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch

from flmm_plugin.cli import main
from flmm_plugin.errors import BadAnnotation, BadCheckpoint, DataNotFound, UnknownArgument
from flmm_plugin.heads import build_sam, sam_files
from flmm_plugin.heads.sam_files import sam_file, sam_need
from flmm_plugin.needs import NotReady

ADDRESS = "/segment_anything/sam_vit_b_{}.pth"


@pytest.fixture
def world(loopback: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A server whose vit_b is a few bytes, under a name that is right for them."""
    loopback.here(monkeypatch)
    digits = hashlib.md5(b"weights").hexdigest()[:6]
    monkeypatch.setitem(sam_files.OFFICIAL_FILES, "vit_b", f"sam_vit_b_{digits}.pth")
    loopback.files["dl.fbaipublicfiles.com"].files[ADDRESS.format(digits)] = b"weights"
    return loopback


def test_metas_file_comes_once(world: Any) -> None:
    assert not sam_need("vit_b").here
    path = sam_file("vit_b")
    assert path.read_bytes() == b"weights"
    assert path.is_relative_to(world.home / ".cache/flmm/sam")
    assert sam_need("vit_b").here
    assert sam_file("vit_b", fetch=False) == path
    assert len(world.proxy.answered) == 1


def test_another_file_than_metas_is_refused(world: Any) -> None:
    with pytest.raises(DataNotFound, match="404"):
        sam_file("vit_h")
    world.files["dl.fbaipublicfiles.com"].files[ADDRESS.replace("vit_b", "vit_h").format("4b8939")] = b"weights"
    with pytest.raises(BadAnnotation, match="MD5"):
        sam_file("vit_h")
    assert not sam_need("vit_h").here


def test_nothing_is_fetched_unasked(world: Any) -> None:
    with pytest.raises(NotReady, match="vit_b"):
        sam_file("vit_b", fetch=False)
    with pytest.raises(UnknownArgument, match="vit_b"):
        sam_file("vit_bb")
    assert world.proxy.answered == []


@pytest.fixture
def of_transformers(tmp_path: Path) -> Path:
    """A random SAM of transformers' classes, of the numbers of `small`."""
    from transformers import SamConfig, SamMaskDecoderConfig, SamModel, SamPromptEncoderConfig, SamVisionConfig

    torch.manual_seed(0)
    vision = SamVisionConfig(
        hidden_size=16, output_channels=32, num_hidden_layers=2, num_attention_heads=2, image_size=64, patch_size=16,
        window_size=2, global_attn_indexes=[1], mlp_dim=64, num_pos_feats=16,
    )  # fmt: skip
    prompt = SamPromptEncoderConfig(hidden_size=32, image_size=64, patch_size=16, mask_input_channels=16)
    decoder = SamMaskDecoderConfig(hidden_size=32, mlp_dim=24, num_attention_heads=2, iou_head_hidden_dim=20)
    model = SamModel(SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder))
    for tensor in model.state_dict().values():
        tensor.normal_(std=0.2)
    model.shared_image_embedding.positional_embedding.data = model.prompt_encoder.shared_embedding.positional_embedding
    model.save_pretrained(tmp_path / "sam")
    return tmp_path / "sam"


@pytest.fixture
def small() -> dict[str, Any]:
    return {
        "image_size": 64, "patch_size": 16, "encoder_dim": 16, "depth": 2, "heads": 2, "prompt_dim": 32,
        "decoder_mlp_dim": 24, "decoder_heads": 2, "mask_channels": 16, "window_size": 2, "global_blocks": [1],
        "iou_hidden_dim": 20,
    }  # fmt: skip


def test_the_form_of_transformers_is_the_same_model(world: Any, of_transformers: Path, small: dict[str, Any]) -> None:
    from transformers import SamModel

    theirs = SamModel.from_pretrained(of_transformers).eval()
    ours = build_sam(small, sam_file(of_transformers, fetch=False))
    pixels, points = torch.randn(1, 3, 64, 64), torch.tensor([[[20.0, 30.0]]])
    mask = torch.randn(1, 1, 16, 16)
    with torch.no_grad():
        embedding = ours.image_encoder(pixels)
        sparse, dense = ours.prompt_encoder((points, torch.ones(1, 1)), None, mask)
        masks, scores = ours.mask_decoder(embedding, ours.prompt_encoder.get_dense_pe(), sparse, dense, True)
        found = theirs(pixel_values=pixels, input_points=points[None], input_masks=mask, multimask_output=True)
        theirs_embedding = theirs.get_image_embeddings(pixels)
    torch.testing.assert_close(embedding, theirs_embedding, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(masks, found.pred_masks[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scores, found.iou_scores[0], rtol=1e-5, atol=1e-5)
    assert sam_file(of_transformers).is_relative_to(world.home)


def test_a_repository_of_the_hub(world: Any, of_transformers: Path, small: dict[str, Any], tmp_path: Path) -> None:
    world.hub.add_folder("facebook/sam-vit-tiny", of_transformers)
    assert not sam_need("facebook/sam-vit-tiny").here
    path = sam_file("facebook/sam-vit-tiny")
    build_sam(small, path)
    assert sam_file("facebook/sam-vit-tiny", fetch=False) == path
    with pytest.raises(DataNotFound, match="none"):
        sam_file("facebook/none")
    with pytest.raises(BadCheckpoint, match="safetensors"):
        sam_file(tmp_path)


def test_a_name_takes_what_the_cache_of_the_hub_holds(
    world: Any, of_transformers: Path, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sam_files._OF_TRANSFORMERS, "vit_b", "facebook/sam-vit-tiny")
    world.hub.add_folder("facebook/sam-vit-tiny", of_transformers)
    assert not sam_need("vit_b").here
    sam_files._safetensors("facebook/sam-vit-tiny")  # what a user of transformers has in the cache
    asked = len(world.proxy.answered)
    assert sam_need("vit_b").here
    path = sam_file("vit_b", fetch=False)
    build_sam(small, path)
    assert "vit_b" in path.name
    assert len(world.proxy.answered) == asked
    assert sam_file("vit_b", fetch=False) == path


def test_the_command_says_where_it_is(world: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["heads", "get-sam", "vit_b", "--no-fetch"]) != 0
    assert "flmm heads get-sam vit_b" in capsys.readouterr().err
    assert main(["heads", "get-sam", "vit_b"]) == 0
    assert str(world.home / ".cache/flmm/sam") in capsys.readouterr().out
