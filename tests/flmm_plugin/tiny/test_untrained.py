"""The untrained twin of the embedded LMM."""

from __future__ import annotations

from pathlib import Path

import pytest

from flmm_plugin.backbones import load_backbone
from flmm_plugin.seal import fingerprint
from flmm_plugin.tiny.untrained import write_untrained


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_untrained(tmp_path_factory.mktemp("untrained") / "flmm_tiny")


def test_it_differs_from_the_embedded_model_in_its_weights_alone(folder: Path) -> None:
    trained, untrained = (load_backbone(name, device="cpu") for name in ("flmm_tiny", folder))
    assert {name: tensor.shape for name, tensor in trained.model.state_dict().items()} == {
        name: tensor.shape for name, tensor in untrained.model.state_dict().items()
    }
    assert trained.processor.tokenizer.get_vocab() == untrained.processor.tokenizer.get_vocab()
    assert fingerprint(trained.model) != fingerprint(untrained.model)


def test_its_weights_are_the_same_at_each_time(folder: Path, tmp_path: Path) -> None:
    again = write_untrained(tmp_path / "flmm_tiny")
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
