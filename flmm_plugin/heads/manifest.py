"""Describe heads in their file, and check that they fit a backbone."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from flmm_plugin.errors import BadCheckpoint, HeadsMismatch, UnknownArgument
from flmm_plugin.redaction import public
from flmm_plugin.typed_fields import built

#: The user's turn before the phrases, and the sign after each of them, in the paper's training and evaluation.
PROMPT = "Please give me a description of the image."
SEPARATOR = "."

#: Ways to merge the attention rows of a phrase's tokens into one map.
MERGES = ("mean", "max")

#: What a layer's maps are rows of: a softmax over the sequence, one over the picture beside it, or a linear kernel.
#: Any other word in `BackboneFacts.layer_kinds` says why a layer has no maps.
SOFTMAX, CROSS, LINEAR = "softmax", "cross", "linear"

#: What a map holds: attention weights, or these times the norm of each token's value.
ROWS = ("attention", "value")

# Entries that heads of plain models do not have: their files stay readable for older versions.
_NOT_EVERYWHERE = ("layer_kinds", "linear_heads", "rows")

FORMAT_VERSION = 1
_MOST_CELLS = 1024  # of a side of the mask decoder's grid; memory goes with their square
PLACEMENTS = ("exact", "cells", "whole")


@dataclass(frozen=True)
class BackboneFacts:
    """The numbers of a backbone that heads depend on.

    Attributes:
        name: Hub id or folder; used in messages, and its last part is compared with the one the heads were made for.
        layers: Number m of decoder layers.
        heads: Attention heads per layer, c.
        hidden_size: Width d of a hidden state.
        maps_per_image: Attention maps of one head for one picture (2 where a coarse and a fine view are stacked).
        revision: Commit of the weights, if known.
        layer_kinds: Per layer, ``softmax``, ``cross`` or ``linear``, else why it has no maps; empty: all are softmax.
        linear_heads: Attention maps of a linear layer.
    """

    name: str
    layers: int
    heads: int
    hidden_size: int
    maps_per_image: int = 1
    revision: str | None = None
    layer_kinds: tuple[str, ...] = ()
    linear_heads: int = 0

    @property
    def maps_of_layers(self) -> tuple[int, ...]:
        """Maps of each layer for one view; 0 where it has none."""
        return maps_of_layers(self)

    @property
    def attention_maps(self) -> int:
        """Channels of the mask decoder."""
        return sum(self.maps_of_layers) * self.maps_per_image

    @property
    def entries(self) -> dict[str, Any]:
        """The same as entries of a `HeadsManifest`."""
        return {"backbone": self.name, **{name: value for name, value in asdict(self).items() if name != "name"}}


@dataclass(frozen=True)
class HeadsManifest:
    """Everything needed to rebuild heads before their tensors are read; JSON in the metadata of their file.

    Attributes:
        backbone: Hub id or name of the frozen model the heads were trained on.
        layers: Number of the model's decoder layers.
        heads: Number of its attention heads per layer.
        hidden_size: Width of the model's hidden states.
        revision: Commit of the model's weights, if known.
        maps_per_image: Attention maps of one head for one picture.
        merge: How the rows of a phrase's tokens become one map: ``mean`` or ``max``.
        decoder: Arguments of the mask decoder: ``{"base_channels": int, "upsample_to": int}``, after an ablation also
            ``normalise`` and ``maps``.
        sam: ``vit_b | vit_l | vit_h`` (image encoder from Meta's file), the numbers of a small SAM (stored whole), or
            None for heads without a refiner.
        sam_joined: Whether the file also holds the image encoder of an official SAM size.
        sam_prompts: Which prompts the refiner was trained with: ``{"box": bool, "mask": bool, "text": bool}``.
        keyword_selector: Whether the file has one.
        keyword_threshold: Score from which a token is a keyword.
        prompt: The user's turn that precedes the phrases.
        separator: What follows each phrase in the answer turn.
        template: Text around a picture and a prompt, ``{image}`` and ``{prompt}``, that the heads were trained with;
            "": the backbone's own chat template.
        preprocessing: What the backbone's pictures went through in training, as `load_backbone` names it; "": whatever
            the backbone is loaded with.
        layer_kinds: Per layer of the model, ``softmax``, ``cross`` or ``linear``, else why it has no maps; empty: all
            are softmax.
        linear_heads: Attention maps of a linear layer.
        rows: What the maps hold: ``attention`` weights, or each times the norm of the token's ``value``.
        placement: How decoder logits are laid on the picture: ``exact`` (sampled where the processor put each pixel),
            ``cells`` (cut out in decoder cells, then stretched; released heads) or ``whole`` (stretched as they are;
            released heads of LLaVA-Next).
        data: What the heads were trained on.
        notes: Anything else worth knowing: steps, seed, scores.
        created_by: Program and version that wrote the file.
        storage: ``float16`` or ``float32``: how parameters are stored.
        sha256: Of all tensors; set when the file is written.
        format_version: Version of this record's own format.
    """

    backbone: str
    layers: int
    heads: int
    hidden_size: int
    revision: str | None = None
    maps_per_image: int = 1
    merge: str = "mean"
    decoder: dict[str, Any] = field(default_factory=lambda: {"base_channels": 64, "upsample_to": 64})
    sam: str | dict[str, Any] | None = "vit_l"
    sam_joined: bool = False
    sam_prompts: dict[str, bool] = field(default_factory=lambda: {"box": True, "mask": True, "text": True})
    keyword_selector: bool = False
    keyword_threshold: float = 0.3
    prompt: str = PROMPT
    separator: str = SEPARATOR
    template: str = ""
    preprocessing: str = ""
    placement: str = "exact"
    data: str = ""
    notes: dict[str, Any] = field(default_factory=dict)
    created_by: str = ""
    storage: str = "float32"
    sha256: str = ""
    layer_kinds: tuple[str, ...] = ()
    linear_heads: int = 0
    rows: str = "attention"
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        if not all(isinstance(one, bool) for one in self.sam_prompts.values()):
            raise BadCheckpoint(f"manifest: sam_prompts is {self.sam_prompts!r}; each must be true or false")
        if not isinstance(self.decoder.get("normalise", True), bool) or not math.isfinite(self.keyword_threshold):
            raise BadCheckpoint("manifest: decoder.normalise must be true or false, keyword_threshold a number")
        cells = self.decoder.get("upsample_to", 0)
        if type(cells) is not int or not 0 <= cells <= _MOST_CELLS:
            raise BadCheckpoint(f"manifest: decoder.upsample_to is {cells!r}; it must be at most {_MOST_CELLS}")
        if self.merge not in MERGES:
            raise BadCheckpoint(f"manifest: merge is {self.merge!r}; it must be 'mean' or 'max'")

        if self.rows not in ROWS:
            raise BadCheckpoint(f"manifest: rows is {self.rows!r}; it must be 'attention' or 'value'")
        if self.layer_kinds and (len(self.layer_kinds) != self.layers or self.linear_heads < 0):
            raise BadCheckpoint(f"manifest: layer_kinds names {len(self.layer_kinds)} layers of {self.layers}")
        if self.placement not in PLACEMENTS:
            raise BadCheckpoint(f"manifest: placement is {self.placement!r}; it must be one of {', '.join(PLACEMENTS)}")

    @property
    def attention_maps(self) -> int:
        """Channels of the mask decoder."""
        return sum(maps_of_layers(self)) * self.maps_per_image

    @property
    def stores_image_encoder(self) -> bool:
        """SAM's image encoder is in the file; that of an official size is only where it was joined."""
        return isinstance(self.sam, Mapping) or self.sam_joined

    def without_places(self) -> HeadsManifest:
        """Return a copy without absolute paths: heads files are for sharing."""
        said = {name: public(getattr(self, name)) for name in ("backbone", "data", "notes", "created_by")}
        return replace(self, **said)

    def to_json(self) -> str:
        """One line of JSON with sorted keys."""
        content = {name: value for name, value in asdict(self).items() if name not in _NOT_EVERYWHERE}
        added = {name: getattr(self, name) for name in _NOT_EVERYWHERE}
        usual = {one.name: one.default for one in fields(self)}
        content |= {name: value for name, value in added.items() if value != usual[name]}
        return json.dumps(content, sort_keys=True)

    @classmethod
    def from_json(cls, text: str, source: str = "heads") -> HeadsManifest:
        """Parse and check; ``source`` names the file in messages.

        Raises:
            BadCheckpoint: Not JSON, of a newer format, or with missing, unknown or mistyped entries.
        """
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as exc:
            raise BadCheckpoint(f"{source}: the manifest is not JSON ({exc}); fetch the file again") from exc
        if not isinstance(content, dict):
            raise BadCheckpoint(f"{source}: the manifest is not a JSON object; fetch the file again")
        version = content.get("format_version")
        if not isinstance(version, int):
            raise BadCheckpoint(f"{source}: the manifest has no format_version; fetch the file again")
        if version > FORMAT_VERSION:
            raise BadCheckpoint(
                f"{source}: heads format {version} is newer than format {FORMAT_VERSION} of this package; "
                "upgrade it: pip install -U flmm-plugin"
            )
        unknown = sorted(content.keys() - {f.name for f in fields(cls)})
        if unknown:
            raise BadCheckpoint(f"{source}: unknown manifest entries {', '.join(unknown)}; was it edited by hand?")
        missing = [name for name in ("backbone", "layers", "heads", "hidden_size") if name not in content]
        if missing:
            raise BadCheckpoint(f"{source}: the manifest lacks {', '.join(missing)}; was it edited by hand?")
        for name in ("layers", "heads", "hidden_size", "maps_per_image"):
            if name in content and (type(content[name]) is not int or content[name] < 1):
                raise BadCheckpoint(f"{source}: manifest entry {name} is {content[name]!r}, it must be a number >= 1")
        try:
            return built(cls, content, source, "")
        except UnknownArgument as exc:
            raise BadCheckpoint(f"the manifest of {exc}; was it edited by hand?") from exc

    def check_fits(self, backbone: BackboneFacts) -> None:
        """Refuse a backbone of another shape; warn about one of the same shape and another name.

        Raises:
            HeadsMismatch: Says both sides' numbers.
        """
        ours = (self.layers, self.heads, self.maps_per_image, maps_of_layers(self))
        theirs = (backbone.layers, backbone.heads, backbone.maps_per_image, backbone.maps_of_layers)
        fix = f"pass heads trained for it (these were trained on {self.backbone}), or heads=None to chat only"
        if ours != theirs:
            raise HeadsMismatch(f"heads expect {_maps(self)} but {backbone.name} gives {_maps(backbone)}; {fix}")
        if self.hidden_size != backbone.hidden_size:
            raise HeadsMismatch(
                f"heads expect hidden states of size {self.hidden_size} but {backbone.name} gives "
                f"{backbone.hidden_size}; {fix}"
            )
        if last_part(self.backbone) != last_part(backbone.name):
            warnings.warn(
                f"heads were trained on {self.backbone}, not on {backbone.name}: the shapes fit, the masks may not",
                stacklevel=3,
            )
        elif self.revision and backbone.revision and self.revision != backbone.revision:
            warnings.warn(
                f"heads were trained on revision {self.revision} of {self.backbone}, this is {backbone.revision}",
                stacklevel=3,
            )


def _maps(facts: HeadsManifest | BackboneFacts) -> str:
    per_image = f" x {facts.maps_per_image} maps per image" if facts.maps_per_image > 1 else ""
    others = [number for number in maps_of_layers(facts) if number != facts.heads]
    told = f", {len(others)} of the layers with {', '.join(map(str, sorted(set(others))))} maps" if others else ""
    return f"{facts.attention_maps} attention maps ({facts.layers} layers x {facts.heads} heads{per_image}{told})"


def maps_of_layers(facts: HeadsManifest | BackboneFacts) -> tuple[int, ...]:
    """Return the maps of each layer for one view; 0 where it has none."""
    kinds = facts.layer_kinds or (SOFTMAX,) * facts.layers
    heads = {SOFTMAX: facts.heads, CROSS: facts.heads, LINEAR: facts.linear_heads}
    return tuple(heads.get(kind, 0) for kind in kinds)


def place_of_map(facts: HeadsManifest | BackboneFacts, index: int) -> tuple[int, int]:
    """Return layer and head, from 0, of a map of a backbone with one view."""
    layers = [layer for layer, maps in enumerate(maps_of_layers(facts)) for _ in range(maps)]
    return layers[index], index - layers.index(layers[index])


def last_part(name: str) -> str:
    """Return the last part of a hub id or folder in lower case, by which models are compared.

    >>> last_part("YanweiLi/MGM-2B"), last_part("models/MGM-2B/")
    ('mgm-2b', 'mgm-2b')
    """
    return name.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1].lower()
