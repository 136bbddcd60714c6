"""Check the attention of this installation: a triple of versions, and a few numbers of a fixed input.

What heads read are softmax rows that transformers, torch and an attention kernel compute; another version of any of
them may compute others. So a *triple* (transformers, torch, kernel) counts as verified once the conformance tests
passed with it, and, where a model's weights are at hand, three checks run on a fixed picture and text:

- chat: logits are bit-identical with and without capture;
- rows: captured rows are those of the eager kernel's own attention;
- fingerprint: a few numbers of the captured attention are those that were recorded for these weights.

Shapes: t answer tokens, m layers, c heads per layer, h x w grid.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from flmm_plugin import bundled, files
from flmm_plugin.attention import AttentionCapture, attention_name
from flmm_plugin.backbones.base import Backbone, EncodedChat
from flmm_plugin.backbones.inputs import one_turn
from flmm_plugin.capture import capture_passages
from flmm_plugin.errors import BadCheckpoint, CaptureError, DataNotFound, OutputFailed
from flmm_plugin.heads.manifest import PROMPT, SOFTMAX
from flmm_plugin.passages import Passage

RECORDS = Path(__file__).with_name("verified.json")

ANSWER = "the red circle"

# Largest difference of a captured row from the eager one, by precision: float32 rounds at 1e-7, and the hidden states
# upstream of the rows differ between kernels.
ROW_TOLERANCE = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}
# Largest relative difference of a fingerprint's number from the recorded one.
NUMBER_TOLERANCE = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 5e-2}
# Whole attention matrices of the eager kernel are only asked for up to this size.
_EAGER_BYTES = 4 << 30
_PIECE = 1 << 20


@dataclass(frozen=True)
class Triple:
    """Versions and kernel that decide how attention is computed."""

    transformers: str
    torch: str
    kernel: str

    def __str__(self) -> str:
        return f"transformers {self.transformers}, torch {self.torch}, {self.kernel}"


@dataclass(frozen=True)
class Verified:
    """The conformance tests of a family that passed with a triple."""

    family: str
    triple: Triple
    passed: int


@dataclass(frozen=True)
class AttentionFingerprint:
    """A few numbers of the attention of a fixed input.

    Attributes:
        backbone: Name of the model, as it was loaded.
        weights: The weights, as `weights_id` names them.
        triple: Versions and kernel that computed the numbers.
        dtype: Precision of the weights, as torch names it.
        device: Kind of device, ``cpu`` or ``cuda``.
        tokens: Answer tokens that were read.
        rows_from_eager: Largest difference of a captured row from the eager kernel's; -1: not compared.
        numbers: Per layer ``[mass, head, y, x]``: attention that the picture gets (mean over tokens and heads); the
            same with heads weighted by their number, so that exchanged heads show; where on the grid it lies on
            average, in 0..1.
    """

    backbone: str
    weights: str
    triple: Triple
    dtype: str
    device: str
    tokens: int
    rows_from_eager: float
    numbers: dict[str, list[float]]

    @property
    def conditions(self) -> tuple[Triple, str, str]:
        """All that may change the numbers of the same weights."""
        return self.triple, self.dtype, self.device

    def differs_from(self, recorded: AttentionFingerprint) -> str:
        """Name the number that differs most from a recorded one, and both values; "" if all agree."""
        if self.numbers.keys() != recorded.numbers.keys() or self.tokens != recorded.tokens:
            return "other layers or tokens were read"
        limit = max(NUMBER_TOLERANCE[one] for one in (self.dtype, recorded.dtype))
        worst, where = 0.0, ""
        for layer, values in self.numbers.items():
            for name, here, there in zip(("mass", "head", "y", "x"), values, recorded.numbers[layer], strict=True):
                apart = abs(here - there) / max(abs(there), 1e-6)
                apart = math.inf if math.isnan(apart) else apart
                if apart > max(worst, limit):
                    worst, where = apart, f"{name} of {layer} is {here:.6g}, recorded {there:.6g}"
        return where


@dataclass(frozen=True)
class Records:
    """The content of ``verified.json``."""

    triples: tuple[Verified, ...] = ()
    fingerprints: tuple[AttentionFingerprint, ...] = field(default=())

    def of_family(self, family: str) -> tuple[Verified, ...]:
        """Return the triples that a family was verified with; of variants (``llava_next_vicuna``), those of all."""
        exact = tuple(one for one in self.triples if one.family == family)
        if exact:
            return exact
        some = [one for one in self.triples if one.family.startswith(f"{family}_")]
        variants = {one.family for one in some}
        passed: dict[Triple, list[Verified]] = {}
        for one in some:
            passed.setdefault(one.triple, []).append(one)
        return tuple(
            Verified(family, triple, sum(one.passed for one in ones))
            for triple, ones in passed.items()
            if {one.family for one in ones} == variants
        )

    def of_weights(self, weights: str) -> tuple[AttentionFingerprint, ...]:
        """Fingerprints of these very weights."""
        return tuple(one for one in self.fingerprints if one.weights == weights)

    def with_triples(self, family: str, found: Iterable[Verified]) -> Records:
        """Return a copy with what is known of a family and the triples of ``found`` replaced."""
        new = tuple(found)
        again = {one.triple for one in new}
        kept = tuple(one for one in self.triples if not (one.family == family and one.triple in again))
        return Records(tuple(sorted((*kept, *new), key=lambda one: (one.family, str(one.triple)))), self.fingerprints)

    def with_fingerprint(self, new: AttentionFingerprint) -> Records:
        """Return a copy with a new one, in place of its predecessor and of the same name's other weights."""
        kept = tuple(
            one
            for one in self.fingerprints
            if one.backbone != new.backbone or (one.weights == new.weights and one.conditions != new.conditions)
        )
        return Records(self.triples, (*kept, new))


