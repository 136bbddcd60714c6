"""One file, read strictly: every way in which it can be wrong has an error that says so."""

from __future__ import annotations

import json
import os
import pickle
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from flmm_plugin.errors import BadCheckpoint, HeadsMismatch, OutputFailed, UnknownArgument
from flmm_plugin.geometry import ImageGrid
from flmm_plugin.heads import BackboneFacts, GroundingHeads, HeadsManifest, load_heads, read_manifest, save_heads
from flmm_plugin.heads import checkpoint as checkpoint_module
from flmm_plugin.heads.checkpoint import METADATA_KEY
from flmm_plugin.heads.manifest import place_of_map
from flmm_plugin.heads.weights import tensors_sha256

Make = Callable[..., GroundingHeads]
FACTS = BackboneFacts("tests/tiny-lmm", layers=2, heads=3, hidden_size=8)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "heads.safetensors"


def content(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()[METADATA_KEY])  # noqa: SIM118


def rewrite(path: Path, state: dict[str, torch.Tensor], manifest: dict[str, Any]) -> None:
    """As somebody would who edits the file and mends the hash."""
    save_file(state, path, metadata={METADATA_KEY: json.dumps({**manifest, "sha256": tensors_sha256(state)})})


def answer(heads: GroundingHeads) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    attention, hidden = torch.rand(1, 6, 4, 4, generator=generator), [torch.randn(2, 2, 8, generator=generator)]
    image = Image.fromarray(np.arange(20 * 20 * 3, dtype=np.uint8).reshape(20, 20, 3))
    with torch.no_grad():
        logits: torch.Tensor = heads(attention, hidden, image, ImageGrid(4, 4, 5.0, 5.0, 0.0, 0.0, 20, 20)).logits
    return logits


def test_round_trip_in_float32_is_exact(make_heads: Make, path: Path) -> None:
    heads = make_heads()
    stored = save_heads(path, heads)
    loaded = load_heads(path, expect=FACTS)
    assert loaded.manifest == stored == read_manifest(path)
    assert not loaded.training
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in heads.state_dict().items())
    assert torch.equal(answer(heads), answer(loaded))
    assert stored.created_by.startswith("flmm-plugin ")
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o644


def test_float16_halves_the_file_and_nearly_keeps_the_answer(make_heads: Make, path: Path, tmp_path: Path) -> None:
    heads = make_heads()
    save_heads(path, heads)
    small = tmp_path / "small.safetensors"
    assert save_heads(small, heads, storage="float16").storage == "float16"
    assert small.stat().st_size < 0.7 * path.stat().st_size
    loaded = load_heads(small, expect=FACTS)
    assert all(p.dtype == torch.float32 for p in loaded.parameters())
    assert torch.allclose(answer(heads), answer(loaded), atol=0.02 * float(answer(heads).abs().max()))
    gaussian = "mask_refiner.sam.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
    assert torch.equal(heads.state_dict()[gaussian], loaded.state_dict()[gaussian])


def test_numbers_that_float16_cannot_hold_are_refused(make_heads: Make, path: Path) -> None:
    heads = make_heads()
    with torch.no_grad():
        heads.text_layer_weights[0] = 1e6
    with pytest.raises(BadCheckpoint, match="text_layer_weights"):
        save_heads(path, heads, storage="float16")
    with pytest.raises(UnknownArgument, match="float16, float32"):
        save_heads(path, heads, storage="int4")
    assert list(path.parent.iterdir()) == []


def test_a_write_that_fails_leaves_the_old_file(make_heads: Make, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_heads(path, make_heads())
    before = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OutputFailed, match="no space"):
        save_heads(path, make_heads(seed=1))
    assert path.read_bytes() == before
    assert [one.name for one in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, 0.999])
def test_truncated_file(make_heads: Make, path: Path, keep: float) -> None:
    save_heads(path, make_heads())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep) if keep >= 1 or keep == 0 else int(len(whole) * keep)])
    with pytest.raises(BadCheckpoint, match="truncated or not a safetensors file"):
        load_heads(path)


def test_not_a_safetensors_file_and_nothing_of_it_runs(path: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "executed",))

    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(BadCheckpoint, match="not a safetensors file"):
        load_heads(path)
    assert not (tmp_path / "executed").exists()


def test_no_file(path: Path) -> None:
    with pytest.raises(BadCheckpoint, match="no heads file at"):
        load_heads(path)


