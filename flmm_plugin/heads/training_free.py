"""Ground without training: an attention rule, optionally prompting stock SAM.

They answer "do I need trained heads?" behind the same interface: ``heads=attention-argmax``,
``heads=attend-and-segment`` (a point for SAM) or ``heads=localization-heads`` (a box for SAM) wherever a heads file may
stand. They see what trained heads see, one stack of maps per phrase, and have neither text prompts nor a keyword
selector.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from segment_anything.modeling import Sam
from torch import Tensor, nn

from flmm_plugin.errors import BadCheckpoint, UnknownArgument
from flmm_plugin.files import parse_json
from flmm_plugin.heads.attention_rules import AttendAndSegment, AttentionArgmax, LocalizationHeads
from flmm_plugin.heads.checkpoint import load_heads, read_manifest
from flmm_plugin.heads.grounding_heads import GroundingHeads
from flmm_plugin.heads.manifest import BackboneFacts, HeadsManifest
from flmm_plugin.heads.mask_refiner import MaskRefiner
from flmm_plugin.heads.sam import OFFICIAL_FILES, build_sam, sam_of_file
from flmm_plugin.heads.weights import read_metadata, tensors_sha256

#: Name -> what SAM is prompted with; nothing: SAM is not used.
PROMPTS: dict[str, str] = {"attention-argmax": "", "attend-and-segment": "point", "localization-heads": "box"}
NAMES = tuple(PROMPTS)


@dataclass(frozen=True)
class Method:
    """A training-free method as ``heads=`` names it.

    Attributes:
        name: The method's name, one of `NAMES`.
        maps: Of ``localization-heads:17+23+40``, the attention maps chosen beforehand.
    """

    name: str
    maps: tuple[int, ...] = ()

    @property
    def prompt(self) -> str:
        """The prompt that SAM gets: ``point``, ``box`` or nothing."""
        return PROMPTS[self.name]

    def __str__(self) -> str:
        return f"{self.name}:{'+'.join(map(str, self.maps))}" if self.maps else self.name

    def rule(self) -> nn.Module:
        """The attention rule."""
        if self.name == "attention-argmax":
            return AttentionArgmax()
        return AttendAndSegment() if self.name == "attend-and-segment" else LocalizationHeads(self.maps)


def method_of(heads: str) -> Method | None:
    """Read a ``heads=`` value as a method; None if it is no training-free method (then it is a file).

    Raises:
        UnknownArgument: A name that is nearly one, or maps that are no numbers.
    """
    name, colon, rest = heads.partition(":")
    if name not in PROMPTS:
        near = difflib.get_close_matches(name.lower(), NAMES, n=1, cutoff=0.75)
        if near and not Path(heads).exists():
            raise UnknownArgument(f"heads={heads!r} is neither a file nor a method; did you mean {near[0]!r}?")
        return None
    if not colon:
        return Method(name)
    parts = rest.split("+")
    if name != "localization-heads" or not all(part.isdecimal() for part in parts):
        raise UnknownArgument(
            f"heads={heads!r}: only localization-heads takes attention maps, as numbers joined by +, e.g. "
            "localization-heads:17+23+40 (flmm heads localize finds them)"
        )
    return Method(name, tuple(int(part) for part in parts))


class TrainingFreeHeads(GroundingHeads):
    """An attention rule in the place of the mask decoder, and a refiner that gives SAM a point or a box.

    Args:
        method: The rule and its attention maps.
        facts: Numbers of the backbone that it reads.
        sam: An untouched SAM; None: the rule's masks are final.
        manifest: Prompt, separator, template and placement of other heads, to be asked in the same way; None: the
            paper's.
        variant: Name or numbers of ``sam``.
    """

    def __init__(
        self,
        method: Method,
        facts: BackboneFacts,
        sam: Sam | None = None,
        *,
        variant: str | dict[str, object] | None = None,
        manifest: HeadsManifest | None = None,
    ) -> None:
        if sam is not None and not method.prompt:
            raise UnknownArgument(f"{method.name} does not use SAM; leave sam and sam_checkpoint out")
        own = dataclasses.replace(
            manifest or HeadsManifest(**facts.entries),
            **facts.entries,
            merge="mean",
            decoder={},
            sam=variant if sam is not None else None,
            sam_prompts={prompt: prompt == method.prompt for prompt in ("box", "mask", "text", "point")},
            keyword_selector=False,
            data=f"none: {method}, nothing is trained",
            notes={"training_free": str(method)},
            created_by="",
        )
        refiner = None
        if sam is not None:
            # An official SAM was trained to offer three masks for a point, and to say which is best.
            several = method.prompt == "point" and isinstance(variant, str)
            refiner = MaskRefiner(
                sam,
                use_box=method.prompt == "box",
                use_mask=False,
                use_text=False,
                use_point=method.prompt == "point",
                several=several,
            )
        own = dataclasses.replace(own, sha256=_identity(method, sam))
        super().__init__(own, method.rule(), refiner, None, torch.ones(facts.layers), None)
        self.method = method
        self.requires_grad_(False)

    def text_prompts(self, hidden: Sequence[Tensor]) -> list[Tensor]:
        """No text: n empty prompts."""
        width = 1 if self.mask_refiner is None else self.mask_refiner.prompt_dim
        return [self.text_layer_weights.new_zeros((0, width)) for _ in hidden]


def load_training_free(
    method: Method,
    facts: BackboneFacts,
    *,
    sam: str | None = None,
    sam_checkpoint: str | Path | None = None,
    own_sam: str | Path | None = None,
    like: HeadsManifest | None = None,
    device: str | torch.device = "cpu",
) -> TrainingFreeHeads:
    """Make training-free heads with the SAM that there is.

    Args:
        method: The rule and its attention maps.
        facts: Numbers of the backbone that it reads.
        sam: ``vit_b | vit_l | vit_h``: the size of ``sam_checkpoint`` where its name does not say; ``none``: no SAM.
        sam_checkpoint: Meta's file, or a ``.safetensors`` file with a SAM in it: heads, or a small SAM of its own.
        own_sam: What is used without a ``sam_checkpoint``: the SAM that ships with the backbone.
        like: Manifest of heads to be asked in the same way.
        device: Device for all modules, as torch names it.

    Raises:
        BadCheckpoint: A method prompts SAM and there is none.
        UnknownArgument: SAM's size is not known, or the method uses none.
    """
    wants = bool(method.prompt) and (sam is None or sam.lower() != "none")
    if not wants:
        if sam_checkpoint is not None:
            why = "does not use SAM" if not method.prompt else f"was told sam={sam}"
            raise UnknownArgument(f"{method.name} {why}, so sam_checkpoint plays no role; leave it out")
        return TrainingFreeHeads(method, facts, manifest=like).to(device).eval()
    source = own_sam if sam_checkpoint is None else sam_checkpoint
    if source is None:
        raise BadCheckpoint(
            f"{method.name} gives SAM a {method.prompt}, and no SAM ships for {facts.name}: download "
            f"{OFFICIAL_FILES['vit_b']} (or vit_l, vit_h) from segment-anything's model page and pass "
            "sam_checkpoint=..., or pass sam=none for the attention's own masks"
        )
    variant: str | dict[str, object]
    if str(source).endswith(".safetensors"):
        network, variant = _sam_in(Path(source))
    else:
        variant = _variant(sam, source)
        network = build_sam(variant, source)
    if sam is not None and sam != variant:
        raise UnknownArgument(f"sam={sam!r}, but {source} holds {variant!r}; leave sam out")
    return TrainingFreeHeads(method, facts, network, variant=variant, manifest=like).to(device).eval()


def _sam_in(path: Path) -> tuple[Sam, str | dict[str, object]]:
    """Read a SAM that is stored whole: in heads, or alone with its numbers (``python -m tools.tiny sam``)."""
    if not path.is_file():
        raise BadCheckpoint(f"no SAM at {path}; give Meta's own .pth file, or heads that hold a SAM")
    numbers = read_metadata(path).get("sam")
    if numbers:
        variant: dict[str, object] = parse_json(numbers, f"{path}: what it says of its SAM", BadCheckpoint)
        return sam_of_file(variant, path), variant
    manifest = read_manifest(path)
    refiner = load_heads(path).mask_refiner if manifest.stores_image_encoder else None
    if refiner is None or manifest.sam is None:
        raise BadCheckpoint(f"{path} stores no whole SAM ({manifest.sam}); pass Meta's own file as sam_checkpoint")
    return refiner.sam, manifest.sam


def _variant(sam: str | None, path: str | Path) -> str:
    """Return the size of one of Meta's files: as said, or from its name."""
    if sam is not None:
        return sam
    found = [variant for variant in OFFICIAL_FILES if variant in Path(path).name.lower()]
    if len(found) != 1:
        raise UnknownArgument(f"the name of {path} does not say its size; pass sam={' or sam='.join(OFFICIAL_FILES)}")
    return found[0]


def _identity(method: Method, sam: Sam | None) -> str:
    """Names the method and the SAM in records; the image encoder is left out, hashing it would take seconds."""
    decoders = {} if sam is None else {n: t for n, t in sam.state_dict().items() if not n.startswith("image_encoder.")}
    return hashlib.sha256(f"{method}|{tensors_sha256(decoders)}".encode()).hexdigest()
