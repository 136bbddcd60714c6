"""The U-Net: shapes, names, counts, and a second implementation written from the paper's table of layers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from flmm_plugin.errors import HeadsMismatch
from flmm_plugin.heads import MaskDecoder


def maps(n: int, c: int, h: int, w: int, seed: int = 0) -> Tensor:
    return torch.rand(n, c, h, w, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("channels", "count"), [(144, 7_265_729), (384, 7_403_969), (1024, 7_772_609)])
def test_parameter_counts_of_the_paper(channels: int, count: int) -> None:
    with torch.device("meta"):
        decoder = MaskDecoder(channels)
    assert sum(p.numel() for p in decoder.parameters()) == count


def test_state_dict_names_of_released_checkpoints() -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in MaskDecoder(6, base_channels=4).state_dict().items()}
    assert len(shapes) == 53
    expected = {"conv_seg.weight": (1, 4, 1, 1), "conv_seg.bias": (1,)}
    widths = [4, 8, 16, 32]
    for stage, width in enumerate(widths):
        before = 6 if stage == 0 else widths[stage - 1]
        prefix = f"encoder.{stage}.{min(stage, 1)}.convs"
        expected[f"{prefix}.0.conv.weight"] = (width, before, 3, 3)
        expected[f"{prefix}.1.conv.weight"] = (width, width, 3, 3)
    for level in range(3):
        expected[f"decoder.{level}.upsample.interp_upsample.1.conv.weight"] = (widths[level], widths[level + 1], 1, 1)
        expected[f"decoder.{level}.conv_block.convs.0.conv.weight"] = (widths[level], widths[level + 1], 3, 3)
        expected[f"decoder.{level}.conv_block.convs.1.conv.weight"] = (widths[level], widths[level], 3, 3)
    for name in [name for name in expected if name.endswith(".conv.weight")]:
        for kind in ("weight", "bias"):
            expected[name.replace(".conv.weight", f".gn.{kind}")] = (expected[name][0],)
    assert shapes == expected


def by_the_table(state: dict[str, Tensor], attention: Tensor, upsample_to: int) -> Tensor:
    """Item by item: normalise, upsample by a factor, pad, four stages down, three up, crop, classify."""

    def block(x: Tensor, name: str) -> Tensor:
        weight = state[f"{name}.conv.weight"]
        x = F.conv2d(x, weight, padding=weight.shape[-1] // 2)
        mean = x.mean(dim=(1, 2, 3), keepdim=True)
        deviation = (x.var(dim=(1, 2, 3), keepdim=True, correction=0) + 1e-5).sqrt()
        scale, shift = state[f"{name}.gn.weight"][:, None, None], state[f"{name}.gn.bias"][:, None, None]
        return ((x - mean) / deviation * scale + shift).relu()

    def double(x: Tensor, name: str) -> Tensor:
        return block(block(x, f"{name}.convs.0"), f"{name}.convs.1")

    x = attention / attention.sum((2, 3), keepdim=True).clamp(min=1e-12)
    x = F.interpolate(x, scale_factor=max(1.0, upsample_to / max(x.shape[2:])), mode="bilinear")
    height, width = x.shape[2:]
    padded = torch.zeros(*x.shape[:2], -(-height // 8) * 8, -(-width // 8) * 8)
    padded[..., :height, :width] = x
    stages = [double(padded, "encoder.0.0")]
    for stage in (1, 2, 3):
        stages.append(double(F.max_pool2d(stages[-1], 2), f"encoder.{stage}.1"))
    x = stages[3]
    for level in (2, 1, 0):
        up = block(F.interpolate(x, scale_factor=2, mode="bilinear"), f"decoder.{level}.upsample.interp_upsample.1")
        x = double(torch.cat([stages[level], up], dim=1), f"decoder.{level}.conv_block")
    return F.conv2d(x[..., :height, :width], state["conv_seg.weight"], state["conv_seg.bias"])[:, 0]


@pytest.mark.parametrize(("height", "width"), [(12, 12), (24, 24), (7, 12), (49, 30), (70, 66)])
def test_equals_an_implementation_written_from_the_table(height: int, width: int) -> None:
    torch.manual_seed(1)
    decoder = MaskDecoder(5, base_channels=4).eval()
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    attention = maps(2, 5, height, width)
    attention[0, 1] = 0  # a head that does not look at the image at all
    with torch.no_grad():
        ours, theirs = decoder(attention), by_the_table(decoder.state_dict(), attention, 64)
    assert ours.shape == theirs.shape
    assert torch.allclose(ours, theirs, atol=2e-5, rtol=1e-4)


def test_scale_factor_quirk_is_kept() -> None:
    assert MaskDecoder(2, 4)(maps(1, 2, 49, 49)).shape == (1, 63, 63)  # floor(49 * 64 / 49)
    assert MaskDecoder(2, 4)(maps(1, 2, 70, 33)).shape == (1, 70, 33)  # never downsampled
    assert MaskDecoder(2, 4, upsample_to=32)(maps(1, 2, 8, 16)).shape == (1, 16, 32)


def test_maps_are_normalised_so_scale_does_not_matter() -> None:
    decoder = MaskDecoder(3, 4).eval()
    attention = maps(1, 3, 8, 8)
    assert torch.allclose(decoder(attention), decoder(attention * 1000), atol=1e-5)


def test_phrases_do_not_see_each_other_and_none_is_fine() -> None:
    decoder = MaskDecoder(3, 4).eval()
    attention = maps(3, 3, 8, 8)
    alone = torch.cat([decoder(one[None]) for one in attention])
    assert torch.allclose(decoder(attention), alone, atol=1e-5)
    assert decoder(attention[:0]).shape == (0, 64, 64)


def test_wrong_number_of_maps_is_named() -> None:
    with pytest.raises(HeadsMismatch, match=r"\[n, 3, h, w\].*\(1, 4, 8, 8\)"):
        MaskDecoder(3, 4)(maps(1, 4, 8, 8))


def test_learns_to_pick_the_right_map() -> None:
    torch.manual_seed(0)
    decoder = MaskDecoder(2, 8, upsample_to=16)
    attention = maps(4, 2, 16, 16) * 0.1
    attention[:, 0, 4:10, 3:9] += 1.0
    target = torch.zeros(4, 16, 16)
    target[:, 4:10, 3:9] = 1.0
    optimiser = torch.optim.AdamW(decoder.parameters(), lr=1e-2)
    for _ in range(30):
        optimiser.zero_grad()
        loss = F.binary_cross_entropy_with_logits(decoder(attention), target)
        loss.backward()
        optimiser.step()
    predicted = decoder(attention) > 0
    union = (predicted | (target > 0)).sum()
    assert (predicted & (target > 0)).sum() / union > 0.9
