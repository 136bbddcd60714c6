"""All heads together: frames, gradients, and input of another backbone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from flmm_plugin.errors import HeadsMismatch
from flmm_plugin.geometry import ImageGrid
from flmm_plugin.heads import GroundingHeads

Make = Callable[..., GroundingHeads]

HEIGHT, WIDTH = 24, 40


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))


def whole() -> ImageGrid:
    return ImageGrid(4, 4, HEIGHT / 4, WIDTH / 4, 0.0, 0.0, HEIGHT, WIDTH)


def reading(*lengths: int, layers: int = 2) -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    attention = torch.rand(len(lengths), 6, 4, 4, generator=generator)
    return attention, [torch.randn(t, layers, 8, generator=generator) for t in lengths]


def test_output_is_in_the_image_frame_and_equals_its_pieces(make_heads: Make) -> None:
    heads, (attention, hidden) = make_heads(), reading(2, 3)
    with torch.no_grad():
        out = heads(attention, hidden, picture(), whole())
        coarse = heads.coarse(attention, whole())
        assert heads.mask_refiner is not None
        embedding = heads.mask_refiner.encode_image(picture())
        refined = heads.mask_refiner(embedding, coarse, heads.text_prompts(hidden)).image()
        assert torch.equal(heads(attention, hidden, embedding, whole()).logits, refined)
    assert out.logits.shape == out.decoder_logits.shape == (2, HEIGHT, WIDTH)
    assert torch.equal(out.decoder_logits, coarse.image())
    assert torch.equal(out.logits, refined)


def test_coarse_only_does_not_run_sam(make_heads: Make) -> None:
    heads, (attention, hidden) = make_heads(), reading(1)
    assert heads.mask_refiner is not None
    heads.mask_refiner.sam.image_encoder.register_forward_hook(lambda *_: pytest.fail("SAM was run"))
    out = heads(attention, hidden, picture(), whole(), refine=False)
    assert out.logits is out.decoder_logits
    bare = make_heads(sam=None)
    assert bare(attention, hidden, picture(), whole()).logits.shape == (1, HEIGHT, WIDTH)
    with pytest.raises(HeadsMismatch, match="no refiner"):
        bare.text_prompts(hidden)


def test_pixels_that_were_cut_away_get_the_lowest_logit(make_heads: Make) -> None:
    heads, (attention, _) = make_heads(), reading(1)
    crop = ImageGrid(4, 4, 6.0, 6.0, 0.0, 8.0, HEIGHT, WIDTH)  # the middle 24 columns
    with torch.no_grad():
        logits = heads.coarse(attention, crop).image()[0]
        lowest = min(-1.0, float(heads.mask_decoder(attention).min()))
    outside = torch.ones(HEIGHT, WIDTH, dtype=torch.bool)
    outside[:, 8:32] = False
    assert (logits[outside] == lowest).all()
    assert logits[~outside].std() > 0


def test_text_mixes_layers_by_their_softmaxed_weights(make_heads: Make) -> None:
    heads, (_, hidden) = make_heads(), reading(3)
    assert heads.text_proj is not None
    with torch.no_grad():
        heads.text_layer_weights.copy_(torch.tensor([0.0, 1.0]))
        first, second = torch.softmax(torch.tensor([0.0, 1.0]), 0)
        expected = heads.text_proj(hidden[0][:, 0] * first + hidden[0][:, 1] * second)
        assert torch.allclose(heads.text_prompts(hidden)[0], expected, atol=1e-5)


def test_everything_trainable_gets_a_gradient_and_the_image_encoder_none(make_heads: Make) -> None:
    heads, (attention, hidden) = make_heads(), reading(2, 3)
    heads.train()
    out = heads(attention, hidden, picture(), whole())
    out.logits.square().mean().backward()
    assert heads.mask_decoder.conv_seg.weight.grad is not None
    assert heads.mask_decoder.conv_seg.weight.grad.abs().sum() > 0
    first = heads.mask_decoder.encoder[0][0].convs[0].conv.weight.grad
    assert first is not None
    assert first.abs().sum() > 0
    assert heads.text_layer_weights.grad is not None
    assert heads.text_layer_weights.grad.abs().sum() > 0
    encoder = {n for n, p in heads.named_parameters() if "image_encoder" in n and p.grad is not None}
    assert encoder == set()


def test_no_phrases_give_no_masks(make_heads: Make) -> None:
    out = make_heads()(torch.zeros(0, 6, 4, 4), [], picture(), whole())
    assert out.logits.shape == out.decoder_logits.shape == (0, HEIGHT, WIDTH)


def test_another_backbones_reading_is_refused(make_heads: Make) -> None:
    heads, (attention, hidden) = make_heads(), reading(1, layers=3)
    with pytest.raises(HeadsMismatch, match="mix 2 layers"):
        heads(attention, hidden, picture(), whole())
    with pytest.raises(HeadsMismatch, match=r"\[n, 6, h, w\]"):
        heads(torch.zeros(1, 7, 4, 4), reading(1)[1], picture(), whole())


def test_state_dict_prefixes(make_heads: Make) -> None:
    prefixes = {name.split(".")[0] for name in make_heads().state_dict()}
    assert prefixes == {"mask_decoder", "mask_refiner", "text_proj", "text_layer_weights", "keyword_selector"}
    assert "mask_refiner.sam.mask_decoder.iou_token.weight" in make_heads().state_dict()
