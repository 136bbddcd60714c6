"""Resolve ``heads=`` and ``sam=`` for a backbone: what they name, what must be fetched for it, and the loaded heads.

``auto`` is, in this order: heads that ship with the model; heads in the store for it; those that the paper's authors
released for it, fetched once. Where there are none, the model chats, and `no_heads_text` says what can be done.
"""

from __future__ import annotations

from os import PathLike
from os.path import exists, isfile  # a name that no system can have: False, where Path raises
from pathlib import Path

from flmm_plugin import bundled
from flmm_plugin.backbones.base import Backbone
from flmm_plugin.backbones.registry import FAMILIES, facts_of, family_of
from flmm_plugin.errors import BadCheckpoint, FlmmError, HeadsMismatch, UnknownArgument
from flmm_plugin.heads import BackboneFacts, GroundingHeads, load_heads, read_manifest
from flmm_plugin.heads.checkpoint import heads_file
from flmm_plugin.heads.hub import shared_heads
from flmm_plugin.heads.released import find_released
from flmm_plugin.heads.sam_files import sam_file, sam_need
from flmm_plugin.heads.store import find_heads, get_heads, is_repository, needs_of_heads
from flmm_plugin.heads.training_free import NAMES, load_training_free, method_of
from flmm_plugin.hub_files import commit_of, hub_answers, is_hub_id
from flmm_plugin.needs import Need, provide

Heads = str | PathLike[str] | GroundingHeads | None

#: Size of the SAM that a method without training prompts, where none is named; the paper's.
_SAM_OF_METHODS = "vit_l"


def needs_for(
    name: str,
    heads: Heads,
    *,
    sam: str | None = None,
    sam_checkpoint: str | PathLike[str] | None = None,
    revision: str | None = None,
    required: bool = True,
) -> list[Need]:
    """Say what grounding needs beside the model: heads and SAM, whether they are here or not.

    Args:
        name: Name or folder of the backbone.
        heads: Value of ``heads=``: ``auto``, a file, a name, a method, heads in memory, None; see `choose_heads`.
        sam: Size of the SAM, ``none`` for the mask decoder's masks alone; see `choose_heads`.
        sam_checkpoint: SAM file or size; None: Meta's own of the size that is needed.
        revision: Branch, tag or commit of the backbone on the hub.
        required: Whether the work can do nothing where ``auto`` finds no heads; that is then one need more.

    Raises:
        UnknownArgument: A misspelt method, or a SAM that would play no role.
        HeadsMismatch: Another SAM is asked for than that of the heads, or ``auto`` could mean several heads.
    """
    checkpoint = None if sam_checkpoint is None else str(sam_checkpoint)
    if heads is None or heads == "none" or isinstance(heads, GroundingHeads):
        return []
    if method_of(str(heads)) is not None:
        return _sam_needs(_sam_of_method(name, str(heads), sam, checkpoint))
    if heads != "auto" and not heads_file(str(heads)).is_file() and _is_named(str(heads)):
        return needs_of_heads(str(heads), facts=lambda: own_facts(name, revision))
    file = _auto(name, revision) if heads == "auto" else heads_file(str(heads))
    if file is None:
        released = find_released(name)
        if released is not None:
            return needs_of_heads(released.hub, facts=lambda: own_facts(name, revision))
        first, *rest = no_heads_text(name, revision).splitlines()
        return [Need("heads", first, here=False, command="\n    ".join(rest).strip())] if required else []
    try:
        sam = _sam_of_file(file, sam, checkpoint)
    except BadCheckpoint as exc:
        return [Need("heads", " ".join(str(exc).split()), here=False), *_sam_needs(checkpoint)]
    return [Need("heads", str(file), here=True), *_sam_needs(sam)]