def test_safetensors_of_something_else(path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(BadCheckpoint, match="manifest"):
        load_heads(path)


def test_changed_bytes_do_not_match_the_hash(make_heads: Make, path: Path) -> None:
    save_heads(path, make_heads())
    data = bytearray(path.read_bytes())
    data[-3] ^= 0x40
    path.write_bytes(bytes(data))
    with pytest.raises(BadCheckpoint, match="sha256"):
        load_heads(path)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"format_version": 2}, "format 2 is newer than format 1.*pip install -U"),
        ({"format_version": None}, "no format_version"),
        ({"colour": "red"}, "unknown manifest entries colour"),
        ({"layers": 0}, "entry layers is 0"),
        ({"hidden_size": "8"}, "entry hidden_size is '8'"),
        ({"merge": "sum"}, "merge is 'sum'"),
        ({"sam": {"image_size": 32}}, "cannot be built.*also needs patch_size"),
        ({"decoder": {"width": 3}}, "cannot be built"),
    ],
)
def test_manifest_that_cannot_be(make_heads: Make, path: Path, edit: dict[str, Any], message: str) -> None:
    save_heads(path, make_heads())
    state, manifest = content(path)
    rewrite(path, state, {**manifest, **edit})
    with pytest.raises(BadCheckpoint, match=message):
        load_heads(path)


def test_manifest_that_is_not_json_or_lacks_entries() -> None:
    with pytest.raises(BadCheckpoint, match="not JSON"):
        HeadsManifest.from_json("{")
    with pytest.raises(BadCheckpoint, match="not a JSON object"):
        HeadsManifest.from_json("[]")
    with pytest.raises(BadCheckpoint, match="lacks layers, heads, hidden_size"):
        HeadsManifest.from_json('{"format_version": 1, "backbone": "x"}')


def test_missing_unknown_and_wrong_shaped_tensors_are_named(make_heads: Make, path: Path) -> None:
    save_heads(path, make_heads())
    state, manifest = content(path)
    del state["text_proj.bias"]
    state["mask_head.extra"] = torch.zeros(1)
    state["text_proj.weight"] = torch.zeros(3, 8)
    rewrite(path, state, manifest)
    with pytest.raises(BadCheckpoint) as caught:
        load_heads(path)
    message = str(caught.value)
    assert "missing 1 (text_proj.bias" in message
    assert "unknown 1 (mask_head.extra)" in message
    assert "text_proj.weight (3, 8) instead of (16, 8)" in message


def test_many_missing_tensors_are_counted(make_heads: Make, path: Path) -> None:
    save_heads(path, make_heads())
    state, manifest = content(path)
    rewrite(path, {n: t for n, t in state.items() if not n.startswith("mask_decoder.")}, manifest)
    with pytest.raises(BadCheckpoint, match=r"missing 53 \(mask_decoder\.conv_seg\.bias .* and 45 more"):
        load_heads(path)


def test_heads_of_another_backbone_say_both_sides_numbers() -> None:
    manifest = HeadsManifest("deepseek-ai/deepseek-vl-1.3b-chat", layers=24, heads=16, hidden_size=2048)
    with pytest.raises(HeadsMismatch) as caught:
        manifest.check_fits(BackboneFacts("llava-1.5-7b", layers=32, heads=32, hidden_size=4096))
    assert str(caught.value).startswith(
        "heads expect 384 attention maps (24 layers x 16 heads) but llava-1.5-7b gives 1024 attention maps "
        "(32 layers x 32 heads); pass heads trained for it"
    )
    with pytest.raises(HeadsMismatch, match="hidden states of size 2048 but x gives 4096"):
        manifest.check_fits(BackboneFacts("x", layers=24, heads=16, hidden_size=4096))
    with pytest.raises(HeadsMismatch, match=r"768 attention maps \(24 layers x 16 heads x 2 maps per image\)"):
        manifest.check_fits(BackboneFacts("x", layers=24, heads=16, hidden_size=2048, maps_per_image=2))
    with pytest.raises(HeadsMismatch):  # as many maps, from another arrangement
        manifest.check_fits(BackboneFacts("x", layers=16, heads=24, hidden_size=2048))


