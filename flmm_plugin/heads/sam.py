"""Build the Segment Anything model that the refiner stands on: an official size, or a small one given by numbers.

All sizes are `segment_anything`'s own modules; only their numbers differ. Official weights are never bundled: the
image encoder of ``vit_b | vit_l | vit_h`` comes from Meta's checkpoint file.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from segment_anything import sam_model_registry
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import nn

from flmm_plugin.errors import BadCheckpoint, HeadsMismatch, UnknownArgument
from flmm_plugin.heads.weights import first_lines, read_metadata, read_pth, read_safetensors, tensors_sha256
from flmm_plugin.suggestions import did_you_mean

OFFICIAL_FILES = {
    "vit_b": "sam_vit_b_01ec64.pth",
    "vit_l": "sam_vit_l_0b3195.pth",
    "vit_h": "sam_vit_h_4b8939.pth",
}

# Numbers of a small SAM and what they are when left out; those without a default must be given.
_DEFAULTS: dict[str, Any] = {
    "image_size": None,  # side of the square input in pixels; the longer side of a picture is resized to it
    "patch_size": None,  # pixels per cell; image_size / patch_size = embedding grid; the mask prompt is 4 x that
    "encoder_dim": None,
    "depth": None,
    "heads": None,
    "prompt_dim": None,  # width of image embedding, prompts and text projection; a multiple of 2 * decoder_heads
    "decoder_mlp_dim": 2048,
    "decoder_depth": 2,
    "decoder_heads": 8,
    "mask_channels": 16,
    "mlp_ratio": 4,
    "window_size": 0,  # 0: every block attends globally, right for small grids
    "global_blocks": (),  # blocks that attend globally where window_size > 0
    "iou_hidden_dim": None,  # None: prompt_dim
}
_IN_HEADS = "mask_refiner.sam."
_LARGEST, _DEEPEST = 1 << 16, 1 << 8  # what a file may claim before anything is built
_OPTIONAL = {"iou_hidden_dim"}


def build_sam(variant: str | Mapping[str, Any], checkpoint: str | Path | None = None) -> Sam:
    """Make a `Sam`.

    Args:
        variant: ``vit_b``, ``vit_l``, ``vit_h``, or the numbers of a small one (keys: see ``_DEFAULTS`` above).
        checkpoint: A ``.pth`` state dict to load strictly; None leaves the initial weights.

    Raises:
        UnknownArgument: Not a variant, or a number that is unknown, missing, or does not fit the others.
        BadCheckpoint: The file is missing, unreadable, or of another size.
    """
    if isinstance(variant, str):
        if variant not in OFFICIAL_FILES:
            raise UnknownArgument(f"no SAM variant {variant!r}; give one of {', '.join(OFFICIAL_FILES)}, or numbers")
        sam = sam_model_registry[variant]()
    else:
        sam = _small_sam(sam_numbers(variant))
    if checkpoint is not None:
        _load_strict(sam, Path(checkpoint), variant)
    return sam


def sam_of_file(variant: str | Mapping[str, Any], path: Path) -> Sam:
    """Read a SAM from a safetensors file of its own (``python -m tools.tiny sam``), or of heads that store it.

    Raises:
        BadCheckpoint: The file is missing or damaged, or holds a SAM of other numbers.
    """
    if not path.is_file():
        raise BadCheckpoint(f"no SAM at {path}; give Meta's .pth file, or heads that hold a SAM, or flmm_tiny")
    state, wanted = read_safetensors(path), read_metadata(path).get("sha256")
    if wanted is not None and wanted != tensors_sha256(state):
        raise BadCheckpoint(f"{path}: tensors do not match the sha256 beside them; fetch the file again")
    inside = [name for name in state if name.startswith(_IN_HEADS)]
    tensors = {name.removeprefix(_IN_HEADS): state[name].float() for name in inside or state}
    try:
        with torch.device("meta"):  # numbers may claim more than memory holds
            build_sam(variant).load_state_dict(tensors, assign=True)
    except (RuntimeError, UnknownArgument) as exc:
        raise BadCheckpoint(f"{path} holds a SAM of other numbers than are asked for: {first_lines(exc, 2)}") from exc
    sam = build_sam(variant)
    sam.load_state_dict(tensors)
    return sam


def prompt_dim(variant: str | Mapping[str, Any]) -> int:
    """Return the width of the prompts of a variant, that is of what the text projection must give."""
    return 256 if isinstance(variant, str) else int(sam_numbers(variant)["prompt_dim"])


def sam_numbers(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in and check the numbers of a small SAM."""
    for name in numbers:
        if name not in _DEFAULTS:
            hint = did_you_mean(name, _DEFAULTS) or "."
            raise UnknownArgument(f"unknown SAM number {name!r}{hint} Known: {', '.join(_DEFAULTS)}")
    full = {**_DEFAULTS, **numbers}
    missing = [name for name, value in full.items() if value is None and name not in _OPTIONAL]
    if missing:
        raise UnknownArgument(f"a small SAM also needs {', '.join(missing)}")
    if not isinstance(full["global_blocks"], list | tuple):
        raise UnknownArgument(f"global_blocks {full['global_blocks']!r} must be a list of numbers")
    for name, value in full.items():
        for one in value if name == "global_blocks" else (value,):
            most = _DEEPEST if name.endswith("depth") else _LARGEST
            if one is not None and (type(one) is not int or not 0 <= one <= most):
                raise UnknownArgument(f"{name} {value!r} must be a whole number, at most {most}")
    if min(full[name] for name in ("image_size", "patch_size", "encoder_dim", "heads", "decoder_heads")) < 1:
        raise UnknownArgument("image_size, patch_size, encoder_dim, heads and decoder_heads must be at least 1")
    if full["image_size"] % full["patch_size"]:
        raise UnknownArgument(f"image_size {full['image_size']} must be a multiple of patch_size {full['patch_size']}")
    if full["encoder_dim"] % full["heads"]:
        raise UnknownArgument(f"encoder_dim {full['encoder_dim']} must be a multiple of heads {full['heads']}")
    if full["mask_channels"] < 8 or full["mask_channels"] % 4:
        # The mask prompt is normalised over mask_channels / 4 channels: over a single one nothing of it is left.
        raise UnknownArgument(f"mask_channels {full['mask_channels']} must be a multiple of 4 and at least 8")
    divisor = 2 * full["decoder_heads"]  # SAM's cross attention halves the width
    if full["prompt_dim"] % divisor or full["prompt_dim"] % 8:
        raise UnknownArgument(
            f"prompt_dim {full['prompt_dim']} must be a multiple of 8 and of 2 x decoder_heads {divisor}"
        )
    return full


