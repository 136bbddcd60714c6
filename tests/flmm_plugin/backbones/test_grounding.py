"""The whole way on every family: phrases to masks of the picture's size, chat unchanged, the seal intact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flmm_plugin.capture import capture_alternatives, read_answer, read_sequence
from flmm_plugin.errors import HeadsMismatch, UnknownArgument
from flmm_plugin.geometry import ImageGrid
from flmm_plugin.grounded_lmm import GroundedLMM
from flmm_plugin.heads import GroundingHeads, HeadsManifest, save_heads
from flmm_plugin.passages import Passage

from .families import FAMILIES

Load = Callable[..., Any]
SMALL_SAM: dict[str, Any] = {
    "image_size": 32, "patch_size": 8, "encoder_dim": 16, "depth": 1, "heads": 2, "prompt_dim": 16,
    "decoder_mlp_dim": 16, "decoder_heads": 2, "mask_channels": 16,
}  # fmt: skip


def heads_for(lmm: Any, /, **changes: Any) -> GroundingHeads:
    facts = lmm.facts
    torch.manual_seed(0)
    entries = {
        "backbone": facts.name, "layers": facts.layers, "heads": facts.heads, "hidden_size": facts.hidden_size,
        "maps_per_image": facts.maps_per_image, "decoder": {"base_channels": 4, "upsample_to": 16}, "sam": SMALL_SAM,
        **changes,
    }  # fmt: skip
    return GroundingHeads.build(HeadsManifest(**entries)).eval()


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]


def test_phrases_become_masks_and_chat_stays(family: str, load_family: Load) -> None:
    backbone = load_family(family)
    plain = GroundedLMM(backbone).chat(noise(90, 50), "What is it?", max_new_tokens=4, do_sample=False)
    lmm = GroundedLMM(backbone, heads_for(backbone))
    seal = lmm.seal
    pictures = [noise(90, 50), noise(40, 70, seed=1)]
    found = lmm.ground_many(pictures, [["the red sofa", "a dog"], ["the window"]])
    assert [[one.mask.shape for one in some] for some in found] == [[(50, 90)] * 2, [(70, 40)]]
    assert all(np.isfinite(one.logits).all() for some in found for one in some)
    alone = lmm.ground(pictures[0], ["the red sofa", "a dog"], joint=False)
    # The columns that every family sees; what a processor cut away gets the lowest logit of a call.
    assert np.allclose(alone[0].decoder_logits[:, 25:65], found[0][0].decoder_logits[:, 25:65], atol=1e-3)
    assert lmm.chat(noise(90, 50), "What is it?", max_new_tokens=4, do_sample=False) == plain
    maps = lmm.attention_maps(pictures[0], "the red sofa")
    assert maps.maps.shape[:2] == (backbone.num_layers, backbone.num_heads * backbone.facts.maps_per_image)
    seal.verify()


# --- the paper's preprocessing -------------------------------------------------------------------------------------


@pytest.fixture
def padding(load_family: Load) -> Any:
    """LLaVA with a processor that crops, set to the paper's preprocessing."""
    backbone = load_family("llava")
    backbone.preprocess("paper")
    yield backbone
    backbone.preprocess("stock")


def test_only_grounding_sees_the_padded_picture(padding: Any, load_family: Load) -> None:
    picture = noise(100, 60)
    encoded = padding.encode([user("Where?")], [[picture]])
    padding.preprocess("stock")
    stock = padding.encode([user("Where?")], [[picture]])
    assert all(torch.equal(encoded.inputs[key], stock.inputs[key]) for key in stock.inputs)
    assert set(encoded.grounding) == {"pixel_values"}
    assert stock.grounding == {}
    seen = encoded.grounding_inputs["pixel_values"][0]
    top = (56 - int(60 * 56 / 100)) // 2
    assert seen[:, :top].abs().max() < 0.02  # the padding normalises to about zero
    assert seen[:, top].abs().max() > 0.5
    assert torch.equal(encoded.image_tokens[0][0].slots, stock.image_tokens[0][0].slots)
    assert encoded.image_tokens[0][0].grid == ImageGrid.from_resize_then_pad(60, 100, 56, 14, rounded=False)
    assert stock.image_tokens[0][0].grid == ImageGrid.from_center_crop(60, 100, 56, 14)


def test_every_way_of_reading_uses_the_padded_picture(padding: Any) -> None:
    encoded = padding.encode([user("Where?")], [[noise(100, 60)]])
    columns = [encoded.image_tokens[0][0].slots]
    generated = padding.generate(encoded, max_new_tokens=3, do_sample=False, eos_token_id=-1)
    answer = generated.answer_ids(0)
    back = read_answer(padding, encoded, generated, [[0, 1, 2]], columns).attention(0)
    written = encoded.extended([answer], padding.pad_id)
    slots = [torch.arange(written.length - 3, written.length)]
    given = read_sequence(padding, written, slots, columns).attention(0)
    passage = Passage(answer, [[0, 1, 2]], [("", None)])
    continued = next(capture_alternatives(padding, encoded, [passage], "mean")).rows
    assert (back - given).abs().max() < 1e-5
    assert (continued - given.mean(dim=0)).abs().max() < 1e-5
    # Left to itself, with the padded pixels handed over by hand; and not with the chat's.
    with torch.no_grad():
        plain = dict(written.inputs)
        seen = padding.model(**{**plain, "pixel_values": encoded.grounding["pixel_values"]}).logits
        assert (seen - padding.model(**plain).logits).abs().max() > 1e-3
    padding.preprocess("stock")
    stock = padding.encode([user("Where?")], [[noise(100, 60)]]).extended([answer], padding.pad_id)
    assert (read_sequence(padding, stock, slots, columns).attention(0) - given).abs().max() > 1e-3


def test_heads_choose_the_preprocessing_and_an_argument_overrules(padding: Any) -> None:
    padding.preprocess("stock")
    heads = heads_for(padding, preprocessing="paper")
    assert GroundedLMM(padding, heads).backbone.preprocessing == "paper"
    assert GroundedLMM(padding, heads, preprocessing="stock").backbone.preprocessing == "stock"
    assert GroundedLMM(padding, heads_for(padding)).backbone.preprocessing == "stock"


def test_preprocessing_that_does_not_exist(family: str, load_family: Load) -> None:
    backbone = load_family(family)
    with pytest.raises(UnknownArgument, match="use 'stock'"):
        backbone.preprocess("crop")
    if not FAMILIES[family].paper:
        with pytest.raises(UnknownArgument, match="did not ground"):
            backbone.preprocess("paper")


# --- arguments of loading ------------------------------------------------------------------------------------------


def test_masks_without_sam_and_the_wrong_sam(family_folder: Load, load_family: Load, tmp_path: Any) -> None:
    backbone = load_family("llava")
    path = tmp_path / "heads.safetensors"
    save_heads(path, heads_for(backbone, backbone=family_folder("llava").name))
    lmm = GroundedLMM.from_pretrained(family_folder("llava"), path, device="cpu", sam="none")
    assert lmm.heads is not None
    assert lmm.heads.mask_refiner is None
    found = lmm.ground(noise(60, 60), ["a dog"])[0]
    assert np.array_equal(found.logits, found.decoder_logits)
    with pytest.raises(HeadsMismatch, match="small one"):
        GroundedLMM.from_pretrained(family_folder("llava"), path, device="cpu", sam="vit_h")
    with pytest.raises(UnknownArgument, match="did you mean 'preprocessing'"):
        GroundedLMM.from_pretrained(family_folder("llava"), path, preprocesing="paper")
