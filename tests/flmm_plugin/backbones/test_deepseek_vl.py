"""DeepSeek-VL beyond what holds for every family: its squares, its untied vocabulary head, masks from it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from flmm_plugin.backbones import load_backbone
from flmm_plugin.errors import BackboneUnsupported
from flmm_plugin.grounded_lmm import GroundedLMM
from flmm_plugin.heads import GroundingHeads, HeadsManifest

Load = Callable[..., Any]


def test_the_longest_side_is_resized_and_the_other_rounded_then_padded(load_family: Load) -> None:
    # 60 rows of 100 become round(100.8) = 101 of 168; the padding above is (168 - 101) // 2 = 33 rows.
    grid = load_family("deepseek_vl").grid(60, 100)
    assert (grid.height, grid.width) == (12, 12)
    assert (grid.scale_y, grid.scale_x) == pytest.approx((14 * 60 / 101, 14 * 100 / 168))
    assert (grid.offset_y, grid.offset_x) == pytest.approx((-33 * 60 / 101, 0))


def test_no_side_becomes_smaller_than_the_processor_allows(load_family: Load) -> None:
    # 20 rows of 1000 would become 3 of 168; the processor makes 14 of them.
    grid = load_family("deepseek_vl").grid(20, 1000)
    assert (grid.scale_y, grid.offset_y) == pytest.approx((20.0, -77 * 20 / 14))


def test_the_hybrid_pads_at_the_high_resolution_and_shrinks_the_square(load_family: Load) -> None:
    # 60 rows of 100 become round(115.2) = 115 of 192, 38 rows of padding above; then 192 -> 168.
    grid = load_family("deepseek_vl_hybrid").grid(60, 100)
    assert grid.scale_y == pytest.approx(14 * 192 / 168 * 60 / 115)
    assert grid.offset_y == pytest.approx(-38 * 60 / 115)
    assert grid.scale_x == pytest.approx(100 / 12)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"do_pad": False}, "does not resize and pad"), ({"size": {"height": 168, "width": 84}}, "makes squares")],
)
def test_a_processor_of_another_kind_is_refused(load_family: Load, change: dict[str, Any], message: str) -> None:
    backbone = load_family("deepseek_vl")
    processor = backbone.processor.image_processor
    before = {name: getattr(processor, name) for name in change}
    try:
        for name, value in change.items():
            setattr(processor, name, value)
        with pytest.raises(BackboneUnsupported, match=message):
            backbone.grid(60, 100)
    finally:
        for name, value in before.items():
            setattr(processor, name, value)


def test_the_vocabulary_head_stays_its_own_whatever_the_config_defaults_to(
    family_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """transformers' config class ties it by default; DeepSeek's is not tied, and converted files may not say so."""
    folder = Path(shutil.copytree(family_folder("deepseek_vl"), tmp_path / "copy"))
    config = json.loads((folder / "config.json").read_text())
    config.pop("tie_word_embeddings", None)
    (folder / "config.json").write_text(json.dumps(config))
    stored = load_file(folder / "model.safetensors")
    for options in ({"device": "cpu"}, {"device_map": {"": "cpu"}}):
        model = load_backbone(folder, **options).model
        assert torch.equal(model.lm_head.weight, stored["lm_head.weight"])
        assert not torch.equal(model.lm_head.weight, model.get_input_embeddings().weight)


@pytest.mark.parametrize("name", ["deepseek_vl", "deepseek_vl_hybrid"])
def test_it_grounds_and_chats_as_before(load_family: Load, name: str) -> None:
    backbone = load_family(name)
    manifest = HeadsManifest(
        backbone=backbone.name,
        layers=2,
        heads=4,
        hidden_size=32,
        decoder={"base_channels": 4, "upsample_to": 16},
        sam=None,
    )
    torch.manual_seed(0)
    lmm = GroundedLMM(backbone, GroundingHeads.build(manifest))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 100, 3), dtype=np.uint8))
    options = {"max_new_tokens": 4, "do_sample": False}
    before = lmm.chat(picture, "What is in the image?", **options)
    found = lmm.ground(picture, ["a brown horse", "the red sofa near the window"])
    assert [one.mask.shape for one in found] == [(60, 100), (60, 100)]
    assert not np.array_equal(found[0].logits, found[1].logits)
    assert lmm.chat(picture, "What is in the image?", **options) == before
    lmm.seal.verify()
