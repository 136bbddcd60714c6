"""Files of weights with flipped bits, cut or lying about their size: the right tensors, or an error with a name."""

from __future__ import annotations

import json
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save, save_file
from torch import Tensor

from flmm_plugin.errors import BadCheckpoint, FlmmError, UnsafePickle
from flmm_plugin.heads import GroundingHeads, build_sam, load_heads, save_heads
from flmm_plugin.heads.checkpoint import METADATA_KEY, read_manifest
from flmm_plugin.heads.official import read_official
from flmm_plugin.heads.sam import sam_of_file
from flmm_plugin.heads.weights import read_safetensors, tensors_sha256


def flipped(whole: bytes, seed: int) -> bytes:
    """One bit of a file: in its first part, its last, or anywhere."""
    dice = random.Random(seed)
    places = (
        dice.randrange(len(whole)),
        dice.randrange(min(3000, len(whole))),
        -1 - dice.randrange(min(5000, len(whole))),
    )
    content = bytearray(whole)
    content[dice.choice(places)] ^= 1 << dice.randrange(8)
    return bytes(content)


@pytest.mark.parametrize("kind", ["heads", "released", "released, older form", "SAM", "SAM, safetensors"])
def test_flipped_bits_are_found(
    make_heads: Callable[..., GroundingHeads], small_sam: dict[str, Any], tmp_path: Path, kind: str
) -> None:
    path = tmp_path / ("x.safetensors" if kind in ("heads", "SAM, safetensors") else "x.pth")
    read: Callable[[], dict[str, Tensor]] = lambda: read_official(path)  # noqa: E731
    if kind == "heads":
        save_heads(path, make_heads())
        read = lambda: dict(load_heads(path).state_dict())  # noqa: E731
    elif kind == "SAM":
        torch.save(build_sam(small_sam).state_dict(), path)
        read = lambda: dict(build_sam(small_sam, path).state_dict())  # noqa: E731
    elif kind == "SAM, safetensors":
        state = dict(build_sam(small_sam).state_dict())
        save_file(state, path, metadata={"sha256": tensors_sha256(state)})
        read = lambda: dict(sam_of_file(small_sam, path).state_dict())  # noqa: E731
    else:
        torch.save(make_heads().state_dict(), path, _use_new_zipfile_serialization=kind == "released")
    good, whole = read(), path.read_bytes()
    for seed in range(25):
        path.write_bytes(flipped(whole, seed))
        try:
            found = read()
        except FlmmError as exc:
            assert isinstance(exc, BadCheckpoint | UnsafePickle), (seed, exc)  # noqa: PT017 - either is right
            continue
        # Files of the older form hold no checksum: there a flipped number is a number.
        same = found.keys() == good.keys() and all(torch.equal(found[name], good[name]) for name in good)
        assert same or kind == "released, older form", seed


@pytest.mark.parametrize(
    "claim",
    [
        {"layers": 10**12},
        {"hidden_size": 10**12},
        {"decoder": {"base_channels": 10**9}},
        {"decoder": {"base_channels": 4, "upsample_to": 10**6}},
        {"sam": {"depth": 10**9}},
        {"sam": {"decoder_depth": 10**9}},
        {"sam": {"image_size": 10**9}},
        {"sam": {"prompt_dim": 10**12}},
        {"sam": {"window_size": -1}},
        {"sam": {"depth": "1"}},
        {"sam": 5},
        {"sam_prompts": [1]},
        {"keyword_threshold": float("nan")},
        {"notes": 5},
        {"prompt": None},
    ],
    ids=str,
)
def test_a_manifest_claims_no_memory(make_heads: Callable[..., GroundingHeads], tmp_path: Path, claim: Any) -> None:
    path = tmp_path / "heads.safetensors"
    save_heads(path, make_heads())
    manifest = json.loads(read_manifest(path).to_json())
    for name, value in claim.items():
        manifest[name] = {**manifest[name], **value} if isinstance(value, dict) else value
    path.write_bytes(save(read_safetensors(path), {METADATA_KEY: json.dumps(manifest)}))
    with pytest.raises(BadCheckpoint):
        load_heads(path)


def test_a_released_file_claims_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"mask_head.x": torch.zeros(1).expand(1 << 40)}, path)
    with pytest.raises(BadCheckpoint, match="fewer numbers"):
        read_official(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(1 << 22))
    with pytest.raises(BadCheckpoint, match="claims"):
        read_official(path)
