"""The refiner against segment_anything's own forward pass, and its own: text, padding, groups, cache."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from flmm_plugin.errors import BadCheckpoint, HeadsMismatch, UnknownArgument
from flmm_plugin.heads import ImageEmbedding, MaskRefiner, build_sam
from flmm_plugin.resampling import PlacedMaps


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def blobs(n: int, height: int, width: int) -> Tensor:
    """Coarse logits with one bright rectangle each."""
    logits = torch.full((n, height, width), -2.0)
    for i in range(n):
        logits[i, 2 + i : 8 + i, 3 : 9 + 2 * i] = 3.0
    return logits


def whole(logits: Tensor) -> PlacedMaps:
    """Logits of every pixel."""
    return PlacedMaps.over(logits, (logits.shape[1], logits.shape[2]))


def refined(refiner: MaskRefiner, embedding: ImageEmbedding, logits: Tensor, text: list[Tensor]) -> Tensor:
    found: Tensor = refiner(embedding, whole(logits), text).image()
    return found


def words(*lengths: int, width: int = 16) -> list[Tensor]:
    return [torch.randn(t, width, generator=torch.Generator().manual_seed(i)) for i, t in enumerate(lengths)]


@pytest.fixture
def refiner(small_sam: dict[str, Any]) -> MaskRefiner:
    torch.manual_seed(0)
    sam = build_sam(small_sam)
    for parameter in sam.parameters():
        nn.init.normal_(parameter, std=0.3)
    return MaskRefiner(sam).eval()


@pytest.mark.parametrize(("height", "width"), [(20, 20), (24, 40), (31, 13)])
def test_box_and_mask_prompts_equal_sams_own_forward(small_sam: dict[str, Any], height: int, width: int) -> None:
    torch.manual_seed(0)
    sam = build_sam(small_sam)
    refiner = MaskRefiner(sam, use_text=False).eval()
    image, coarse = picture(height, width), blobs(2, height, width)
    resized, (h, w) = (
        refiner._resize.apply_image(np.asarray(image)),
        refiner._resize.get_preprocess_shape(height, width, 32),
    )
    square = torch.full((2, 1, 32, 32), min(-1.0, float(coarse.min())))
    square[..., :h, :w] = F.interpolate(coarse[:, None], (h, w), mode="bilinear")
    boxes = []
    for one in coarse:
        rows, columns = np.nonzero((one > 0).numpy())
        box = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        boxes.append(box * np.array([w / width, h / height, w / width, h / height]))
    record = {
        "image": torch.from_numpy(resized).permute(2, 0, 1).float(),
        "original_size": (height, width),
        "boxes": torch.tensor(np.array(boxes), dtype=torch.float32),
        "mask_inputs": F.interpolate(square, (16, 16), mode="bilinear"),
    }
    sam.mask_threshold = 0.0
    expected = sam([record], multimask_output=False)[0]
    logits = F.interpolate(expected["low_res_logits"], (32, 32), mode="bilinear")[..., :h, :w]
    logits = F.interpolate(logits, (height, width), mode="bilinear")[:, 0]
    with torch.no_grad():
        ours = refined(refiner, refiner.encode_image(image), coarse, words(0, 0))
    assert ours.shape == (2, height, width)
    assert torch.allclose(ours, logits, atol=1e-5)


def test_every_prompt_matters_when_it_is_on(refiner: MaskRefiner) -> None:
    embedding, text = refiner.encode_image(picture(20, 30)), words(2)
    with torch.no_grad():
        everything = refined(refiner, embedding, blobs(1, 20, 30), text)
        assert not torch.allclose(everything, refined(refiner, embedding, blobs(1, 20, 30), words(2, 2)[1:]), atol=1e-4)
        for switch in ("use_box", "use_mask", "use_text"):
            setattr(refiner, switch, False)
            assert not torch.allclose(everything, refined(refiner, embedding, blobs(1, 20, 30), text), atol=1e-4), (
                switch
            )
            setattr(refiner, switch, True)
        refiner.use_box = refiner.use_mask = refiner.use_text = False
        assert refined(refiner, embedding, blobs(2, 20, 30), words(2, 3)).shape == (2, 20, 30)


def test_an_empty_coarse_mask_asks_for_the_whole_picture(refiner: MaskRefiner) -> None:
    embedding = refiner.encode_image(picture(16, 24))
    boxes = refiner.boxes_sam(whole(torch.full((1, 16, 24), -5.0)), embedding)
    assert boxes.tolist() == [[0.0, 0.0, 32.0, embedding.input_size[0]]]
    one_pixel = torch.full((1, 16, 24), -5.0)
    one_pixel[0, 15, 23] = 5.0
    scale = 32 / 24
    assert torch.allclose(
        refiner.boxes_sam(whole(one_pixel), embedding)[0],
        torch.tensor([23 * scale, 15 * embedding.input_size[0] / 16, 32.0, embedding.input_size[0]]),
    )


@pytest.mark.parametrize("lengths", [(2, 2, 2), (1, 3, 1), (4, 2, 3), (0, 1, 2)])
def test_grouping_changes_nothing_and_keeps_the_order(
    refiner: MaskRefiner, lengths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    embedding, coarse, text = refiner.encode_image(picture(20, 20)), blobs(3, 20, 20), words(*lengths)
    with torch.no_grad():
        together = refined(refiner, embedding, coarse, text)
        monkeypatch.setattr("flmm_plugin.heads.mask_refiner._CPU_CELLS", 1)
        assert len(refiner._groups(list(lengths), embedding)) == 3
        assert torch.allclose(together, refined(refiner, embedding, coarse, text), atol=1e-5)
        alone = torch.cat([refined(refiner, embedding, coarse[i : i + 1], text[i : i + 1]) for i in range(3)])
    assert torch.allclose(together, alone, atol=1e-5)  # a square picture has no padding to share


def test_equal_lengths_are_decoded_in_one_batch(refiner: MaskRefiner) -> None:
    embedding = refiner.encode_image(picture(20, 20))
    assert refiner._groups([2, 1, 2, 2, 1], embedding) == [[0, 2, 3], [1, 4]]


def test_padding_is_the_lowest_logit_of_the_call(refiner: MaskRefiner) -> None:
    embedding = refiner.encode_image(picture(16, 32))
    assert refiner.mask_prompts_sam(whole(torch.full((1, 16, 32), 4.0)), embedding)[0, 0, -1, -1] == -1.0
    coarse = torch.full((2, 16, 32), 4.0)
    coarse[1, 0] = -7.0
    assert refiner.mask_prompts_sam(whole(coarse), embedding)[0, 0, -1, -1] == -7.0


def test_gradients_reach_the_coarse_logits_through_the_mask_prompt_alone(refiner: MaskRefiner) -> None:
    refiner.train()
    assert not refiner.sam.image_encoder.training
    assert refiner.sam.mask_decoder.training
    coarse, text = blobs(2, 20, 20).requires_grad_(), [t.requires_grad_() for t in words(1, 2)]
    embedding = refiner.encode_image(picture(20, 20))
    assert not embedding.features.requires_grad
    refined(refiner, embedding, coarse, text).sum().backward()
    assert coarse.grad is not None
    assert coarse.grad.abs().sum() > 0
    assert all(t.grad is not None and t.grad.abs().sum() > 0 for t in text)
    assert all(p.grad is None for p in refiner.sam.image_encoder.parameters())
    assert refiner.sam.mask_decoder.transformer.layers[0].mlp.lin1.weight.grad is not None
    refiner.use_mask = False
    coarse.grad = None
    refined(refiner, embedding, coarse, words(1, 2)).sum().backward()
    assert coarse.grad is None


def test_embedding_is_made_once_per_content_and_the_oldest_goes(refiner: MaskRefiner) -> None:
    calls: list[int] = []
    refiner.sam.image_encoder.register_forward_hook(lambda *_: calls.append(1))
    first = refiner.encode_image(picture(20, 20))
    assert refiner.encode_image(picture(20, 20).copy()) is first
    assert len(calls) == 1
    refiner.cache_size = 2
    refiner.encode_image(picture(20, 20, seed=1))
    refiner.encode_image(picture(20, 20))  # used again: now the newest
    refiner.encode_image(picture(20, 20, seed=2))
    assert len(refiner._cache) == 2
    assert refiner.encode_image(picture(20, 20)) is first
    before = len(calls)
    refiner.encode_image(picture(20, 20, seed=1))
    assert len(calls) == before + 1


def test_same_bytes_in_another_shape_is_another_picture(refiner: MaskRefiner) -> None:
    pixels = np.arange(20 * 10 * 3, dtype=np.uint8).reshape(20, 10, 3)
    tall = refiner.encode_image(Image.fromarray(pixels))
    wide = refiner.encode_image(Image.fromarray(pixels.reshape(10, 20, 3)))
    assert tall.original_size == (20, 10)
    assert wide.original_size == (10, 20)


def test_new_weights_or_another_device_empty_the_cache(refiner: MaskRefiner) -> None:
    refiner.encode_image(picture(20, 20))
    refiner.load_state_dict(refiner.state_dict())
    assert not refiner._cache
    refiner.encode_image(picture(20, 20))
    refiner.to(torch.float32)
    assert not refiner._cache


def test_half_precision_image_encoder_gives_nearly_the_same(refiner: MaskRefiner) -> None:
    with torch.no_grad():
        full = refined(refiner, refiner.encode_image(picture(20, 20)), blobs(1, 20, 20), words(1))
        refiner.sam.image_encoder.to(torch.bfloat16)
        refiner.clear_cache()
        half = refined(refiner, refiner.encode_image(picture(20, 20)), blobs(1, 20, 20), words(1))
    assert half.dtype == torch.float32
    assert (full - half).abs().max() < 0.1 * full.abs().max()


def test_texts_and_masks_must_pair_and_none_is_fine(refiner: MaskRefiner) -> None:
    embedding = refiner.encode_image(picture(20, 24))
    with pytest.raises(ValueError, match="2 masks but 1 texts"):
        refined(refiner, embedding, blobs(2, 20, 24), words(1))
    assert refined(refiner, embedding, blobs(0, 20, 24), []).shape == (0, 20, 24)


# --- build_sam ------------------------------------------------------------------------------------------------------


def test_official_size_has_the_released_shapes() -> None:
    with torch.device("meta"):
        sam = build_sam("vit_b")
    assert sum(p.numel() for p in sam.mask_decoder.parameters()) == 4_058_340
    assert sum(p.numel() for p in sam.prompt_encoder.parameters()) == 6_220
    assert sam.prompt_encoder.mask_input_size == (256, 256)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"encoder_dims": 3}, "did you mean 'encoder_dim'"),
        ({"depth": None}, "also needs depth"),
        ({"patch_size": 7}, "multiple of patch_size 7"),
        ({"heads": 3}, "multiple of heads 3"),
        ({"mask_channels": 4}, "at least 8"),
        ({"prompt_dim": 24, "decoder_heads": 8}, "multiple of 8 and of 2 x decoder_heads 16"),
    ],
)
def test_numbers_that_cannot_be_are_refused(small_sam: dict[str, Any], numbers: dict[str, Any], message: str) -> None:
    with pytest.raises(UnknownArgument, match=message):
        build_sam({**small_sam, **numbers})


def test_unknown_variant_is_refused() -> None:
    with pytest.raises(UnknownArgument, match="vit_b, vit_l, vit_h"):
        build_sam("vit_x")


def test_sam_checkpoint_is_loaded_strictly(small_sam: dict[str, Any], tmp_path: Any) -> None:
    path = tmp_path / "sam.pth"
    donor = build_sam(small_sam)
    torch.save(donor.state_dict(), path)
    loaded = build_sam(small_sam, path)
    assert all(
        torch.equal(a, b) for a, b in zip(donor.state_dict().values(), loaded.state_dict().values(), strict=True)
    )
    with pytest.raises(HeadsMismatch, match="variant"):
        build_sam({**small_sam, "depth": 2}, path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(BadCheckpoint, match="checkpoint"):
        build_sam(small_sam, path)
    with pytest.raises(BadCheckpoint, match=r"no SAM checkpoint at .*"):
        build_sam(small_sam, tmp_path / "absent.pth")


def test_sam_checkpoint_with_code_in_it_is_refused(small_sam: dict[str, Any], tmp_path: Any) -> None:
    path = tmp_path / "sam.pth"
    torch.save({"image_encoder": Exception}, path)
    with pytest.raises(BadCheckpoint, match="checkpoint"):
        build_sam(small_sam, path)
