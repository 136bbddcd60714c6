"""Read heads that the paper's authors released (``.pth``) strictly, and turn them into this package's heads.

A released file is a dictionary of tensors (or one under ``state_dict``) with the trained parts alone::

    mask_head.*                  the mask decoder (53 tensors)
    sam.model.prompt_encoder.*   SAM's prompt encoder and mask decoder, fine-tuned
    sam.model.mask_decoder.*
    text_proj.weight, text_proj.bias, text_layer_weights

The frozen parts are not in it: the LMM, and SAM's image encoder, which is joined from Meta's own file. Files written
without buffers also lack the position code of SAM's prompts, which is in Meta's file too.
"""

from __future__ import annotations

import difflib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from flmm_plugin.errors import BadCheckpoint, HeadsMismatch, UnsafePickle
from flmm_plugin.heads.grounding_heads import GroundingHeads
from flmm_plugin.heads.manifest import BackboneFacts, HeadsManifest
from flmm_plugin.heads.released import DATA, ReleasedLMM, of_shape
from flmm_plugin.heads.sam import OFFICIAL_FILES, build_sam
from flmm_plugin.heads.weights import first_lines, listed, read_pth, tensor_mismatches

# Released name -> name here; one prefix each.
_PREFIXES = {
    "mask_head.": "mask_decoder.",
    "sam.model.": "mask_refiner.sam.",
    "text_proj.": "text_proj.",
    "text_layer_weights": "text_layer_weights",
}
_ENCODER = "sam.model.image_encoder."
# What a file saved with its frozen parts holds besides; those are loaded from their own publishers.
_FROZEN = (_ENCODER, "llava.", "deepseek_vl.", "mgm.", "llm.", "visual_encoder.", "projector.")
_POSITIONS = "sam.model.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
_INPUT = "mask_head.encoder.0.0.convs.0.conv.weight"
_CLASSIFIER = "mask_head.conv_seg.weight"
# Position codes of one SAM differ by rounding to bfloat16 at most (2^-9 of each number); those of two SAMs are
# unrelated random numbers.
_POSITION_TOLERANCE = 2.0**-7


