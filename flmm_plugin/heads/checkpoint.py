"""One file for trained heads: safetensors, with the manifest as JSON in its metadata. Reading it runs no code.

Not stored: the image encoder of an official SAM size (Meta's own file has it), unless the manifest says that it was
joined. Stored whole: a small SAM.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor

import flmm_plugin
from flmm_plugin import files
from flmm_plugin.errors import BadCheckpoint, UnknownArgument
from flmm_plugin.heads.grounding_heads import GroundingHeads
from flmm_plugin.heads.manifest import BackboneFacts, HeadsManifest
from flmm_plugin.heads.sam import OFFICIAL_FILES, build_sam
from flmm_plugin.heads.weights import (
    first_lines,
    read_metadata,
    read_safetensors,
    tensor_mismatches,
    tensors_sha256,
)

METADATA_KEY = "flmm_heads"

#: What a training run calls its heads, in its folder.
HEADS_NAME = "heads.safetensors"

_IMAGE_ENCODER = "mask_refiner.sam.image_encoder."
_REFINER = ("mask_refiner.", "text_proj.")
_STORAGE = {"float16": torch.float16, "float32": torch.float32}


def save_heads(path: str | Path, heads: GroundingHeads, *, storage: str = "float32") -> HeadsManifest:
    """Write heads; the file appears under its name only when it is complete.

    Args:
        path: File to write; its name ends in ``.safetensors``.
        heads: Heads with the manifest to store; its ``storage``, ``created_by`` and ``sha256`` are set here, and
            absolute paths leave it.
        storage: ``float16`` halves the file and rounds the parameters; buffers (SAM's position code) stay float32.

    Returns:
        The manifest as stored.

    Raises:
        BadCheckpoint: A parameter is not finite, or too large for float16.
        OutputFailed: The place cannot be written.
    """
    if storage not in _STORAGE:
        raise UnknownArgument(f"storage {storage!r} is not one of {', '.join(_STORAGE)}")
    parameters = {name for name, _ in heads.named_parameters()}
    state: dict[str, Tensor] = {}
    for name, tensor in heads.state_dict().items():
        if name.startswith(_IMAGE_ENCODER) and not heads.manifest.stores_image_encoder:
            continue
        stored = tensor.detach().to("cpu", _STORAGE[storage] if name in parameters else torch.float32)
        if not bool(torch.isfinite(stored).all()):
            raise BadCheckpoint(
                f"{name} is not finite in {storage}; store float32, or look at the training that made it"
            )
        state[name] = stored.contiguous()
    manifest = dataclasses.replace(
        heads.manifest.without_places(),
        storage=storage,
        created_by=heads.manifest.created_by or f"flmm-plugin {flmm_plugin.__version__}",
        sha256=tensors_sha256(state),
    )
    write_tensors(Path(path), state, manifest)
    return manifest


def write_tensors(path: Path, state: dict[str, Tensor], manifest: HeadsManifest) -> None:
    """Write a heads file of tensors that their manifest already speaks of.

    Raises:
        OutputFailed: The place cannot be written.
    """
    files.write(path, to_safetensors(state, metadata={METADATA_KEY: manifest.to_json()}))


def heads_file(path: str | Path) -> Path:
    """Return the heads file that a path means: itself, or that of the training run whose folder it is."""
    return Path(path) / HEADS_NAME if Path(path).is_dir() else Path(path)


def read_manifest(path: str | Path) -> HeadsManifest:
    """Read the manifest alone, without reading a tensor.

    Raises:
        BadCheckpoint: No such file, not safetensors, truncated, without a manifest, or of a newer format.
    """
    path = heads_file(path)
    if not path.is_file():
        raise BadCheckpoint(f"no heads file at {path}; give the .safetensors file that `save_heads` wrote")
    metadata = read_metadata(path)
    if METADATA_KEY not in metadata:
        raise BadCheckpoint(f"{path} is a safetensors file without a heads manifest; it holds something else")
    return HeadsManifest.from_json(metadata[METADATA_KEY], str(path))


def load_heads(
    path: str | Path,
    *,
    expect: BackboneFacts | None = None,
    sam_checkpoint: str | Path | None = None,
    refiner: bool = True,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> GroundingHeads:
    """Read heads strictly and put them on a device, in evaluation mode.

    Args:
        path: Written by `save_heads`; or the folder of a training run, which holds `HEADS_NAME`.
        expect: The backbone they will read; None does not check.
        sam_checkpoint: Meta's file, needed when the heads use an official SAM size that is not joined to them.
        refiner: False leaves the refiner out (mask decoder only; needs no SAM file).
        device: Device for all modules, as torch names it.
        dtype: Precision of SAM's image encoder, where the time goes. All that was trained computes in float32.

    Raises:
        HeadsMismatch: The heads are another backbone's.
        BadCheckpoint: Missing or damaged file, newer format, hash mismatch, or missing, unknown, wrong-shaped tensors.
    """
    path = heads_file(path)
    manifest = read_manifest(path)
    if expect is not None:
        manifest.check_fits(expect)
    state = verify_tensors(path)
    if not refiner:
        manifest = dataclasses.replace(manifest, sam=None)
        state = {name: tensor for name, tensor in state.items() if not name.startswith(_REFINER)}
    elif manifest.sam is not None and not manifest.stores_image_encoder and sam_checkpoint is None:
        raise BadCheckpoint(
            f"{path}: these heads use the image encoder of SAM {manifest.sam}, which the file does not store; "
            f"download {OFFICIAL_FILES.get(str(manifest.sam), manifest.sam)} from segment-anything's model page and "
            "pass sam_checkpoint=..., or pass refiner=False to use the mask decoder alone"
        )
    _check_shapes(manifest, state, path)
    # Meta's file first: the image encoder stays, what was trained is overwritten.
    external = manifest.sam is not None and not manifest.stores_image_encoder
    official = build_sam(manifest.sam, sam_checkpoint) if external and manifest.sam is not None else None
    heads = GroundingHeads.build(manifest, sam=official)
    heads.load_state_dict(dict(state), strict=False)
    if heads.mask_refiner is not None:
        heads.mask_refiner.sam.image_encoder.to(dtype)
    return heads.to(device).eval()


def verify_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read all tensors of a heads file, which are those that its manifest speaks of.

    Raises:
        BadCheckpoint: They are not, or the file cannot be read.
    """
    path = heads_file(path)
    manifest, state = read_manifest(path), read_safetensors(path)
    if tensors_sha256(state) != manifest.sha256:
        raise BadCheckpoint(f"{path}: tensors do not match the sha256 of the manifest; fetch the file again")
    return state


def _check_shapes(manifest: HeadsManifest, state: Mapping[str, Tensor], path: Path) -> None:
    """Every tensor present, none unknown, all of the right shape; else an error that names the first few.

    Nothing is allocated for it: a manifest may claim what no memory holds.
    """
    try:
        with torch.device("meta"):
            heads = GroundingHeads.build(manifest)
    except Exception as exc:  # numbers that fit nothing are refused by whatever meets them first
        raise BadCheckpoint(f"{path}: the manifest describes heads that cannot be built: {first_lines(exc)}") from exc
    external = not heads.manifest.stores_image_encoder
    expected = {
        name: tensor
        for name, tensor in heads.state_dict().items()
        if not (external and name.startswith(_IMAGE_ENCODER))
    }
    if found := tensor_mismatches(state, expected):
        raise BadCheckpoint(f"{path}: {found}. Tensors and manifest disagree; save the heads again")
