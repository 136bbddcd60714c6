"""Rows of linear layers are those of a walk over every key, and add up to what the kernels put out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from flmm_plugin.delta_rule import decayed_rows, delta_rule_rows

BATCH, HEADS, LENGTH, SIZE = 2, 4, 150, 16


@dataclass
class Layer:
    """Random inputs of a layer, as its closed form takes them."""

    query: Tensor
    key: Tensor
    value: Tensor
    beta: Tensor
    gate: Tensor


def layer(key_heads: int = HEADS, *, by_channel: bool = False, decay: float = 0.5, length: int = LENGTH) -> Layer:
    generator = torch.Generator().manual_seed(3)

    def noise(*shape: int) -> Tensor:
        return torch.randn(BATCH, *shape, generator=generator)

    gate = noise(HEADS, length, SIZE) if by_channel else noise(HEADS, length)
    return Layer(
        F.normalize(noise(HEADS, length, SIZE), dim=-1) * SIZE**-0.5,
        F.normalize(noise(key_heads, length, SIZE), dim=-1),
        noise(HEADS, length, SIZE),
        noise(HEADS, length).sigmoid(),
        -F.softplus(gate) * decay,
    )


def walk(given: Layer, rows: Tensor) -> Tensor:
    """The definition: one key after another, in float64."""
    key = given.key.double().repeat_interleave(HEADS // given.key.shape[1], dim=1)
    gate = given.gate.double() if given.gate.ndim == 4 else given.gate.double()[..., None]
    weights = torch.zeros(*rows.shape, HEADS, key.shape[2], dtype=torch.float64)
    for item, asked in enumerate(rows.tolist()):
        for row, place in enumerate(asked):
            walking = given.query[item, :, place].double()
            for j in range(place, -1, -1):
                weight = given.beta[item, :, j].double() * (key[item, :, j] * walking).sum(-1)
                weights[item, row, :, j] = weight
                walking = gate[item, :, j].exp() * (walking - weight[:, None] * key[item, :, j])
    return weights.transpose(1, 2)


def queries(given: Layer, rows: Tensor) -> Tensor:
    return given.query.gather(2, rows.clamp(min=0)[:, None, :, None].expand(-1, HEADS, -1, SIZE))


ROWS = torch.stack([torch.tensor([0, 149, 63, 64, 65, 128]), torch.tensor([5, 4, 15, 16, 140, 141])])


@pytest.mark.parametrize("decay", [0.0, 0.5, 60.0])
@pytest.mark.parametrize("by_channel", [False, True])
def test_rows_of_the_delta_rule_are_those_of_a_walk_over_every_key(by_channel: bool, decay: float) -> None:
    given = layer(2 if not by_channel else HEADS, by_channel=by_channel, decay=decay)
    got = delta_rule_rows(queries(given, ROWS), given.key, given.beta, given.gate, ROWS)
    expected = walk(given, ROWS)
    assert (got - expected).abs().max() < 1e-6
    assert expected.max() > 0.05
    assert expected.min() < -0.01  # rows are signed
    assert torch.equal(got[0, :, 0, 1:], torch.zeros(HEADS, LENGTH - 1))  # no row sees a later key


@pytest.mark.parametrize("compute", [delta_rule_rows, decayed_rows])
def test_keys_before_the_first_wanted_one_can_be_left_out(compute: Callable[..., Tensor]) -> None:
    given = layer(2)
    whole = compute(queries(given, ROWS), given.key, given.beta, given.gate, ROWS)
    part = (given.key[:, :, 40:], given.beta[:, :, 40:], given.gate[:, :, 40:])
    got = compute(queries(given, ROWS), *part, ROWS - 40)
    torch.testing.assert_close(got, whole[..., 40:], rtol=0, atol=1e-7)
    assert not got[ROWS[:, None].expand(-1, HEADS, -1) < 40].any()


def test_decayed_rows_are_those_of_the_definition_over_a_long_text() -> None:
    given = layer(2, length=2000)
    rows = torch.tensor([[0, 1999, 1000]]).expand(BATCH, -1)
    got = decayed_rows(queries(given, rows), given.key, given.beta, given.gate, rows)
    summed = given.gate.double().cumsum(-1)
    key = given.key.double().repeat_interleave(2, dim=1)
    for row, place in enumerate(rows[0].tolist()):
        decay = (summed[..., place, None] - summed[..., : place + 1]).exp()
        products = (key[:, :, : place + 1] @ given.query[:, :, place, :, None].double())[..., 0]
        expected = products * decay * given.beta[..., : place + 1]
        assert (got[:, :, row, : place + 1] - expected).abs().max() < 1e-7
        assert not got[:, :, row, place + 1 :].any()
        assert expected.abs().max() > 0.01


@pytest.mark.parametrize("by_channel", [False, True])
def test_rows_times_values_are_the_output_of_the_kernel(by_channel: bool) -> None:
    if by_channel:
        module = pytest.importorskip("transformers.models.kimi_linear.modeling_kimi_linear")
        kernel = module.chunk_kimi_delta_attention
    else:
        module = pytest.importorskip("transformers.models.qwen3_5.modeling_qwen3_5")
        kernel = module.torch_chunk_gated_delta_rule
    given = layer(HEADS if by_channel else 2, by_channel=by_channel)
    # The kernel scales queries itself.
    query = (given.query * SIZE**0.5)[:, :: HEADS // given.key.shape[1]]
    given.query = (query * SIZE**-0.5).repeat_interleave(HEADS // given.key.shape[1], dim=1)
    inputs = [one.transpose(1, 2) for one in (query, given.key, given.value)]
    output, _ = kernel(*inputs, g=given.gate.transpose(1, 2), beta=given.beta.transpose(1, 2), initial_state=None)
    got = delta_rule_rows(queries(given, ROWS), given.key, given.beta, given.gate, ROWS) @ given.value
    index = ROWS[:, None, :, None].expand(-1, HEADS, -1, SIZE)
    expected = output.transpose(1, 2).gather(2, index)
    assert (got - expected).abs().max() < 1e-6
    assert expected.abs().max() > 0.1
