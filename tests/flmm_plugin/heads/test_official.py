"""Released heads: read strictly, told apart, and after conversion the very numbers of `released_oracle`."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from segment_anything.modeling import Sam
from torch import Tensor

from flmm_plugin.errors import BadCheckpoint, HeadsMismatch, UnknownArgument, UnsafePickle
from flmm_plugin.geometry import ImageGrid
from flmm_plugin.heads import BackboneFacts, build_sam, load_heads, save_heads
from flmm_plugin.heads.official import convert, describe, read_official
from flmm_plugin.heads.released import RELEASED, find_released, need_released

from .released_oracle import Padding, ground, padded_then_resized, released_state, resized_then_padded

LAYERS, HEADS, HIDDEN, GRID, PATCH = 2, 3, 8, 12, 4
SIDE = GRID * PATCH
FACTS = BackboneFacts("tests/tiny-lmm", LAYERS, HEADS, HIDDEN)


def official_sam(numbers: dict[str, Any], seed: int = 1) -> Sam:
    torch.manual_seed(seed)
    sam = build_sam(numbers)
    for parameter in sam.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return sam.eval()


def picture(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def reading(lengths: tuple[int, ...], channels: int, height: int, width: int) -> tuple[list[Tensor], list[Tensor]]:
    """Attention with one bright spot per phrase, and hidden states."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for index, length in enumerate(lengths):
        maps = torch.rand(length, channels, height, width, generator=generator)
        maps[..., index + 1 : index + 4, 2 : 4 + index] += 4
        rows.append(maps / 300)
    return rows, [torch.randn(length, LAYERS, HIDDEN, generator=generator) for length in lengths]


def with_an_empty_one(state: dict[str, Tensor], coarse: Tensor) -> dict[str, Tensor]:
    """The same heads with the bias moved so that exactly the faintest phrase has no positive logit."""
    peaks = coarse.flatten(1).max(1).values.sort().values
    bias = state["mask_head.conv_seg.bias"] - (peaks[0] + peaks[1]) / 2
    return {**state, "mask_head.conv_seg.bias": bias}