def read_records(path: Path = RECORDS) -> Records:
    """Read the table that this package carries.

    Raises:
        BadCheckpoint: It is damaged.
    """
    if not path.is_file():
        return Records()
    try:
        content = files.read_json(path, BadCheckpoint)
        triples = tuple(Verified(**{**one, "triple": Triple(**one["triple"])}) for one in content["triples"])
        prints = tuple(
            AttentionFingerprint(**{**one, "triple": Triple(**one["triple"])}) for one in content["fingerprints"]
        )
    except (ValueError, KeyError, TypeError) as exc:
        raise BadCheckpoint(f"{path} is damaged ({type(exc).__name__}: {exc}); reinstall the package") from exc
    return Records(triples, prints)


def write_records(records: Records, path: Path = RECORDS) -> None:
    """Write the table; complete or not at all.

    Raises:
        DataNotFound: The folder cannot be written.
    """
    content = {
        "triples": [asdict(one) for one in records.triples],
        "fingerprints": [asdict(one) for one in records.fingerprints],
    }
    try:
        with files.naming(path):
            path.parent.stat()  # it is the package's own: where it is not there, nothing is to be made
        files.write(path, json.dumps(content, indent=1, sort_keys=True) + "\n")
    except OutputFailed as exc:
        raise DataNotFound(f"{exc}; record from a checkout that you may write to") from exc


def installed_triple(kernel: str) -> Triple:
    """Return the triple of this installation, build tags (``+cu130``) left out."""
    transformers, torch_ = (metadata.version(name).partition("+")[0] for name in ("transformers", "torch"))
    return Triple(transformers, torch_, kernel)


def weights_id(folder: Path) -> str:
    """Return a cheap name for the weights in a folder: SHA-256 over sizes, first and last MiB of their files.

    Raises:
        DataNotFound: There are no weights.
    """
    files = sorted(one for one in folder.rglob("*.safetensors") if one.is_file())
    if not files:
        raise DataNotFound(f"there are no .safetensors under {folder}; give the folder of the model's weights")
    whole = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        whole.update(f"{path.relative_to(folder).as_posix()}|{size}|".encode())
        with path.open("rb") as file:
            whole.update(file.read(_PIECE))
            file.seek(max(0, size - _PIECE))
            whole.update(file.read(_PIECE))
    return whole.hexdigest()


def fixed_picture() -> Image.Image:
    """Draw rings and ramps, 128 x 96: nothing is the same upside down, mirrored or with colours exchanged."""
    y, x = np.mgrid[0:96, 0:128].astype(np.float64)
    rings = 127.5 + 127.5 * np.cos(((x - 40) ** 2 + (y - 30) ** 2) / 300)
    pixels = np.stack([rings, x * 255 / 127, y * 255 / 95], axis=-1)
    return Image.fromarray(np.rint(pixels).astype(np.uint8))


