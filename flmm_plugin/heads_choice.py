"""What ``heads=`` means for a loaded backbone: a file, those that ship, a training-free method, or none."""

from __future__ import annotations

from os import PathLike

from flmm_plugin.backbones import EMBEDDED
from flmm_plugin.backbones.base import Backbone
from flmm_plugin.errors import HeadsMismatch
from flmm_plugin.heads import GroundingHeads, load_heads, read_manifest
from flmm_plugin.heads.training_free import NAMES, load_training_free, method_of
from flmm_plugin.tiny import heads_path, sam_path


def choose_heads(
    backbone: Backbone,
    heads: str | PathLike[str] | GroundingHeads | None,
    *,
    sam: str | None = None,
    sam_checkpoint: str | PathLike[str] | None = None,
) -> GroundingHeads | None:
    """Heads for a backbone, on its last layer's device.

    Args:
        backbone: Loaded.
        heads: A heads file; ``"auto"`` for those that ship with the embedded model; the name of a training-free method
            (`flmm_plugin.heads.training_free`); heads in memory and None as they are.
        sam: ``none``: without SAM. Any other name must be that of the SAM that the heads were trained with; for a
            training-free method it says the size of ``sam_checkpoint``.
        sam_checkpoint: Meta's SAM file; for a training-free method also a heads file whose SAM to use.

    Raises:
        HeadsMismatch: No heads ship for it, or another SAM is asked for.
        BadCheckpoint: The file is missing or damaged.
    """
    if heads is None or isinstance(heads, GroundingHeads):
        return heads
    checkpoint = None if sam_checkpoint is None else str(sam_checkpoint)
    method = method_of(str(heads))
    if method is not None:
        embedded = backbone.name == EMBEDDED
        return load_training_free(
            method,
            backbone.facts,
            sam=sam,
            sam_checkpoint=checkpoint,
            own_sam=sam_path() if embedded else None,
            like=read_manifest(heads_path()) if embedded else None,
            device=backbone.output_device,
        )
    if heads == "auto":
        if backbone.name != EMBEDDED:
            raise HeadsMismatch(
                f"no heads ship for {backbone.name}; pass heads='file.safetensors' trained for it, heads=None to chat "
                f"only, or a method that needs no training: {', '.join(NAMES)}"
            )
        heads = heads_path()
    return load_heads(
        str(heads),
        expect=backbone.facts,
        sam_checkpoint=checkpoint,
        refiner=_wants_refiner(sam, str(heads)),
        device=backbone.output_device,
    )


def _wants_refiner(sam: str | None, heads: str) -> bool:
    """Whether to load SAM: not for ``none``; another name must be that of the heads' own."""
    if sam is None or sam.lower() == "none":
        return sam is None
    of_heads = read_manifest(heads).sam
    own = of_heads if isinstance(of_heads, str) else "a small one of their own" if of_heads else "none"
    if sam != own:
        raise HeadsMismatch(
            f"sam={sam!r}, but the heads in {heads} were trained with {own}: a refiner fits no other SAM; leave sam "
            "out, or give sam='none' for the mask decoder's masks"
        )
    return True
