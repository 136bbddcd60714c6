"""Resolve ``heads=`` for a backbone: a file, those that ship, a training-free method, or none."""

from __future__ import annotations

from os import PathLike
from os.path import isfile  # a name that no system can have: False, where Path raises

from flmm_plugin import bundled
from flmm_plugin.backbones.base import Backbone
from flmm_plugin.errors import BadCheckpoint, HeadsMismatch, UnknownArgument
from flmm_plugin.heads import GroundingHeads, load_heads, read_manifest
from flmm_plugin.heads.training_free import NAMES, load_training_free, method_of

Heads = str | PathLike[str] | GroundingHeads | None


def check_heads(
    name: str, heads: Heads, *, sam: str | None = None, sam_checkpoint: str | PathLike[str] | None = None
) -> None:
    """Check that there are such heads, before the model is loaded that they are for.

    Args:
        name: Name or folder of the backbone.
        heads: File, method, heads in memory or None, as for `choose_heads`.
        sam: Name of the SAM to use, as for `choose_heads`.
        sam_checkpoint: File of its weights, as for `choose_heads`.

    Raises:
        HeadsMismatch: No heads ship for it, or another SAM is asked for.
        BadCheckpoint: A file is missing, or no heads file.
        UnknownArgument: A misspelt method, or a SAM that would play no role.
    """
    checkpoint = None if sam_checkpoint is None else str(sam_checkpoint)
    if heads is None or heads == "none" or isinstance(heads, GroundingHeads):
        idle = {"sam_checkpoint": checkpoint, "sam": sam if sam is not None and sam.lower() != "none" else None}
        for argument, value in idle.items():
            if value is not None:
                raise UnknownArgument(f"{argument}={value!r} plays no role without a heads file; leave it out")
        return
    if checkpoint is not None and not isfile(checkpoint):
        raise BadCheckpoint(f"there is no SAM file {checkpoint}; give Meta's own, from segment-anything's model page")
    if method_of(str(heads)) is not None:
        return
    if heads == "auto":
        if not bundled.is_model(name):
            raise HeadsMismatch(
                f"no heads ship for {name}; pass heads='file.safetensors' trained for it, heads=None to chat only, or "
                f"a method that needs no training: {', '.join(NAMES)}"
            )
        heads = bundled.model(name).heads()
    refiner, manifest = _wants_refiner(sam, str(heads)), read_manifest(str(heads))
    if checkpoint is not None and not (refiner and manifest.sam is not None and not manifest.stores_image_encoder):
        why = f"were told sam={sam}" if not refiner else "have their SAM in the file" if manifest.sam else "use no SAM"
        raise UnknownArgument(f"the heads in {heads} {why}: sam_checkpoint={checkpoint!r} plays no role; leave it out")


def choose_heads(
    backbone: Backbone,
    heads: Heads,
    *,
    sam: str | None = None,
    sam_checkpoint: str | PathLike[str] | None = None,
) -> GroundingHeads | None:
    """Load heads for a backbone, on its last layer's device.

    Args:
        backbone: The model that the heads will read.
        heads: A heads file; ``"auto"`` for those that ship with the embedded model; the name of a training-free method
            (`flmm_plugin.heads.training_free`); heads in memory as they are; None or ``"none"`` for none.
        sam: ``none``: without SAM. Any other name must be that of the SAM that the heads were trained with; for a
            training-free method it says the size of ``sam_checkpoint``.
        sam_checkpoint: Meta's SAM file; for a training-free method also a heads file whose SAM to use.

    Raises:
        HeadsMismatch: No heads ship for it, or another SAM is asked for.
        BadCheckpoint: A file is missing or damaged.
        UnknownArgument: A misspelt method, or a SAM that would play no role.
    """
    check_heads(backbone.name, heads, sam=sam, sam_checkpoint=sam_checkpoint)
    if heads is None or heads == "none" or isinstance(heads, GroundingHeads):
        return heads if isinstance(heads, GroundingHeads) else None
    checkpoint = None if sam_checkpoint is None else str(sam_checkpoint)
    method = method_of(str(heads))
    if method is not None:
        own = bundled.model(backbone.name) if bundled.is_model(backbone.name) else None
        return load_training_free(
            method,
            backbone.facts,
            sam=sam,
            sam_checkpoint=checkpoint,
            own_sam=None if own is None else own.sam(),
            like=None if own is None else read_manifest(own.heads()),
            device=backbone.output_device,
        )
    file = str(bundled.model(backbone.name).heads() if heads == "auto" else heads)
    return load_heads(
        file,
        expect=backbone.facts,
        sam_checkpoint=checkpoint,
        refiner=_wants_refiner(sam, file),
        device=backbone.output_device,
    )


def _wants_refiner(sam: str | None, heads: str) -> bool:
    """Tell whether to load SAM: not for ``none``; another name must be that of the heads' own."""
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
