"""A device that this machine lacks is refused by name."""

from __future__ import annotations

import pytest
import torch

from flmm_plugin.devices import checked_device
from flmm_plugin.errors import UnknownArgument


@pytest.mark.parametrize("asked", [None, "cpu", " cpu ", "cpu:0"])
def test_what_every_machine_has(asked: str | None) -> None:
    assert checked_device(asked) == (asked and asked.strip())


@pytest.mark.parametrize(
    ("asked", "said"),
    [("gpu", "did you mean 'cuda'"), ("cuad:0", "did you mean 'cuda'"), ("cuda:99", "not on this machine"),
     ("cuda:-1", "no device"), ("", "no device"), ("cpu:7", "not on this machine"), ("CUDA", "did you mean 'cuda'")],
)  # fmt: skip
def test_what_is_not_here_is_named_with_what_is(asked: str, said: str) -> None:
    with pytest.raises(UnknownArgument, match=said) as caught:
        checked_device(asked, "device=")
    assert str(caught.value).startswith(f"device= {asked!r}")
    assert "cpu" in str(caught.value)


def test_several_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert checked_device("cuda:1") == "cuda:1"
    with pytest.raises(UnknownArgument, match="cpu, cuda, cuda:1"):
        checked_device("cuda:2")


def test_a_model_is_not_looked_for_before_its_device() -> None:
    from flmm_plugin import GroundedLMM

    with pytest.raises(UnknownArgument, match="device"):
        GroundedLMM.from_pretrained("no/such-model", heads=None, device="gpu")
