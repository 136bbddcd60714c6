"""Rounding to float16 with shared powers of two, and records of it as bytes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flmm_plugin.errors import BadCache
from flmm_plugin.training.store import ScaledFloat16, pack, unpack


@given(st.integers(0, 2**31), st.integers(-60, 60), st.floats(0.1, 8.0))
@settings(max_examples=50, deadline=None)
def test_the_relative_error_is_that_of_float16_however_large_or_small_the_values(
    seed: int, power: int, spread: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logs = torch.randn(3, 40, generator=generator) * spread  # values of one group differ by many orders
    tensor = torch.exp(logs) * 2.0**power * torch.where(torch.rand(3, 40, generator=generator) < 0.5, -1.0, 1.0)
    found = ScaledFloat16.of(tensor, 1).restored()
    largest = tensor.abs().amax(dim=1, keepdim=True)
    near = tensor.abs() >= largest * 2.0**-28
    assert ((found - tensor).abs() <= tensor.abs() * 2.0**-11)[near].all()
    assert ((found - tensor).abs() <= largest * 2.0**-39).logical_or(near).all()


def test_plain_float16_would_lose_what_is_kept_here() -> None:
    attention = torch.tensor([[3e-7, 4.1e-8, 2e-5]])
    states = torch.tensor([[91234.0, -3.0]])
    for tensor in (attention, states):
        assert torch.allclose(ScaledFloat16.of(tensor, 1).restored(), tensor, rtol=2**-11, atol=0)
        assert not torch.allclose(tensor.half().float(), tensor, rtol=2**-11, atol=0)


def test_bfloat16_comes_back_bit_for_bit() -> None:
    tensor = (torch.randn(4, 64, generator=torch.Generator().manual_seed(0)) * 1e4).bfloat16()
    assert torch.equal(ScaledFloat16.of(tensor, 1).restored(), tensor.float())


def test_rounding_twice_is_rounding_once() -> None:
    once = ScaledFloat16.of(torch.rand(5, 7, 3, generator=torch.Generator().manual_seed(1)) * 1e-5, 2).restored()
    assert torch.equal(ScaledFloat16.of(once, 2).restored(), once)


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (1, 1), (2, 3, 4)])
def test_zeros_and_tensors_without_values_keep_their_shape(shape: tuple[int, ...]) -> None:
    found = ScaledFloat16.of(torch.zeros(shape), 1)
    assert found.restored().shape == shape
    assert found.exponents.shape == shape[:-1]
    assert not found.restored().any()


def test_very_large_numbers_do_not_overflow() -> None:
    tensor = torch.tensor([[3.3e38, -1e38], [1e-45, 0.0]])
    found = ScaledFloat16.of(tensor, 1).restored()
    assert torch.isfinite(found).all()
    assert torch.allclose(found[0], tensor[0], rtol=2**-10)


def test_a_record_gives_back_tensors_and_facts() -> None:
    generator = torch.Generator().manual_seed(2)
    tensors = {
        "maps": ScaledFloat16.of(torch.rand(2, 3, 4, 4, generator=generator), 2),
        "labels": torch.rand(9, generator=generator) > 0.5,
        "none": torch.zeros(0, 3, dtype=torch.float32),
    }
    found, facts = unpack(pack(tensors, {"sizes": [1, 2], "scale": 0.1}))
    assert facts == {"sizes": [1, 2], "scale": 0.1}
    maps, labels, none = found["maps"], found["labels"], found["none"]
    assert isinstance(maps, ScaledFloat16)
    assert torch.equal(maps.values, tensors["maps"].values)  # type: ignore[union-attr]
    assert torch.equal(maps.exponents, tensors["maps"].exponents)  # type: ignore[union-attr]
    assert isinstance(labels, torch.Tensor)
    assert torch.equal(labels, tensors["labels"])
    assert labels.dtype == torch.bool
    assert isinstance(none, torch.Tensor)
    assert none.shape == (0, 3)


def test_records_take_less_than_what_they_hold() -> None:
    tensor = torch.softmax(torch.randn(20, 64, 64, generator=torch.Generator().manual_seed(3)), dim=-1)
    assert len(pack({"maps": ScaledFloat16.of(tensor, 2)}, {})) < 0.9 * tensor.numel() * 2


@pytest.mark.parametrize("place", [3, 40, 400, -200, -1])
def test_a_changed_byte_is_noticed(place: int) -> None:
    record = bytearray(pack({"maps": ScaledFloat16.of(torch.rand(2, 200), 1)}, {"sizes": [1]}))
    record[place] ^= 0x55
    with pytest.raises(BadCache, match="damaged"):
        unpack(bytes(record))


@pytest.mark.parametrize("length", [0, 5, 100, -1])
def test_a_truncated_record_is_noticed(length: int) -> None:
    record = pack({"maps": ScaledFloat16.of(torch.rand(2, 200), 1)}, {})
    with pytest.raises(BadCache, match="damaged"):
        unpack(record[:length])
