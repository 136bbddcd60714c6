"""Push and pull against a hub that is a folder: what is uploaded, what the card says, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from flmm_plugin.errors import BadCheckpoint, DataNotFound
from flmm_plugin.heads import GroundingHeads, HeadsManifest, load_heads, read_manifest, save_heads
from flmm_plugin.heads.checkpoint import verify_tensors, write_tensors
from flmm_plugin.heads.hub import CARD, FILE, find_results, model_card, pull_heads, push_heads
from flmm_plugin.redaction import public


class FolderHub:
    """Repositories are folders; what was asked is kept."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.asked: list[tuple[str, Any]] = []

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> str:
        assert exist_ok
        (self.root / repo_id).mkdir(parents=True, exist_ok=True)
        self.asked.append(("create", private))
        return f"https://hub.example/{repo_id}"

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> None:
        self.asked.append(("upload", commit_message))
        shutil.copytree(folder_path, self.root / repo_id, dirs_exist_ok=True)

    def hf_hub_download(self, repo_id: str, filename: str, *, revision: str | None) -> str:
        self.asked.append(("download", revision))
        path = self.root / repo_id / filename
        if not path.is_file():
            raise FileNotFoundError(f"404 Client Error.\nEntry Not Found: {filename}")
        return str(path)


@pytest.fixture
def hub(tmp_path: Path) -> FolderHub:
    return FolderHub(tmp_path / "hub")


@pytest.fixture
def heads_file(make_heads: Callable[..., GroundingHeads], tmp_path: Path) -> Path:
    save_heads(tmp_path / "heads.safetensors", make_heads(data="RefCOCO (unc)", revision="abc"))
    return tmp_path / "heads.safetensors"