def _small_sam(numbers: Mapping[str, Any]) -> Sam:
    size, width = int(numbers["image_size"]), int(numbers["prompt_dim"])
    grid = size // int(numbers["patch_size"])
    encoder = ImageEncoderViT(
        img_size=size,
        patch_size=numbers["patch_size"],
        embed_dim=numbers["encoder_dim"],
        depth=numbers["depth"],
        num_heads=numbers["heads"],
        mlp_ratio=numbers["mlp_ratio"],
        out_chans=width,
        qkv_bias=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=numbers["window_size"],
        global_attn_indexes=tuple(numbers["global_blocks"]),
    )
    transformer = TwoWayTransformer(
        depth=numbers["decoder_depth"],
        embedding_dim=width,
        mlp_dim=numbers["decoder_mlp_dim"],
        num_heads=numbers["decoder_heads"],
    )
    prompts = PromptEncoder(
        embed_dim=width,
        image_embedding_size=(grid, grid),
        input_image_size=(size, size),
        mask_in_chans=numbers["mask_channels"],
    )
    decoder = MaskDecoder(
        num_multimask_outputs=3,
        transformer=transformer,
        transformer_dim=width,
        iou_head_depth=3,
        iou_head_hidden_dim=numbers["iou_hidden_dim"] or width,
    )
    return Sam(image_encoder=encoder, prompt_encoder=prompts, mask_decoder=decoder).eval()


def _load_strict(sam: Sam, path: Path, variant: str | Mapping[str, Any]) -> None:
    hint = f"; Meta's file for it is {OFFICIAL_FILES[variant]}" if isinstance(variant, str) else ""
    if not path.is_file():
        raise BadCheckpoint(f"no SAM checkpoint at {path}{hint}")
    try:
        state = read_pth(path, "SAM checkpoint")
    except (BadCheckpoint, pickle.UnpicklingError) as exc:
        raise BadCheckpoint(f"{path} is not a readable SAM checkpoint ({exc}){hint}") from exc
    try:
        sam.load_state_dict(state)
    except (RuntimeError, AttributeError, TypeError) as exc:
        raise HeadsMismatch(f"{path} is not a SAM of variant {variant}: {first_lines(exc, 2)}{hint}") from exc