@pytest.fixture
def sam_file(small_sam: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "sam.pth"
    torch.save(official_sam(small_sam).state_dict(), path)
    return path


@pytest.fixture
def state(small_sam: dict[str, Any]) -> dict[str, Tensor]:
    return released_state(LAYERS * HEADS, LAYERS, HIDDEN, official_sam(small_sam), base=4)


Case = tuple[ImageGrid, Padding | None]


def resize_pad(height: int, width: int) -> Case:
    grid = ImageGrid.from_resize_then_pad(height, width, SIDE, PATCH, rounded=False)
    return grid, resized_then_padded(height, width, SIDE)


def pad_resize(height: int, width: int) -> Case:
    return ImageGrid.from_pad_then_resize(height, width, SIDE, PATCH), padded_then_resized(height, width)


@pytest.mark.parametrize("case", [resize_pad, pad_resize])
@pytest.mark.parametrize(("height", "width"), [(40, 40), (30, 50), (67, 41), (20, 90)])
def test_converted_heads_give_the_released_masks(
    state: dict[str, Tensor],
    small_sam: dict[str, Any],
    sam_file: Path,
    tmp_path: Path,
    case: Callable[[int, int], Case],
    height: int,
    width: int,
) -> None:
    """Square and padded pictures, phrases of 1, 3, 2 and 3 tokens, one of them with an empty prediction."""
    grid, padding = case(height, width)
    rows, hidden = reading((1, 3, 2, 3), LAYERS * HEADS, GRID, GRID)
    image, sam = picture(height, width), build_sam(small_sam, sam_file)
    with torch.no_grad():
        first, _ = ground(state, sam, rows, hidden, image, padding)
        state = with_an_empty_one(state, first)
        coarse, refined = ground(state, sam, rows, hidden, image, padding)
        assert sorted(bool((one > 0).any()) for one in coarse) == [False, True, True, True]
        heads = convert(state, FACTS, sam=small_sam, sam_checkpoint=sam_file)
        save_heads(tmp_path / "heads.safetensors", heads)
        loaded = load_heads(tmp_path / "heads.safetensors", expect=FACTS)
        merged = torch.stack([phrase.mean(0) for phrase in rows])
        ours = loaded(merged, hidden, image, grid)
        assert (loaded.coarse(merged, grid).maps - coarse).abs().max() < 1e-4
        assert (ours.logits - refined).abs().max() < 1e-4
        assert ours.logits.shape == ours.decoder_logits.shape == (4, height, width)
    # Not an easy target: logits vary, and the padding of the other way of laying them down would be seen.
    assert refined.std() > 0.05
    if height != width:
        alone, _ = ground(state, sam, rows[:1], hidden[:1], image, None)
        assert alone.shape[1:] != coarse.shape[1:]


def test_masks_depend_on_the_others_of_the_call_as_released_ones_do(
    state: dict[str, Tensor], small_sam: dict[str, Any], sam_file: Path
) -> None:
    grid, padding = pad_resize(30, 50)
    rows, hidden = reading((1, 2), LAYERS * HEADS, GRID, GRID)
    heads = convert(state, FACTS, sam=small_sam, sam_checkpoint=sam_file)
    merged = torch.stack([phrase.mean(0) for phrase in rows])
    with torch.no_grad():
        together = heads(merged, hidden, picture(30, 50), grid).logits
        for one in range(2):
            part = slice(one, one + 1)
            ours = heads(merged[part], hidden[part], picture(30, 50), grid).logits
            _, alone = ground(state, build_sam(small_sam, sam_file), rows[part], hidden[part], picture(30, 50), padding)
            assert (ours - alone).abs().max() < 1e-4
            apart = (ours - together[part]).abs().max()
            lowest = heads.coarse(merged, grid).maps.amin((1, 2))
            assert (apart > 1e-4) == bool(lowest[one] > lowest.min() and lowest.min() < -1)


def test_two_views_stretched_as_they_are(small_sam: dict[str, Any], sam_file: Path) -> None:
    """Heads of LLaVA-Next: twice the maps on a grid that is not square, nothing cut out."""
    facts = BackboneFacts("tests/two-views", LAYERS, HEADS, HIDDEN, maps_per_image=2)
    state = released_state(2 * LAYERS * HEADS, LAYERS, HIDDEN, official_sam(small_sam), base=4)
    rows, hidden = reading((2, 1), 2 * LAYERS * HEADS, 9, 14)
    image, sam = picture(37, 60), build_sam(small_sam, sam_file)
    grid = ImageGrid(9, 14, 37 / 8.6, 60 / 14, -1.0, 0.0, 37, 60)  # a little of the padding left at the edge
    heads = convert(state, facts, sam=small_sam, sam_checkpoint=sam_file, placement="whole")
    merged = torch.stack([phrase.mean(0) for phrase in rows])
    with torch.no_grad():
        coarse, refined = ground(state, sam, rows, hidden, image, None)
        assert (heads.coarse(merged, grid).maps - coarse).abs().max() < 1e-4
        assert (heads(merged, hidden, image, grid).logits - refined).abs().max() < 1e-4


# --- released sizes ------------------------------------------------------------------------------------------------


@pytest.fixture
def narrow_vit_l(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """``vit_l`` with an image encoder of one narrow block; prompt encoder and mask decoder have the official size."""
    import segment_anything

    numbers = {
        "image_size": 1024, "patch_size": 16, "encoder_dim": 16, "depth": 1, "heads": 1, "prompt_dim": 256,
        "window_size": 14,
    }  # fmt: skip
    monkeypatch.setitem(segment_anything.sam_model_registry, "vit_l", lambda: build_sam(numbers))
    return numbers


def test_official_sizes_through_the_file_that_is_published(narrow_vit_l: dict[str, Any], tmp_path: Path) -> None:
    """DeepSeekVL-1.3B: 384 maps, 64 channels, prompts of 256; the encoder asked for, and joined."""
    lmm = need_released("deepseek-vl-1.3b")
    torch.manual_seed(2)
    meta = build_sam(narrow_vit_l)
    torch.save(meta.state_dict(), tmp_path / "sam_vit_l_0b3195.pth")
    state = released_state(384, 24, 2048, meta, base=64, drift=0.03)
    assert sum(key.startswith("mask_head.") for key in state) == 53
    assert sum(state[key].numel() for key in state if key.startswith("mask_head.")) == 7_403_969
    half = {key: tensor.half() for key, tensor in state.items()}
    torch.save({"state_dict": half, "meta": {"iter": 95080}}, tmp_path / "released.pth")
    tensors = read_official(tmp_path / "released.pth")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    grid = ImageGrid.from_resize_then_pad(48, 64, 384, 16, rounded=False)
    generator = torch.Generator().manual_seed(0)
    rows = [torch.rand(t, 384, 24, 24, generator=generator) ** 4 / 500 for t in (2, 1)]
    hidden = [torch.randn(t, 24, 2048, generator=generator) for t in (2, 1)]
    merged = torch.stack([phrase.mean(0) for phrase in rows])
    with torch.no_grad():
        coarse, refined = ground(
            tensors, build_sam("vit_l", tmp_path / "sam_vit_l_0b3195.pth"), rows, hidden, picture(48, 64),
            resized_then_padded(48, 64, 384),
        )  # fmt: skip
        path = tmp_path / "heads.safetensors"
        manifest = save_heads(path, convert(tensors, lmm, sam_checkpoint=tmp_path / "sam_vit_l_0b3195.pth"))
        loaded = load_heads(path, expect=lmm.facts)
        logits = loaded(merged, hidden, picture(48, 64), grid).logits
        assert (loaded.coarse(merged, grid).maps - coarse).abs().max() < 1e-4
    assert coarse.shape == (2, 48, 64)
    assert refined.std() > 0.01
    assert (logits - refined).abs().max() < 1e-4
    assert (manifest.template, manifest.placement) == ("User: {image}{prompt}\n\nAssistant:", "cells")
    assert manifest.sam_joined
    assert load_heads(path, refiner=False).mask_refiner is None


def test_the_image_encoder_is_left_out_and_asked_for_unless_it_is_joined(
    state: dict[str, Tensor],
    small_sam: dict[str, Any],
    sam_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import segment_anything

    monkeypatch.setitem(segment_anything.sam_model_registry, "vit_b", lambda: build_sam(small_sam))
    monkeypatch.setattr("flmm_plugin.heads.grounding_heads.prompt_dim", lambda variant: 16)
    sizes, answers = {}, {}
    rows, hidden = reading((2,), LAYERS * HEADS, GRID, GRID)
    grid, _ = pad_resize(30, 50)
    for name, given, join in (("joined", sam_file, True), ("apart", sam_file, False), ("without", None, True)):
        path = tmp_path / f"{name}.safetensors"
        manifest = save_heads(path, convert(state, FACTS, sam="vit_b", sam_checkpoint=given, join=join))
        assert manifest.sam_joined == (name == "joined")
        sizes[name] = path.stat().st_size
        if name != "joined":
            with pytest.raises(BadCheckpoint, match=r"download sam_vit_b_01ec64\.pth"):
                load_heads(path)
        loaded = load_heads(path, sam_checkpoint=None if name == "joined" else sam_file)
        with torch.no_grad():
            merged = torch.stack([phrase.mean(0) for phrase in rows])
            answers[name] = loaded(merged, hidden, picture(30, 50), grid).logits
    assert sizes["joined"] > sizes["apart"] + 4 * 1000
    assert abs(sizes["without"] - sizes["apart"]) < 100
    assert torch.equal(answers["joined"], answers["apart"])
    assert torch.equal(answers["joined"], answers["without"])


# --- what is refused -----------------------------------------------------------------------------------------------


def test_missing_unknown_and_wrong_shaped_tensors_are_named_with_what_they_should_be(
    state: dict[str, Tensor], small_sam: dict[str, Any], sam_file: Path
) -> None:
    state["mask_head.conv_seg.biass"] = state.pop("mask_head.conv_seg.bias")
    del state["text_proj.bias"]
    state["mask_head.encoder.1.1.convs.0.gn.weight"] = torch.ones(3)
    state["keyword_head.weight"] = torch.ones(1)
    with pytest.raises(BadCheckpoint) as caught:
        convert(state, FACTS, sam=small_sam, sam_checkpoint=sam_file)
    message = str(caught.value)
    assert "missing 2 (mask_head.conv_seg.bias (1,), text_proj.bias (16,))" in message
    assert (
        "unknown 2 (keyword_head.weight, mask_head.conv_seg.biass (should it be mask_head.conv_seg.bias?))" in message
    )
    assert "mask_head.encoder.1.1.convs.0.gn.weight (3,) instead of (8,)" in message


def test_heads_of_another_lmm_are_recognised(small_sam: dict[str, Any]) -> None:
    state = released_state(1024, 32, 4096, official_sam(small_sam), base=4)
    assert describe(state) == (1024, 32, 4096)
    with pytest.raises(HeadsMismatch) as caught:
        convert(state, need_released("deepseek-vl-1.3b"))
    message = str(caught.value)
    assert "1024 attention maps, 32 layers, hidden size 4096" in message
    assert "384 attention maps, 24 layers, hidden size 2048 (24 layers x 16 heads x 1 maps per image)" in message
    assert "look like heads of LLaVA-1.5-7B, MGM-7B, HPT-Air, HPT-Air-1.5" in message
    assert "--backbone LLaVA-1.5-7B" in message
    with pytest.raises(HeadsMismatch, match="no LMM of the paper has these numbers"):
        convert(released_state(6, 2, 8, official_sam(small_sam), base=4), need_released("mgm-2b"))


def test_the_position_code_comes_from_sam_where_the_file_has_none(
    state: dict[str, Tensor], small_sam: dict[str, Any], sam_file: Path
) -> None:
    key = "sam.model.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
    full = convert(state, FACTS, sam=small_sam, sam_checkpoint=sam_file)
    without = {name: tensor for name, tensor in state.items() if name != key}
    again = convert(without, FACTS, sam=small_sam, sam_checkpoint=sam_file)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in full.state_dict().items())
    with pytest.raises(BadCheckpoint, match=r"--sam-checkpoint sam_vit_b_01ec64\.pth"):
        convert(without, FACTS, sam="vit_b")
    rounded = {**state, key: state[key].bfloat16().float()}
    convert(rounded, FACTS, sam=small_sam, sam_checkpoint=sam_file)
    with pytest.raises(HeadsMismatch, match="position"):
        convert({**state, key: state[key] + 0.1}, FACTS, sam=small_sam, sam_checkpoint=sam_file)
    with pytest.raises(BadCheckpoint, match="stored whole; pass sam_checkpoint"):
        convert(state, FACTS, sam=small_sam)


def test_frozen_parts_of_a_file_are_left_out(state: dict[str, Tensor], tmp_path: Path) -> None:
    extra = {"llava.model.norm.weight": torch.ones(2), "sam.model.image_encoder.pos_embed": torch.ones(2)}
    torch.save({**state, **extra}, tmp_path / "whole.pth")
    assert read_official(tmp_path / "whole.pth").keys() == state.keys()


def test_files_that_are_something_else(state: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "heads.pth"
    with pytest.raises(BadCheckpoint, match="no released heads at"):
        read_official(path)
    with pytest.raises(BadCheckpoint, match="folder"):
        read_official(tmp_path)
    torch.save(state, path)
    whole = path.read_bytes()
    for size in (0, 10, len(whole) // 2):
        path.write_bytes(whole[:size])
        with pytest.raises((BadCheckpoint, UnsafePickle)):
            read_official(path)
    torch.save([1, 2], path)
    with pytest.raises(BadCheckpoint, match="holds a list"):
        read_official(path)
    torch.save({**state, "epoch": 3}, path)
    with pytest.raises(BadCheckpoint, match="epoch"):
        read_official(path)
    with pytest.raises(BadCheckpoint, match="no released heads: mask_head"):
        describe({"weight": torch.ones(1)})


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "executed",))

    torch.save({"state_dict": {"weight": Evil()}}, tmp_path / "evil.pth")
    with pytest.raises(UnsafePickle, match="save its tensors alone"):
        read_official(tmp_path / "evil.pth")
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(Evil(), protocol=2))
    with pytest.raises((UnsafePickle, BadCheckpoint)):
        read_official(tmp_path / "bare.pth")
    assert not (tmp_path / "executed").exists()


def test_the_papers_lmms_are_found_by_name_hub_id_and_folder() -> None:
    assert len(RELEASED) == 10
    names = [name for one in RELEASED for name in set(one.names)]
    assert len(names) == len(set(names))
    found = need_released("some/folder/llava-v1.6-mistral-7b-hf/")
    assert (found.name, found.facts.attention_maps, found.placement) == ("LLaVA-Next-Mistral-7B", 2048, "whole")
    assert find_released("gpt") is None
    with pytest.raises(UnknownArgument, match=r"did you mean 'deepseekvl-1\.3b'"):
        need_released("deepseekvl-1.3")
    for one in RELEASED:
        text = one.template.format(image="<image>", prompt="Look.")
        assert text.index("<image>") < text.index("Look.")