def read_official(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a released file in float32, frozen parts left out. No code of the file is run.

    Raises:
        BadCheckpoint: No such file, unreadable, or no released heads.
        UnsafePickle: It holds more than tensors and plain values.
    """
    path = Path(path)
    if path.is_dir():
        raise BadCheckpoint(f"{path} is a folder (of a sharded training run?); merge it into one .pth file first")
    if not path.is_file():
        raise BadCheckpoint(f"no released heads at {path}; give the .pth file that was downloaded")
    try:
        content = read_pth(path, "PyTorch file")
    except pickle.UnpicklingError as exc:
        raise UnsafePickle(
            f"{path} holds more than tensors, so nothing of it was loaded ({first_lines(exc)}); where it was made, "
            "save its tensors alone: torch.save(checkpoint['state_dict'], 'heads.pth')"
        ) from exc
    state = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(key, str) for key in state):
        raise BadCheckpoint(f"{path} holds a {type(content).__name__}, not tensors by name; it is something else")
    kept = {key: value for key, value in state.items() if not key.startswith(_FROZEN)}
    odd = [key for key, value in kept.items() if not (isinstance(value, Tensor) and value.is_floating_point())]
    if odd:
        raise BadCheckpoint(f"{path}: {listed(odd)} hold no floating point tensor; is it a released heads file?")
    return {key: value.float() for key, value in kept.items()}


def describe(state: Mapping[str, Tensor]) -> tuple[int, int, int]:
    """Return the numbers of attention maps and layers and the hidden size that released heads were trained for.

    Raises:
        BadCheckpoint: The tensors that say so are not there.
    """
    ranks = {_INPUT: 4, "text_layer_weights": 1, "text_proj.weight": 2}
    for key, rank in ranks.items():
        if key not in state:
            near = difflib.get_close_matches(key, state, 1, 0.6)
            hint = f"; it has {near[0]}" if near else ""
            raise BadCheckpoint(
                f"these are no released heads: {key} is missing{hint}. They hold mask_head.*, sam.model.*, text_proj.* "
                "and text_layer_weights"
            )
        if state[key].ndim != rank:
            raise BadCheckpoint(f"{key} has shape {tuple(state[key].shape)}; it must have {rank} dimensions")
    return (
        int(state[_INPUT].shape[1]),
        int(state["text_layer_weights"].shape[0]),
        int(state["text_proj.weight"].shape[1]),
    )


def convert(
    state: Mapping[str, Tensor],
    backbone: ReleasedLMM | BackboneFacts,
    *,
    sam: str | Mapping[str, Any] = "vit_l",
    sam_checkpoint: str | Path | None = None,
    join: bool = True,
    template: str | None = None,
    placement: str | None = None,
    facts: BackboneFacts | None = None,
    notes: Mapping[str, Any] | None = None,
) -> GroundingHeads:
    """Turn released heads into this package's; `save_heads` writes them.

    Args:
        state: Tensors by their released names, from `read_official`.
        backbone: The LMM they were trained on; a `ReleasedLMM` also knows template and placement.
        sam: Name or numbers of the SAM; ``vit_l`` for all released heads.
        sam_checkpoint: Meta's file for it. None: the image encoder is not stored, and is asked for on loading.
        join: Store the image encoder of ``sam_checkpoint`` with the heads, so that one file is all there is.
        template: Text around ``{image}`` and ``{prompt}``; None: of the `ReleasedLMM`, else the model's chat template.
        placement: How logits are laid on the picture; None: of the `ReleasedLMM`, else ``cells``.
        facts: Numbers of the checkpoint that the heads will read; None: those of ``backbone``.
        notes: Where the file is from, for the manifest.

    Returns:
        Heads in evaluation mode. Without ``sam_checkpoint`` their image encoder is random: save and load them.

    Raises:
        HeadsMismatch: They are another backbone's, or the SAM file is another SAM's.
        BadCheckpoint: Missing, unknown or wrong-shaped tensors, each named with what it should have been.
    """
    released = backbone if isinstance(backbone, ReleasedLMM) else None
    if facts is None:
        facts = backbone.facts if isinstance(backbone, ReleasedLMM) else backbone
    _check_backbone(state, facts)
    small = not isinstance(sam, str)
    if small and sam_checkpoint is None:
        raise BadCheckpoint("a SAM given by numbers is stored whole; pass sam_checkpoint=... with its weights")
    if _POSITIONS not in state and sam_checkpoint is None:
        meta = OFFICIAL_FILES.get(str(sam), "the file of that SAM")
        raise BadCheckpoint(f"{_POSITIONS} is not in the released file; it is in SAM's: pass --sam-checkpoint {meta}")
    manifest = HeadsManifest(
        **facts.entries,
        decoder={"base_channels": _base_channels(state), "upsample_to": 64},
        sam=sam if isinstance(sam, str) else dict(sam),
        sam_joined=join and not small and sam_checkpoint is not None,
        template=template if template is not None else released.template if released is not None else "",
        preprocessing="paper" if released is not None else "",
        placement=placement if placement is not None else released.placement if released is not None else "cells",
        data=DATA,
        notes=dict(notes or {}),
    )
    official_sam = build_sam(sam, sam_checkpoint)
    positions = official_sam.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix.clone()
    heads = GroundingHeads.build(manifest, sam=official_sam)
    complete = _with_positions(state, positions, trusted=sam_checkpoint is not None)
    theirs = {own: released for released, own in _PREFIXES.items()}
    expected = {_renamed(name, theirs): tensor for name, tensor in heads.state_dict().items()}
    expected = {name: tensor for name, tensor in expected.items() if not name.startswith(_ENCODER)}
    if found := tensor_mismatches(complete, expected):
        raise BadCheckpoint(f"not the released layout: {found}. Heads of another method, SAM size (--sam) or version?")
    heads.load_state_dict({_renamed(name, _PREFIXES): tensor for name, tensor in complete.items()}, strict=False)
    return heads.eval()


def _check_backbone(state: Mapping[str, Tensor], facts: BackboneFacts) -> None:
    found = describe(state)
    wanted = (facts.attention_maps, facts.layers, facts.hidden_size)
    if found == wanted:
        return
    like = of_shape(*found)
    names = ", ".join(one.name for one in like)
    advice = (
        f"these look like heads of {names}: convert them with --backbone {like[0].name}"
        if like
        else "no LMM of the paper has these numbers: give the model that they were trained on"
    )
    raise HeadsMismatch(
        f"the file has heads for {_numbers(*found)}, but {facts.name} gives {_numbers(*wanted)} "
        f"({facts.layers} layers x {facts.heads} heads x {facts.maps_per_image} maps per image); {advice}"
    )


def _numbers(maps: int, layers: int, hidden: int) -> str:
    return f"{maps} attention maps, {layers} layers, hidden size {hidden}"


def _base_channels(state: Mapping[str, Tensor]) -> int:
    """Return the width of the mask decoder's first stage; 64 in all released heads."""
    weight = state.get(_CLASSIFIER)
    return int(weight.shape[1]) if weight is not None and weight.ndim == 4 else 64


def _with_positions(state: Mapping[str, Tensor], positions: Tensor, trusted: bool) -> dict[str, Tensor]:
    """Return the state with SAM's position code: its own, which must be SAM's if that is ``trusted``, else SAM's."""
    own = state.get(_POSITIONS)
    if trusted and own is not None and own.shape == positions.shape:
        apart = (own - positions).abs()
        if bool((apart > _POSITION_TOLERANCE * positions.abs() + 1e-6).any()):
            raise HeadsMismatch(
                "the SAM checkpoint is not the one that these heads were trained with: its position code differs by up "
                f"to {float(apart.max()):.3g}; released heads need {OFFICIAL_FILES['vit_l']}"
            )
    return dict(state) if own is not None else {**state, _POSITIONS: positions}


def _renamed(name: str, prefixes: Mapping[str, str]) -> str:
    for before, after in prefixes.items():
        if name.startswith(before):
            return after + name[len(before) :]
    return name