class FixedInput:
    """The fixed picture, question and answer as a backbone's inputs.

    Args:
        backbone: Any model of this package.
    """

    def __init__(self, backbone: Backbone) -> None:
        chat = backbone.encode([one_turn(PROMPT)], [[fixed_picture()]])
        self.passage = Passage.of_phrases(backbone.tokenizer, [ANSWER], separator="")
        self.backbone = backbone
        self.encoded: EncodedChat = chat.extended([self.passage.ids], backbone.pad_id)
        self.tokens = self.encoded.image_tokens[0][0]
        self.slots = torch.arange(self.encoded.length - len(self.passage.ids), self.encoded.length)

    def rows(self) -> Tensor:
        """Capture the attention of the answer, ``[t, m, c, k]``."""
        every = replace(self.passage, groups=[[token] for token in self.passage.tokens])
        return capture_passages(self.backbone, self.encoded, [every], "mean")[0].rows

    @torch.no_grad()
    def chat_is_untouched(self) -> bool:
        """Tell whether the model's logits are the same bits with capture on."""
        model, inputs = self.backbone.model, self.encoded.inputs
        plain = model(**inputs).logits
        with AttentionCapture(self.backbone.decoder, [self.slots], [self.tokens.slots]).active():
            captured = model(**inputs).logits
        return torch.equal(plain, captured)

    @property
    def eager_bytes(self) -> int:
        """Memory that the eager kernel's whole attention takes."""
        facts = self.backbone.facts
        return facts.layers * facts.heads * self.encoded.length**2 * self.backbone.dtype.itemsize

    @torch.no_grad()
    def rows_from_eager(self, rows: Tensor) -> float:
        """Return the largest difference of captured rows ``[t, m, c, k]`` from the eager kernel's attention.

        Raises:
            CaptureError: The eager kernel gives no attention, or it would not fit into memory.
        """
        if self.eager_bytes > _EAGER_BYTES:
            raise CaptureError(
                f"the eager kernel's attention would take {self.eager_bytes / 2**30:.1f} GiB; not compared"
            )
        model, stock = self.backbone.model, attention_name(self.backbone.decoder)
        model.set_attn_implementation("eager")
        try:
            inputs = self.encoded.grounding_inputs
            layers = model(**inputs, output_attentions=True, use_cache=False).attentions
        finally:
            model.set_attn_implementation(stock)
        facts = self.backbone.facts
        kinds = facts.layer_kinds or (SOFTMAX,) * facts.layers
        given = [layer for layer in layers or () if layer is not None]
        if not given or len(given) != kinds.count(SOFTMAX):
            raise CaptureError("the eager kernel gave no attention of every layer; nothing to compare with")
        worst = 0.0
        maps = {index: number for index, number in enumerate(facts.maps_of_layers) if number}
        ours = dict(zip(maps, rows.flatten(1, 2).split(list(maps.values()), dim=1), strict=True))
        softmax = [index for index, kind in enumerate(kinds) if kind == SOFTMAX]
        for index, layer in zip(softmax, given, strict=True):
            theirs = layer[0][:, self.slots][..., self.tokens.slots].transpose(0, 1)
            worst = max(worst, float((theirs.float().cpu() - ours[index].float().cpu()).abs().max()))
        return worst

    def fingerprint(self, weights: str, rows: Tensor, rows_from_eager: float) -> AttentionFingerprint:
        """Return the fingerprint of captured rows."""
        backbone = self.backbone
        return AttentionFingerprint(
            backbone.name,
            weights,
            installed_triple(attention_name(backbone.decoder)),
            str(backbone.dtype).removeprefix("torch."),
            backbone.device.type,
            len(self.slots),
            rows_from_eager,
            numbers_of(rows, self.tokens.grid.height, self.tokens.grid.width),
        )


def numbers_of(rows: Tensor, height: int, width: int) -> dict[str, list[float]]:
    """Compute four numbers for each of four layers, first to last, as `AttentionFingerprint` describes them.

    Args:
        rows: ``[t, m, c, k]``; of the first ``height * width`` image tokens, or fewer.
        height: Rows of the token grid, h.
        width: Columns of the token grid, w.
    """
    maps = rows.double().cpu()
    layers, heads, count = maps.shape[1:]
    # Families with several views have more tokens than the first view has cells: their place is their rank then.
    rank = torch.arange(count, dtype=torch.float64)
    whole = count == height * width
    y = (rank // width + 0.5) / height if whole else (rank + 0.5) / count
    x = (rank % width + 0.5) / width if whole else (rank + 0.5) / count
    number = torch.arange(1, heads + 1, dtype=torch.float64)
    found: dict[str, list[float]] = {}
    for index in sorted({round(part * (layers - 1) / 3) for part in range(4)}):
        layer = maps[:, index]
        mass = layer.sum(-1)
        total = mass.sum().clamp(min=1e-12)
        values = (
            mass.mean(),
            (mass * number).sum() / (number.sum() * len(mass)),
            (layer.sum((0, 1)) * y).sum() / total,
            (layer.sum((0, 1)) * x).sum() / total,
        )
        found[f"layer {index}"] = [float(f"{float(value):.8g}") for value in values]
    return found


def local_folder(name: str) -> Path | None:
    """Find a model's weights on this machine; None if they are not here. Nothing is downloaded."""
    if bundled.is_model(name):
        return bundled.model(name).checkpoint()
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        return None
    return folder if any(folder.glob("*.safetensors")) else None