def check_heads(
    name: str,
    heads: Heads,
    *,
    sam: str | None = None,
    sam_checkpoint: str | PathLike[str] | None = None,
    revision: str | None = None,
    fetch: bool = True,
) -> str | GroundingHeads | None:
    """Check that there are such heads, and fetch what is missing, before the model is loaded that they are for.

    Args:
        name: Name or folder of the backbone.
        heads: Value of ``heads=``: ``auto``, a file, a name, a method, heads in memory, None; see `choose_heads`.
        sam: Size of the SAM, ``none`` for the mask decoder's masks alone; see `choose_heads`.
        sam_checkpoint: SAM file or size; None: Meta's own of the size that is needed.
        revision: Branch, tag or commit of the backbone on the hub.
        fetch: Whether anything may be fetched.

    Returns:
        File or method that ``heads`` names, heads in memory as they are, None where there are none.

    Raises:
        HeadsMismatch: Another SAM is asked for, or ``auto`` could mean several heads.
        BadCheckpoint: A file is missing, or no heads file.
        UnknownArgument: A misspelt name, or a SAM that would play no role.
        NotReady: Something is not here, and nothing may be fetched.
    """
    if heads is None or heads == "none" or isinstance(heads, GroundingHeads):
        idle = {"sam_checkpoint": sam_checkpoint, "sam": sam if sam is not None and sam.lower() != "none" else None}
        for argument, value in idle.items():
            if value is not None:
                raise UnknownArgument(f"{argument}={str(value)!r} plays no role without heads; leave it out")
        return heads if isinstance(heads, GroundingHeads) else None
    if sam_checkpoint is not None and _is_path(str(sam_checkpoint)) and not exists(sam_checkpoint):
        raise BadCheckpoint(f"there is no SAM file {sam_checkpoint}; give vit_b, vit_l or vit_h to fetch Meta's own")
    method = method_of(str(heads))
    if method is None and heads != "auto" and not _is_named(str(heads)):
        read_manifest(str(heads))
    needs = needs_for(name, heads, sam=sam, sam_checkpoint=sam_checkpoint, revision=revision, required=False)
    provide(needs, fetch=fetch)
    if method is not None:
        return str(heads)
    file = _auto(name, revision) if heads == "auto" else get_heads(str(heads), fetch=False)
    return None if file is None else str(file)


def choose_heads(
    backbone: Backbone,
    heads: Heads,
    *,
    sam: str | None = None,
    sam_checkpoint: str | PathLike[str] | None = None,
    revision: str | None = None,
    fetch: bool = True,
) -> GroundingHeads | None:
    """Load heads for a backbone, on its last layer's device.

    Args:
        backbone: The model that the heads will read.
        heads: ``"auto"``; a heads file or the folder of a training run; an LMM of the paper, for its released heads; a
            hub repository ``owner/name[@revision]``; a training-free method (`flmm_plugin.heads.training_free`); heads
            in memory as they are; None or ``"none"`` for none.
        sam: ``none``: without SAM. Any other name must be that of the SAM that the heads were trained with; a
            training-free method prompts the SAM that it names.
        sam_checkpoint: A SAM file, or what `flmm_plugin.heads.sam_files.sam_file` takes; None: Meta's own of the size
            that is needed. For a training-free method also a heads file whose SAM to use.
        revision: Version of the model that ``auto`` must find heads for; None: any.
        fetch: Whether anything may be fetched.

    Returns:
        The heads; None for none, and where ``auto`` finds none.

    Raises:
        HeadsMismatch, BadCheckpoint, UnknownArgument, NotReady: As `check_heads`, and for damaged files.
    """
    chosen = check_heads(backbone.name, heads, sam=sam, sam_checkpoint=sam_checkpoint, revision=revision, fetch=fetch)
    if chosen is None or isinstance(chosen, GroundingHeads):
        return chosen
    checkpoint = None if sam_checkpoint is None else str(sam_checkpoint)
    method = method_of(chosen)
    if method is not None:
        own = bundled.model(backbone.name) if bundled.is_model(backbone.name) else None
        return load_training_free(
            method,
            backbone.facts,
            sam=sam,
            sam_checkpoint=_loadable(_sam_of_method(backbone.name, chosen, sam, checkpoint)),
            own_sam=None if own is None else own.sam(),
            like=None if own is None else read_manifest(own.heads()),
            device=backbone.output_device,
        )
    return load_heads(
        chosen,
        expect=backbone.facts,
        sam_checkpoint=_loadable(_sam_of_file(Path(chosen), sam, checkpoint)),
        refiner=_wants_refiner(sam, Path(chosen)),
        device=backbone.output_device,
    )


