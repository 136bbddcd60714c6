"""What may be said when a backbone is loaded, and what is said back."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flmm_plugin.attention import AttentionCapture
from flmm_plugin.backbones import load_backbone, loading
from flmm_plugin.errors import BackboneUnsupported, UnknownArgument

Load = Callable[..., Any]


def encoded(backbone: Any) -> Any:
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Where is the dog?"}]}]
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    return backbone.encode([chat], [[Image.fromarray(pixels)]])


def test_unknown_arguments_suggest_the_nearest(family_folder: Load) -> None:
    for given, meant in (
        ("load_in_4bits", "load_in_4bit"),
        ("preprocess", "preprocessing"),
        ("devicemap", "device_map"),
    ):
        with pytest.raises(UnknownArgument, match=f"did you mean '{meant}'"):
            load_backbone(family_folder("llava"), **{given: "x"})


def test_arguments_that_a_family_does_not_take(family_folder: Load) -> None:
    with pytest.raises(UnknownArgument, match="trust_remote_code"):
        load_backbone(family_folder("llava"), trust_remote_code=True)
    with pytest.raises(UnknownArgument, match="load_in_8bit"):
        load_backbone(family_folder("llava"), load_in_4bit=True, load_in_8bit=True)


def test_few_bits_without_bitsandbytes_name_the_extra(family_folder: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        loading.importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else real(name)
    )
    with pytest.raises(BackboneUnsupported, match=r"flmm-plugin\[quantized\]"):
        load_backbone(family_folder("llava"), load_in_4bit=True, device="cpu")


@pytest.mark.parametrize("bits", ["load_in_4bit", "load_in_8bit"])
def test_rows_of_a_quantised_model(family_folder: Load, bits: str) -> None:
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: pip install 'flmm-plugin[quantized]'")
    backbone = load_backbone(family_folder("llava"), **{bits: True})
    assert {"Linear4bit", "Linear8bitLt"} & {type(part).__name__ for part in backbone.decoder.modules()}
    inputs = encoded(backbone)
    rows = [torch.arange(int(inputs.image_tokens[0][0].slots.max()) + 1, inputs.length)]
    capture = AttentionCapture(backbone.decoder, rows, [inputs.image_tokens[0][0].slots])
    with torch.no_grad():
        plain = backbone.model(**inputs.inputs).logits
        with capture.active():
            assert torch.equal(backbone.model(**inputs.inputs).logits, plain)
    assert torch.isfinite(capture.attention(0)).all()


def parts_of(model: torch.nn.Module) -> list[str]:
    """What a device map must name: every part that holds weights, down to single decoder layers."""
    parts: list[str] = []
    for path in ("model.language_model.layers", "model.language_model", "model", ""):
        whole = model.get_submodule(path)
        names = [name for name, _ in (*whole.named_children(), *whole.named_parameters(recurse=False))]
        names = [f"{path}.{name}".strip(".") for name in names]
        parts += [name for name in names if not any(part.startswith(f"{name}.") for part in parts)]
    return parts


@pytest.mark.parametrize("name", ["llava_next_mistral", "qwen3_vl", "internvl"])
def test_capture_works_across_devices(name: str, family_folder: Load, load_family: Load) -> None:
    """Sharded as `device_map` says: here the CPU, and a disk from which layers are fetched when their turn comes."""
    whole = load_family(name)
    places = dict.fromkeys(parts_of(whole.model), "cpu")
    last = f"model.language_model.layers.{whole.num_layers - 1}"
    assert last in places
    split = load_backbone(family_folder(name), device_map={**places, last: "disk"})
    assert any(parameter.device.type == "meta" for parameter in split.model.parameters())
    assert str(split.device) == "cpu"
    one, other = encoded(whole), encoded(split)
    rows, columns = [torch.arange(one.length - 4, one.length)], [one.image_tokens[0][0].slots]
    read = []
    for backbone, inputs in ((whole, one), (split, other)):
        capture = AttentionCapture(backbone.decoder, rows, columns)
        with torch.no_grad(), capture.active():
            backbone.forward_body(inputs.inputs)
        read.append(capture)
    assert torch.equal(read[0].attention(0), read[1].attention(0))
    assert torch.equal(read[0].hidden(0), read[1].hidden(0))
