"""Rules against maps drawn by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from flmm_plugin.errors import HeadsMismatch, UnknownArgument
from flmm_plugin.heads.attention_rules import (
    AttendAndSegment,
    AttentionArgmax,
    LocalizationHeads,
    choose_maps,
    elbow,
    most_concentrated,
    spatial_entropy,
)

RULES = [AttentionArgmax(), AttendAndSegment(), LocalizationHeads()]


def blob(row: int, column: int, size: int = 16, height: float = 1.0, radius: float = 1.5) -> Tensor:
    """A bump ``[size, size]`` around the middle of a cell."""
    at = torch.arange(size, dtype=torch.float32)
    square = (at[:, None] - row).square() + (at[None] - column).square()
    return height * torch.exp(-square / (2 * radius**2))


def centre(logits: Tensor) -> tuple[float, float]:
    """Middle of the mask of one map ``[h', w']``, in cells of a 16 x 16 grid."""
    rows, columns = torch.nonzero(logits > 0, as_tuple=True)
    scale = 16 / logits.shape[-1]
    return float(rows.float().mean() + 0.5) * scale - 0.5, float(columns.float().mean() + 0.5) * scale - 0.5


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_masks_lie_where_attention_peaks(rule: torch.nn.Module) -> None:
    phrases = torch.stack([torch.stack([blob(4, 11)] * 6), torch.stack([blob(12, 3)] * 6)])
    first, second = rule(phrases)
    assert first.shape == (64, 64)
    assert centre(first) == pytest.approx((4, 11), abs=0.3)
    assert centre(second) == pytest.approx((12, 3), abs=0.3)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("shape", [(0, 6, 16, 16), (2, 6, 8, 12), (1, 1, 3, 3), (1, 6, 80, 70)])
def test_shapes_follow_the_longer_side(rule: torch.nn.Module, shape: tuple[int, int, int, int]) -> None:
    out = rule(torch.rand(shape, generator=torch.Generator().manual_seed(0)))
    scale = max(1.0, 64 / max(shape[2:]))
    assert out.shape == (shape[0], int(shape[2] * scale), int(shape[3] * scale))
    assert bool(torch.isfinite(out).all())


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_attention_to_nothing_gives_no_mask(rule: torch.nn.Module) -> None:
    assert not bool((rule(torch.zeros(2, 6, 8, 8)) > 0).any())


def test_only_the_region_of_the_peak_is_kept() -> None:
    (out,) = AttentionArgmax()((blob(3, 3) + blob(12, 12, height=0.9))[None, None])
    assert out[16, 16] > 0  # at the peak
    assert out[50, 50] < 0  # above half of it, elsewhere
    assert centre(out) == pytest.approx((3, 3), abs=0.3)


def test_the_region_ends_at_half_of_the_peak() -> None:
    ramp = torch.linspace(0, 1, 64).expand(64, 64)
    (out,) = AttentionArgmax()(ramp[None, None])
    assert torch.equal(out > 0, ramp > 0.5)


def test_what_all_phrases_share_is_taken_away() -> None:
    sink = blob(0, 0, height=5)
    phrases = torch.stack([(sink + blob(4, 11))[None], (sink + blob(12, 3))[None]])
    assert centre(AttentionArgmax()(phrases)[0]) == pytest.approx((0.5, 0.5), abs=0.8)
    assert centre(AttendAndSegment()(phrases)[0]) == pytest.approx((4, 11), abs=0.3)
    assert centre(AttendAndSegment()(phrases)[1]) == pytest.approx((12, 3), abs=0.3)
    # Alone, there is nothing to compare with.
    assert torch.equal(AttendAndSegment()(phrases[:1]), AttentionArgmax()(phrases[:1]))


def test_entropy_of_areas() -> None:
    one, two = torch.zeros(8, 8), torch.zeros(8, 8)
    one[1:3, 1:3] = 1
    two[1:3, 1:3] = two[5:7, 5:7] = 1
    diagonal = torch.zeros(8, 8)
    diagonal[1, 1] = diagonal[2, 2] = 1  # touch at a corner: one area
    assert spatial_entropy(one) == spatial_entropy(diagonal) == 0
    assert spatial_entropy(two) == pytest.approx(math.log(2))
    assert spatial_entropy(torch.ones(8, 8)) == pytest.approx(math.log(64))


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=40))
def test_the_elbow_is_one_of_the_values(values: list[float]) -> None:
    assert elbow(torch.tensor(values)) in torch.tensor(values).double().tolist()


def test_heads_that_hardly_look_do_not_count() -> None:
    noise = torch.rand(5, 16, 16, generator=torch.Generator().manual_seed(0))
    maps = torch.cat([noise, blob(4, 11, height=30)[None], blob(2, 2, height=0.001)[None]])
    assert most_concentrated(maps, 1) == [5]
    assert 6 not in most_concentrated(maps, 7)  # the neatest of all, and it sees next to nothing


def test_heads_are_chosen_by_how_often_they_are_neat() -> None:
    generator = torch.Generator().manual_seed(0)
    phrases = []
    for place in range(6):
        maps = torch.rand(8, 16, 16, generator=generator)
        maps[3] = blob(2 * place, 5, height=30)
        maps[6 if place % 2 else 1] = blob(5, 2 * place, height=30)
        phrases.append(maps)
    assert choose_maps(phrases, kept=1, candidates=2) == (3,)
    assert set(choose_maps(phrases, kept=3, candidates=2)) == {3, 6, 1}
    with pytest.raises(UnknownArgument, match="no phrase"):
        choose_maps([])


def test_chosen_heads_speak_alone() -> None:
    maps = torch.stack([blob(2, 2, height=50), blob(8, 8), blob(13, 4)])[None]
    assert centre(LocalizationHeads([2])(maps)[0]) == pytest.approx((13, 4), abs=0.3)
    with pytest.raises(HeadsMismatch, match="has 3 maps, 0 to 2"):
        LocalizationHeads([3])(maps)


def test_inputs_are_left_alone() -> None:
    maps = torch.rand(2, 6, 8, 8, generator=torch.Generator().manual_seed(0))
    before = maps.clone()
    for rule in RULES:
        rule(maps)
    assert np.array_equal(maps.numpy(), before.numpy())
