"""Weights in the hub's cache: whether all of them are there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import constants

from flmm_plugin.hub_files import commit_of, holds_weights, weights_need


def write(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def index(path: Path, *parts: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"weight_map": {f"tensor.{number}": part for number, part in enumerate(parts)}}))


def test_every_part_of_one_form_must_be_there(tmp_path: Path) -> None:
    write(tmp_path, "config.json")
    assert not holds_weights(tmp_path)
    index(tmp_path / "model.safetensors.index.json", "a.safetensors", "b.safetensors")
    index(tmp_path / "pytorch_model.bin.index.json", "a.bin")
    write(tmp_path, "a.safetensors")
    assert not holds_weights(tmp_path)
    write(tmp_path, "b.safetensors")
    assert holds_weights(tmp_path)


def test_every_folder_of_parts_must_have_its_weights(tmp_path: Path) -> None:
    write(tmp_path, "projector/model.safetensors")
    assert holds_weights(tmp_path)
    index(tmp_path / "llm/model.safetensors.index.json", "1.safetensors")
    assert not holds_weights(tmp_path)
    write(tmp_path, "llm/1.safetensors")
    assert holds_weights(tmp_path)


def test_a_revision_is_looked_up_where_the_hub_s_cache_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    home = tmp_path / "models--me--lmm"
    write(home, "snapshots/abc/model.safetensors")
    assert not weights_need("me/lmm").here
    write(home, "refs/main")
    (home / "refs" / "main").write_text("abc")
    assert weights_need("me/lmm").here
    assert not weights_need("me/lmm", "v2").here
    assert (commit_of("me/lmm", "main"), commit_of("me/lmm", "v2"), commit_of("me/lmm", None)) == ("abc", None, None)


def test_what_is_no_name_of_the_hub_must_be_a_folder(tmp_path: Path) -> None:
    assert weights_need(str(tmp_path)).here
    gone = weights_need(str(tmp_path / "gone"))
    assert (gone.here, gone.bring) == (False, None)