def no_heads_text(name: str, revision: str | None = None) -> str:
    """Say in a few lines what can be done for a model without heads; hub repositories are named, not vouched for."""
    model = next((one.model for one in FAMILIES if one.pretrained == name), None)
    recipe = model or f"{_model_name(name, revision)} backbone.pretrained={name}"
    lines = [
        f"no heads are here for {name}, and none were released; it can chat, but masks are read by heads:",
        f"without training: heads={NAMES[0]} (or {', '.join(NAMES[1:])})",
        f"trained: flmm train {recipe}, then heads=<the run's folder>; what it costs: flmm plan {recipe}",
    ]
    shared = shared_heads(name) if is_hub_id(name) and hub_answers() else []
    if shared:
        lines.append(f"on the hub, made by others: heads={' or heads='.join(shared)}")
    return "\n  ".join(lines)


def _model_name(name: str, revision: str | None) -> str:
    """Return the recipe of a model's family; that of any model where there is none."""
    try:
        family = family_of(name, revision=revision)
    except (FlmmError, OSError):
        family = ""
    return next((one.model for one in FAMILIES if family in one.classes), "flmm_auto")


def _auto(name: str, revision: str | None) -> Path | None:
    """Return the heads that ``auto`` means and that are on this machine."""
    return bundled.model(name).heads() if bundled.is_model(name) else find_heads(name, commit_of(name, revision))


def _is_named(heads: str) -> bool:
    """Tell whether a value names heads that could be fetched, and no file that is here."""
    return not heads_file(heads).is_file() and (find_released(heads) is not None or is_repository(heads))


def own_facts(name: str, revision: str | None) -> BackboneFacts | None:
    """Return the numbers in a checkpoint's own configuration, None where it cannot be read."""
    try:
        return facts_of(name, revision=revision)
    except (FlmmError, OSError):
        return None


def _is_path(sam: str) -> bool:
    return sam.startswith((".", "/", "~")) or Path(sam).suffix in (".pth", ".pt", ".safetensors", ".bin")


def _sam_needs(sam: str | None) -> list[Need]:
    if sam is None:
        return []
    if exists(sam) or not _is_path(sam):
        return [Need("sam", sam, here=True) if isfile(sam) else sam_need(sam)]
    return [Need("sam", f"{sam}: there is no such file", here=False, command="give vit_b, vit_l or vit_h: Meta's own")]


def _loadable(sam: str | None) -> Path | None:
    """Return the file of a SAM that is on this machine."""
    if sam is None:
        return None
    return Path(sam) if isfile(sam) else sam_file(sam, fetch=False)


def _sam_of_method(name: str, heads: str, sam: str | None, checkpoint: str | None) -> str | None:
    """Return the SAM that a training-free method prompts: a file, or a name of `sam_file`; None: none, or its own."""
    method = method_of(heads)
    idle = method is None or not method.prompt or (sam or "").lower() == "none" or bundled.is_model(name)
    return checkpoint if checkpoint is not None or idle else sam or _SAM_OF_METHODS


def _sam_of_file(file: Path, sam: str | None, checkpoint: str | None) -> str | None:
    """Return the SAM that heads are joined with on loading: a file, or a name of `sam_file`; None: none, or its own."""
    refiner, manifest = _wants_refiner(sam, file), read_manifest(file)
    if refiner and manifest.sam is not None and not manifest.stores_image_encoder:
        return checkpoint or str(manifest.sam)
    if checkpoint is not None:
        why = f"were told sam={sam}" if not refiner else "have their SAM in the file" if manifest.sam else "use no SAM"
        raise UnknownArgument(f"the heads in {file} {why}: sam_checkpoint={checkpoint!r} plays no role; leave it out")
    return None


def _wants_refiner(sam: str | None, file: Path) -> bool:
    """Tell whether to load SAM: not for ``none``; another name must be that of the heads' own."""
    if sam is None or sam.lower() == "none":
        return sam is None
    of_heads = read_manifest(file).sam
    own = of_heads if isinstance(of_heads, str) else "a small one of their own" if of_heads else "none"
    if sam != own:
        raise HeadsMismatch(
            f"sam={sam!r}, but the heads in {file} were trained with {own}: a refiner fits no other SAM; leave sam "
            "out, or give sam='none' for the mask decoder's masks"
        )
    return True
