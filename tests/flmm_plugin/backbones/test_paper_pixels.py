"""Grounding's pixels under ``preprocessing="paper"``, held against the families' own tools written out step by step.

What those tools do: LLaVA-1.5 and HPT resize the longest side with Pillow, the other truncated, and pad with the mean
colour; DeepSeek-VL likewise but never below 14 pixels, and its 7B interpolates the small view from the large one's
floats; LLaVA-NeXT's tiles are resized with Pillow; MGM pads at the original size.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor

from flmm_plugin.adapters.answering.provenance import record_of
from flmm_plugin.backbones import load_backbone

from .families import FAMILIES

Load = Callable[..., Any]
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
PAPER = sorted(name for name, family in FAMILIES.items() if family.paper)


def photo(width: int = 101, height: int = 60) -> Image.Image:
    """Smooth enough that resampling filters agree but for their arithmetic, and not flat."""
    small = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def floats(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255


def normalised(pixels: Tensor, numbers: Any) -> Tensor:
    mean, std = (torch.tensor(part)[:, None, None] for part in numbers)
    return (pixels - mean) / std


def square(picture: Image.Image, side: int, mean: Any, least: int = 1) -> Image.Image:
    longest = max(picture.size)
    width, height = (max(int(length / longest * side), least) for length in picture.size)
    made = Image.new("RGB", (side, side), tuple(int(255 * value) for value in mean))
    resized = picture.resize((width, height), Image.Resampling.BICUBIC)
    made.paste(resized, ((side - width) // 2, (side - height) // 2))
    return made


def expected(name: str, backbone: Any, picture: Image.Image) -> dict[str, Tensor]:
    if name.startswith("mgm"):
        return {}  # one preprocessing: test_mgm.py holds it against the authors' steps
    if name.startswith("llava_next"):
        stock = backbone.processor.image_processor
        views = [picture.resize((56, 56), Image.Resampling.BICUBIC)]
        # 101 x 60 fits 112 x 112 best (66 rows), padded with black above and below.
        tiles = Image.new("RGB", (112, 112))
        tiles.paste(picture.resize((112, 67), Image.Resampling.BICUBIC), (0, (112 - 67) // 2))
        views += [tiles.crop((x, y, x + 56, y + 56)) for y in (0, 56) for x in (0, 56)]
        assert [list(pair) for pair in stock.image_grid_pinpoints].count([112, 112]) == 1
        return {"pixel_values": torch.stack([normalised(floats(view), CLIP) for view in views])}
    if name == "deepseek_vl":
        return {"pixel_values": normalised(floats(square(picture, 168, HALF[0], 14)), HALF)}
    if name == "deepseek_vl_hybrid":
        large = floats(square(picture, 192, CLIP[0], 14))
        small = torchvision.transforms.Resize(168, antialias=True)(large)
        return {"high_res_pixel_values": normalised(large, CLIP), "pixel_values": normalised(small, CLIP)}
    side = {"llava": 56, "hpt_clip": 112, "hpt_siglip": 112}[name]
    numbers = HALF if name == "hpt_siglip" else CLIP
    return {"pixel_values": normalised(floats(square(picture, side, numbers[0])), numbers)}


@pytest.mark.parametrize("name", PAPER)
def test_heads_see_the_pixels_that_they_were_trained_with(
    name: str, family_folder: Callable[[str], Any], load_family: Load
) -> None:
    stock = load_family(name)
    paper = load_backbone(family_folder(name), device="cpu", preprocessing="paper", **FAMILIES[name].options)
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Where?"}]}]
    encoded, plain = (one.encode([chat], [[photo()]]) for one in (paper, stock))
    assert all(torch.equal(encoded.inputs[key], plain.inputs[key]) for key in plain.inputs), "chat stays stock"
    seen = encoded.grounding_inputs
    for key, pixels in expected(name, paper, photo()).items():
        assert (seen[key][0] - pixels).abs().max() < 1e-5
        assert not torch.equal(plain.inputs[key][0], seen[key][0])
    assert torch.equal(encoded.image_tokens[0][0].slots, plain.image_tokens[0][0].slots)


@pytest.mark.parametrize(("width", "height"), [(3, 60), (300, 2)])
def test_deepseek_pads_no_side_below_its_least(width: int, height: int, family_folder: Callable[[str], Any]) -> None:
    paper = load_backbone(family_folder("deepseek_vl"), device="cpu", preprocessing="paper")
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Where?"}]}]
    picture = photo(width, height)
    encoded = paper.encode([chat], [[picture]])
    pixels = expected("deepseek_vl", paper, picture)["pixel_values"]
    assert (encoded.grounding_inputs["pixel_values"][0] - pixels).abs().max() < 1e-5
    grid = encoded.image_tokens[0][0].grid
    assert min(grid.scale_y, grid.scale_x) == pytest.approx(min(width, height))


def test_the_large_view_is_padded_in_its_own_colour(family_folder: Callable[[str], Any]) -> None:
    """Converted 7B checkpoints have two means, and may shrink by another filter than they enlarge."""
    backbone = load_backbone(family_folder("deepseek_vl_hybrid"), device="cpu", preprocessing="paper")
    processor = backbone.processor.image_processor
    processor.image_mean, processor.image_std, processor.resample = [0.5] * 3, [0.5] * 3, Image.Resampling.NEAREST
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Where?"}]}]
    seen = backbone.encode([chat], [[photo()]]).grounding_inputs
    large = expected("deepseek_vl_hybrid", backbone, photo())["high_res_pixel_values"]
    assert (seen["high_res_pixel_values"][0] - large).abs().max() < 1e-5
    small = torchvision.transforms.Resize(168, antialias=True)(floats(square(photo(), 192, CLIP[0], 14)))
    assert (seen["pixel_values"][0] - normalised(small, HALF)).abs().max() < 1e-5


def test_the_record_says_which_processor_made_the_pixels(load_family: Load) -> None:
    backbone = load_family("llava_next_mistral")
    lmm = SimpleNamespace(backbone=backbone, heads=None)
    stock = record_of(SimpleNamespace(lmm=lmm, batch_size=1, world_size=1), {})
    assert stock["grounding_pixels"] == type(backbone.processor.image_processor).__name__
    try:
        backbone.preprocess("paper")
        paper = record_of(SimpleNamespace(lmm=lmm, batch_size=1, world_size=1), {})
    finally:
        backbone.preprocess("stock")
    # The name of Pillow's is the one without "Fast" in transformers 5.0.
    assert paper["grounding_pixels"] == stock["grounding_pixels"].removesuffix("Fast") + (
        "" if stock["grounding_pixels"].endswith("Fast") else "Pil"
    )
