"""The seal notices any change and names it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flmm_plugin import seal as seal_module
from flmm_plugin.errors import FrozenWeightsChanged
from flmm_plugin.seal import FrozenSeal, fingerprint


def model(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(30, 40), nn.BatchNorm1d(40), nn.Linear(40, 5)).to(dtype)


def test_an_unchanged_model_verifies_and_equal_models_have_equal_digests() -> None:
    one, two = FrozenSeal(model()), FrozenSeal(model())
    one.verify()
    assert one.digest == two.digest
    assert set(one.hashes) >= {"0.weight", "0.bias", "1.running_mean", "1.num_batches_tracked", "2.weight"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_changed_value_is_found_and_named(dtype: torch.dtype) -> None:
    net = model(dtype)
    seal = FrozenSeal(net)
    with torch.no_grad():
        net[2].weight[3, 17] = -net[2].weight[3, 17]
    with pytest.raises(FrozenWeightsChanged, match=r"'2\.weight'.*resize_token_embeddings"):
        seal.verify()


def test_every_flipped_bit_is_found_and_so_are_swapped_values_and_tensors() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(9, 2, dtype=torch.bfloat16), nn.Linear(9, 2, dtype=torch.bfloat16))
    seal = FrozenSeal(net)
    weight = net[0].weight.detach()
    stored = weight.view(torch.uint8).reshape(-1)
    for byte in range(len(stored)):
        for bit in range(8):
            stored[byte] ^= 1 << bit
            with pytest.raises(FrozenWeightsChanged, match=r"'0\.weight'"):
                seal.verify()
            stored[byte] ^= 1 << bit
    seal.verify()
    weight[0, :2] = weight[0, :2].flip(0)
    with pytest.raises(FrozenWeightsChanged, match=r"'0\.weight'"):
        seal.verify()
    weight[0, :2] = weight[0, :2].flip(0)
    net[0].weight, net[1].weight = net[1].weight, net[0].weight
    with pytest.raises(FrozenWeightsChanged, match=r"'0\.weight'"):
        seal.verify()


def test_a_changed_buffer_is_found() -> None:
    net = model()
    seal = FrozenSeal(net)
    net.train()(torch.randn(4, 30))  # batch norm updates its statistics
    with pytest.raises(FrozenWeightsChanged, match=r"'1\.running_mean'"):
        seal.verify()


def test_a_conversion_is_a_change_even_where_no_value_is_lost() -> None:
    net = nn.Sequential(nn.Linear(2, 2))
    nn.init.ones_(net[0].weight)
    seal = FrozenSeal(net)
    net.half()
    with pytest.raises(FrozenWeightsChanged, match=r"'0\.weight'"):
        seal.verify()


def test_added_and_removed_tensors_are_named() -> None:
    net = model()
    seal = FrozenSeal(net)
    net.register_buffer("extra", torch.zeros(1))
    with pytest.raises(FrozenWeightsChanged, match="extra"):
        seal.verify()
    net = model()
    seal = FrozenSeal(net)
    del net[2]
    with pytest.raises(FrozenWeightsChanged, match=r"'2\.weight' was removed"):
        seal.verify()


def test_pieces_do_not_change_the_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = FrozenSeal(model()).digest
    monkeypatch.setattr(seal_module, "_PIECE_BYTES", 28)
    assert FrozenSeal(model()).digest == whole


def test_shared_tensors_are_listed_under_each_name() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    seal = FrozenSeal(net)
    assert seal.hashes["0.weight"] == seal.hashes["1.weight"]
    net[1].weight = nn.Parameter(net[0].weight.detach() + 1)  # untied
    with pytest.raises(FrozenWeightsChanged, match=r"'1\.weight'"):
        seal.verify()


def test_an_offloaded_model_has_the_same_hashes() -> None:
    accelerate = pytest.importorskip("accelerate")
    net = model()
    plain, quick = FrozenSeal(net), fingerprint(net)
    accelerate.cpu_offload(net, execution_device=torch.device("cpu"))
    assert net[0].weight.device.type == "meta"
    assert FrozenSeal(net).hashes == plain.hashes
    assert fingerprint(net) == quick
    plain.verify()


def test_a_model_without_values_is_refused() -> None:
    with pytest.raises(FrozenWeightsChanged, match="meta device"):
        FrozenSeal(nn.Linear(2, 2, device="meta"))


def test_the_fingerprint_notices_training() -> None:
    net = model()
    before = fingerprint(net)
    assert fingerprint(model()) == before
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    net.eval()(torch.randn(4, 30)).sum().backward()
    optimizer.step()
    assert fingerprint(net) != before