def test_mismatch_is_found_before_tensors_are_read(
    make_heads: Make, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_heads(path, make_heads())
    monkeypatch.setattr(checkpoint_module, "read_safetensors", lambda path: pytest.fail("tensors were read"))
    with pytest.raises(HeadsMismatch, match="hidden states of size 8"):
        load_heads(path, expect=BackboneFacts("tests/tiny-lmm", 2, 3, 16))


def test_same_shape_of_another_name_or_revision_warns(make_manifest: Callable[..., HeadsManifest]) -> None:
    manifest = make_manifest(revision="abc")
    manifest.check_fits(BackboneFacts("some/folder/tiny-LMM/", 2, 3, 8))
    manifest.check_fits(BackboneFacts("tests/tiny-lmm", 2, 3, 8, revision="abc"))
    with pytest.warns(UserWarning, match="the shapes fit, the masks may not"):
        manifest.check_fits(BackboneFacts("other", 2, 3, 8))
    with pytest.warns(UserWarning, match="revision abc of tests/tiny-lmm, this is def"):
        manifest.check_fits(BackboneFacts("tests/tiny-lmm", 2, 3, 8, revision="def"))


def test_refiner_can_be_left_out(make_heads: Make, path: Path) -> None:
    heads = make_heads()
    save_heads(path, heads)
    coarse = load_heads(path, expect=FACTS, refiner=False)
    assert coarse.mask_refiner is None
    attention = torch.rand(1, 6, 4, 4)
    assert torch.equal(coarse.mask_decoder(attention), heads.mask_decoder(attention))


def test_image_encoder_dtype(make_heads: Make, path: Path) -> None:
    save_heads(path, make_heads())
    loaded = load_heads(path, dtype=torch.bfloat16)
    assert loaded.mask_refiner is not None
    assert {p.dtype for p in loaded.mask_refiner.sam.image_encoder.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in loaded.mask_refiner.sam.mask_decoder.parameters()} == {torch.float32}


def test_official_sam_is_not_stored_and_asked_for(
    make_heads: Make, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_sam: dict[str, Any]
) -> None:
    """``vit_b`` played by a small SAM: what counts is where its image encoder comes from."""
    import segment_anything

    from flmm_plugin.heads import build_sam, sam

    monkeypatch.setitem(segment_anything.sam_model_registry, "vit_b", lambda: build_sam(small_sam))
    monkeypatch.setattr("flmm_plugin.heads.grounding_heads.prompt_dim", lambda variant: 16)
    heads = make_heads(sam="vit_b")
    save_heads(path, heads)
    assert not any("image_encoder" in name for name in content(path)[0])
    with pytest.raises(BadCheckpoint, match=rf"download {sam.OFFICIAL_FILES['vit_b']}.*sam_checkpoint="):
        load_heads(path)
    assert load_heads(path, refiner=False).mask_refiner is None
    assert heads.mask_refiner is not None
    official = tmp_path / "sam.pth"
    torch.save(heads.mask_refiner.sam.state_dict(), official)
    assert torch.equal(answer(load_heads(path, sam_checkpoint=official)), answer(heads))


HYBRID = BackboneFacts(
    "tests/hybrid", 4, 3, 8, layer_kinds=("linear", "softmax", "sees no picture", "linear"), linear_heads=5
)


def test_heads_of_a_hybrid_know_which_layers_have_maps() -> None:
    manifest = HeadsManifest(**HYBRID.entries)
    assert manifest.attention_maps == HYBRID.attention_maps == 13
    assert HYBRID.maps_of_layers == (5, 3, 0, 5)
    assert HeadsManifest.from_json(manifest.to_json()) == manifest
    manifest.check_fits(HYBRID)
    with pytest.raises(HeadsMismatch, match="13 attention maps"):
        manifest.check_fits(BackboneFacts("tests/hybrid", 4, 3, 8))
    assert [place_of_map(HYBRID, index) for index in (0, 4, 5, 8, 12)] == [(0, 0), (0, 4), (1, 0), (3, 0), (3, 4)]


def test_heads_of_plain_models_stay_readable_for_older_versions() -> None:
    written = HeadsManifest(**FACTS.entries).to_json()
    assert not {"layer_kinds", "linear_heads", "rows"} & json.loads(written).keys()
    assert "rows" in json.loads(HeadsManifest(**FACTS.entries, rows="value").to_json())


@pytest.mark.parametrize("wrong", [{"rows": "both"}, {"layer_kinds": ["softmax"]}, {"layer_kinds": 3}])
def test_wrong_entries_about_layers_are_refused(wrong: dict[str, Any]) -> None:
    content = {**json.loads(HeadsManifest(**FACTS.entries).to_json()), **wrong}
    with pytest.raises(BadCheckpoint):
        HeadsManifest.from_json(json.dumps(content))
