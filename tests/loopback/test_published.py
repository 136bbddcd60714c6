"""The parts that the servers hold are read as the published ones would be."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from flmm_plugin.datasets.refer import ReferDataset
from flmm_plugin.heads.official import convert, read_official
from flmm_plugin.heads.released import need_released
from flmm_plugin.heads.sam import build_sam
from flmm_plugin.heads.weights import tensors_sha256

from .published import DEEPSEEK, HEADS, LLAVA, SAM, small_sam, with_hash


def test_sam_has_its_hash_and_its_layout(published: Path) -> None:
    assert hashlib.md5((published / SAM).read_bytes()).hexdigest().startswith("0b3195")
    with small_sam():
        first, second = build_sam("vit_l", published / SAM), build_sam("vit_l")
    assert first.prompt_encoder.embed_dim == 256
    assert tensors_sha256(first.state_dict()) != tensors_sha256(second.state_dict())


def test_a_hash_is_found_by_trying() -> None:
    made = with_hash(b"anything that ends as an archive does\0\0", "0b")
    assert hashlib.md5(made).hexdigest().startswith("0b")


@pytest.mark.parametrize("repo", [DEEPSEEK, LLAVA])
def test_heads_fit_the_model_of_their_repository(published: Path, repo: str) -> None:
    from flmm_plugin.backbones.registry import facts_of

    facts = facts_of(published / "models" / repo)
    with small_sam():
        heads = convert(read_official(published / HEADS[repo][1]), facts, sam_checkpoint=published / SAM)
    assert heads.manifest.sam_joined
    assert need_released(repo).hub == repo


def test_refcoco_is_an_archive_of_its_folder(published: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(published / "refcoco.zip") as archive:
        archive.extractall(tmp_path / "coco")
    (tmp_path / "coco/train2014").symlink_to(published / "coco/train2014")
    data = ReferDataset(tmp_path, "refcoco", "val")
    assert len({item.image_path for item in data}) == 2
    assert all(item.image_path.is_file() for item in data)
