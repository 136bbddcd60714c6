"""Triples and fingerprints: what counts as the same, what is seen as different, and what the record keeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flmm_plugin import verification
from flmm_plugin.errors import BadCheckpoint, CaptureError, DataNotFound
from flmm_plugin.verification import (
    AttentionFingerprint,
    FixedInput,
    Records,
    Triple,
    Verified,
    fixed_picture,
    installed_triple,
    local_folder,
    numbers_of,
    read_records,
    weights_id,
    write_records,
)

TRIPLE = Triple("5.23.0", "2.15.0", "sdpa")


def taken(**changes: Any) -> AttentionFingerprint:
    numbers = {"layer 0": [0.5, 0.25, 0.4, 0.6], "layer 1": [0.1, 0.2, 0.3, 0.4]}
    one = AttentionFingerprint("lmm", "w1", TRIPLE, "float32", "cpu", 3, 1e-7, numbers)
    return replace(one, **changes)


def test_fixed_picture_is_the_same_no_way_round() -> None:
    pixels = np.asarray(fixed_picture()).astype(int)
    assert pixels.shape == (96, 128, 3)
    for other in (pixels[::-1], pixels[:, ::-1], pixels[..., ::-1], pixels[..., [1, 0, 2]], pixels[::-1, ::-1]):
        assert np.abs(pixels - other).mean() > 20


def test_numbers_of_a_map_with_one_bright_cell() -> None:
    rows = torch.zeros(2, 5, 3, 12)
    rows[..., 7] = 0.3  # row 1, column 3 of 3 x 4
    rows[:, 4, 2, 7] = 0.9
    numbers = numbers_of(rows, 3, 4)
    assert list(numbers) == ["layer 0", "layer 1", "layer 3", "layer 4"]
    assert numbers["layer 0"] == pytest.approx([0.3, 0.3, 0.5, 0.875], rel=1e-6)
    assert numbers["layer 4"] == pytest.approx([0.5, (0.3 + 0.6 + 2.7) / 6, 0.5, 0.875], rel=1e-6)
    assert numbers_of(torch.ones(1, 1, 1, 5) / 5, 2, 2)["layer 0"] == pytest.approx([1, 1, 0.5, 0.5])


@pytest.mark.parametrize("change", ["heads", "turned", "softer", "shifted"])
def test_whatever_changes_maps_changes_numbers(change: str) -> None:
    rows = torch.rand(2, 2, 4, 12, generator=torch.Generator().manual_seed(0))
    other = {
        "heads": rows.flip(2),
        "turned": rows.flip(3),
        "softer": rows**0.9,
        "shifted": rows.roll(1, 3),
    }[change]
    one = taken(numbers=numbers_of(rows, 3, 4))
    assert taken(numbers=numbers_of(other, 3, 4)).differs_from(one)
    assert not taken(numbers=numbers_of(rows * (1 + 1e-6), 3, 4)).differs_from(one)


def test_the_worst_number_is_named_and_precision_sets_the_limit() -> None:
    here = taken(numbers={"layer 0": [0.5, 0.26, 0.4, 0.6], "layer 1": [0.1, 0.2, 0.3, 0.5]})
    assert here.differs_from(taken()) == "x of layer 1 is 0.5, recorded 0.4"
    near = {"layer 0": [0.501, 0.25, 0.4, 0.6], "layer 1": [0.1, 0.2, 0.3, 0.4]}
    assert taken(numbers=near).differs_from(taken())
    assert not taken(numbers=near, dtype="bfloat16").differs_from(taken())
    nan = {"layer 0": [float("nan"), 0.25, 0.4, 0.6], "layer 1": [0.1, 0.2, 0.3, 0.4]}
    assert "mass of layer 0 is nan" in taken(numbers=nan).differs_from(taken())
    assert taken(tokens=4).differs_from(taken()) == "other layers or tokens were read"


def test_records_are_kept_replaced_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "verified.json"
    assert read_records(path) == Records()
    older = Triple("5.0.0", "2.15.0", "sdpa")
    records = Records().with_triples("llava", [Verified("llava", TRIPLE, 9), Verified("llava", older, 9)])
    records = records.with_triples("qwen3_vl", [Verified("qwen3_vl", TRIPLE, 8)])
    records = records.with_triples("llava", [Verified("llava", TRIPLE, 12)])
    assert {(one.triple, one.passed) for one in records.of_family("llava")} == {(TRIPLE, 12), (older, 9)}
    for new in (taken(), taken(dtype="bfloat16"), taken(tokens=5), taken(backbone="other", weights="w3")):
        records = records.with_fingerprint(new)
    assert records.of_weights("w1") == (taken(dtype="bfloat16"), taken(tokens=5))
    write_records(records, path)
    assert read_records(path) == records
    assert [one.name for one in tmp_path.iterdir()] == ["verified.json"]
    replaced = records.with_fingerprint(taken(weights="w2"))
    assert replaced.of_weights("w1") == ()
    assert len(replaced.fingerprints) == 2
    path.write_text('{"triples": [{}], "fingerprints": []}')
    with pytest.raises(BadCheckpoint, match="reinstall"):
        read_records(path)
    with pytest.raises(DataNotFound, match="cannot write"):
        write_records(records, tmp_path / "no" / "verified.json")


def test_a_family_of_several_variants_is_verified_where_all_of_them_are() -> None:
    older = Triple("5.0.0", "2.15.0", "sdpa")
    records = Records(
        (
            Verified("llava", older, 4),
            Verified("llava_next_vicuna", TRIPLE, 5),
            Verified("llava_next_vicuna", older, 5),
            Verified("llava_next_mistral", TRIPLE, 6),
        )
    )
    assert records.of_family("llava") == (Verified("llava", older, 4),)
    assert records.of_family("llava_next") == (Verified("llava_next", TRIPLE, 11),)
    assert records.of_family("qwen3_vl") == ()


def test_weights_are_told_apart_by_any_of_their_files(tmp_path: Path) -> None:
    with pytest.raises(DataNotFound, match=r"no \.safetensors under"):
        weights_id(tmp_path)
    (tmp_path / "a.safetensors").write_bytes(b"abc")
    (tmp_path / "config.json").write_text("{}")
    first = weights_id(tmp_path)
    (tmp_path / "config.json").write_text("{1}")
    assert weights_id(tmp_path) == first
    (tmp_path / "a.safetensors").write_bytes(b"abd")
    second = weights_id(tmp_path)
    (tmp_path / "llm").mkdir()
    (tmp_path / "llm" / "b.safetensors").write_bytes(b"x")
    assert len({first, second, weights_id(tmp_path)}) == 3


def test_weights_that_are_not_here_are_not_fetched(tmp_path: Path) -> None:
    assert local_folder("some-owner/some-model") is None
    assert local_folder("not a name") is None
    assert local_folder(str(tmp_path)) == tmp_path


def test_installed_triple_has_no_build_tag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification.metadata, "version", lambda name: {"torch": "2.15.0+cu130"}.get(name, "5.23.0"))
    assert installed_triple("sdpa") == TRIPLE
    assert str(TRIPLE) == "transformers 5.23.0, torch 2.15.0, sdpa"


def test_checks_on_a_real_model(load_llava: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    fixed = FixedInput(load_llava("gqa"))
    rows = fixed.rows()
    assert rows.shape == (len(fixed.slots), 3, 4, 16)
    assert fixed.chat_is_untouched()
    assert 0 <= fixed.rows_from_eager(rows) < 1e-5
    assert fixed.rows_from_eager(rows.roll(1, 2)) > 1e-3
    assert fixed.backbone.decoder.config._attn_implementation == "sdpa"
    one = fixed.fingerprint("w1", rows, 0.0)
    assert (one.dtype, one.device, one.tokens) == ("float32", "cpu", rows.shape[0])
    assert all(0 < mass < 1 and 0 < y < 1 and 0 < x < 1 for mass, _, y, x in one.numbers.values())
    assert not fixed.fingerprint("w1", fixed.rows(), 0.0).differs_from(one)
    monkeypatch.setattr(verification, "_EAGER_BYTES", 10)
    with pytest.raises(CaptureError, match=r"would take 0\.0 GiB"):
        fixed.rows_from_eager(rows)