def write_results(path: Path, ciou: float = 41.25) -> Path:
    """As lmms-eval 0.7 writes them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "results": {
            "flmm_refcoco_val": {
                "alias": "flmm_refcoco_val", "ciou,none": ciou, "ciou_stderr,none": "N/A", "miou,none": 0.5,
                "miou_stderr,none": 0.01,
            },
            "refcoco_seg": {" ": " ", "alias": "refcoco_seg"},
        },
        "n-samples": {"flmm_refcoco_val": {"original": 1500, "effective": 30}},
        "config": {"model": "flmm_llava", "model_args": "pretrained=tests/tiny-lmm,heads=heads.safetensors"},
        "git_hash": "0123abc", "transformers_version": "5.23.0",
    }  # fmt: skip
    path.write_text(json.dumps(content))
    return path


def test_push_then_pull_gives_the_same_heads(heads_file: Path, hub: FolderHub, tmp_path: Path) -> None:
    before = heads_file.read_bytes()
    results = find_results(write_results(tmp_path / "run" / "20260101_120000_results.json"))
    address = push_heads(heads_file, "me/heads", results=results, private=True, hub=hub)
    assert address == "https://hub.example/me/heads"
    assert hub.asked == [("create", True), ("upload", "Heads for tests/tiny-lmm")]
    assert sorted(path.name for path in (hub.root / "me/heads").iterdir()) == [CARD, FILE]
    manifest = pull_heads("me/heads", tmp_path / "new" / "pulled.safetensors", revision="v1", hub=hub)
    assert hub.asked[-1] == ("download", "v1")
    assert before == heads_file.read_bytes()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["pulled.safetensors"]
    pulled, own = load_heads(tmp_path / "new" / "pulled.safetensors"), load_heads(heads_file)
    assert manifest == pulled.manifest
    assert manifest == replace(own.manifest, notes={**own.manifest.notes, "source": "https://huggingface.co/me/heads"})
    assert all(torch.equal(tensor, pulled.state_dict()[name]) for name, tensor in own.state_dict().items())


def test_the_card_says_what_manifest_and_result_file_say(
    make_manifest: Callable[..., HeadsManifest], tmp_path: Path
) -> None:
    path = write_results(tmp_path / "20260101_120000_results.json")
    manifest = make_manifest(data="RefCOCO (unc) | PNG", sha256="f" * 64, revision="abc")
    card = model_card(manifest, "me/heads", find_results(path), licence="apache-2.0")
    front, rest = card.removeprefix("---\n").split("\n---\n")
    metadata = {line.partition(": ")[0]: json.loads(line.partition(": ")[2]) for line in front.splitlines()}
    assert metadata["license"] == "apache-2.0"
    assert metadata["base_model"] == "tests/tiny-lmm"
    assert "| flmm_refcoco_val | ciou | 41.25 | 30 |" in rest
    assert "| flmm_refcoco_val | miou | 0.5 | 30 |" in rest
    assert "stderr" not in rest
    assert "| attention maps | 6 (2 layers x 3 heads) |" in rest
    assert "| backbone | tests/tiny-lmm at abc |" in rest
    assert r"RefCOCO (unc) \| PNG" in rest
    assert "f" * 64 in rest
    assert "`20260101_120000_results.json`" in rest
    assert "transformers 5.23.0, commit 0123abc" in rest
    assert "--heads me/heads" in rest
    assert "No scores were given" in model_card(manifest, "me/heads")


def test_of_a_folder_the_newest_run_counts(tmp_path: Path) -> None:
    old, new = write_results(tmp_path / "a_results.json", 1.0), write_results(tmp_path / "x" / "b_results.json", 2.0)
    os.utime(old, (1, 1))
    assert find_results(tmp_path).scores["flmm_refcoco_val"]["ciou"] == 2.0
    os.utime(new, (0, 0))
    assert find_results(tmp_path).scores["flmm_refcoco_val"]["ciou"] == 1.0
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataNotFound, match=r"no \*_results\.json under"):
        find_results(empty)
    (tmp_path / "c_results.json").write_text("[1]")
    with pytest.raises(DataNotFound, match="lmms-eval"):
        find_results(tmp_path / "c_results.json")


def test_damaged_heads_are_neither_pushed_nor_pulled(heads_file: Path, hub: FolderHub, tmp_path: Path) -> None:
    push_heads(heads_file, "me/heads", hub=hub)
    damaged = bytearray(heads_file.read_bytes())
    damaged[-2] ^= 1
    heads_file.write_bytes(bytes(damaged))
    asked = len(hub.asked)
    with pytest.raises(BadCheckpoint, match="sha256"):
        push_heads(heads_file, "me/heads", hub=hub)
    assert len(hub.asked) == asked
    (hub.root / "me/heads" / FILE).write_bytes(bytes(damaged))
    with pytest.raises(BadCheckpoint, match="sha256"):
        pull_heads("me/heads", tmp_path / "out.safetensors", hub=hub)
    assert not (tmp_path / "out.safetensors").exists()


def test_a_hub_that_refuses_is_one_line_with_the_fix(heads_file: Path, hub: FolderHub, tmp_path: Path) -> None:
    with pytest.raises(DataNotFound, match=r"cannot pull .* from me/none: .*404 Client Error.*hf auth login"):
        pull_heads("me/none", tmp_path / "out.safetensors", hub=hub)

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError("403 Forbidden")

    hub.upload_folder = refuse  # type: ignore[method-assign,assignment]
    with pytest.raises(DataNotFound, match="cannot push to me/heads: PermissionError: 403 Forbidden"):
        push_heads(heads_file, "me/heads", hub=hub)


def test_the_real_client_has_what_is_used_of_it() -> None:
    import inspect

    from huggingface_hub import HfApi

    from flmm_plugin.heads.hub import Hub

    for name in ("create_repo", "upload_folder", "hf_hub_download"):
        ours, theirs = inspect.signature(getattr(Hub, name)), inspect.signature(getattr(HfApi, name))
        assert set(ours.parameters) <= set(theirs.parameters), name


def test_offline_the_real_client_fails_with_the_fix(tmp_path: Path) -> None:
    with pytest.raises(DataNotFound, match="HF_HUB_OFFLINE"):
        pull_heads("me/none", tmp_path / "out.safetensors")


def test_what_is_pushed_says_no_place_of_this_machine(
    heads_file: Path, hub: FolderHub, tmp_path: Path, make_heads: Callable[..., GroundingHeads]
) -> None:
    """Neither the card nor the file, also where an older version or a hand wrote paths into it."""
    heads = make_heads(backbone="/Users/ann/models/llava-1.5", notes={"recipe": {"data": {"root": "/Users/ann/coco"}}})
    save_heads(heads_file, heads)
    assert "/Users" not in read_manifest(heads_file).to_json()
    state = verify_tensors(heads_file)
    older = replace(heads.manifest, storage="float32", sha256=read_manifest(heads_file).sha256)
    write_tensors(heads_file, state, older)
    assert "/Users/ann" in read_manifest(heads_file).to_json()
    results = find_results(write_results(tmp_path / "a" / "x_results.json"))
    results = replace(results, model_args=str(public("pretrained=/Users/ann/llava,heads=/Users/ann/h.pth")))
    push_heads(heads_file, "me/heads", results=results, hub=hub)
    for path in (tmp_path / "hub" / "me" / "heads").iterdir():
        assert b"ann" not in path.read_bytes().replace(b"channel", b""), path
    assert read_manifest(tmp_path / "hub" / "me" / "heads" / FILE).backbone == "llava-1.5"
    load_heads(tmp_path / "hub" / "me" / "heads" / FILE)


def test_result_files_of_another_kind_are_named_or_read(tmp_path: Path) -> None:
    path = tmp_path / "x_results.json"
    for content in ("[]", '{"results": 5}', '{"results": {"a": 1}}', "[" * 99_999):
        path.write_text(content)
        with pytest.raises(DataNotFound, match=r"x_results\.json"):
            find_results(path)
    path.write_text('{"results": {"a": {"b,c": 1e999}}}')
    assert find_results(path).scores == {"a": {"b": float("inf")}}
