"""Count the memory that a model needs from configurations alone: no weights are read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from os.path import isfile
from typing import Any

from flmm_plugin import bundled
from flmm_plugin.errors import FlmmError
from flmm_plugin.options import WeightOptions

#: Tokens of a prompt beside those of the picture, tokens of an answer, and tokens of the phrases of a picture.
TEXT_TOKENS, ANSWER_TOKENS, PHRASE_TOKENS = 64, 64, 32
_CUDA_CONTEXT = 10**9
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_TRAINED_BYTES = 16  # per weight in float32: itself, its gradient, two moments of AdamW
_OF_NAME = re.compile(r"(\d+(?:\.\d+)?)b(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True)
class Line:
    """One part of a sum.

    Attributes:
        name: Part of the memory, such as ``KV cache``.
        arithmetic: How it was computed, in words.
        size: Number of bytes, >= 0.
    """

    name: str
    arithmetic: str
    size: int


@dataclass(frozen=True)
class ModelSize:
    """Numbers of an LMM that costs depend on.

    Attributes:
        parameters: Number of its weights, > 0.
        dtype: Name of the weights' dtype.
        bytes_each: Bytes of one weight; 0.5 for 4 bits.
        known_from: Where the numbers come from.
        image_tokens: Number of tokens of one picture, > 0.
        tokens_from: Where that number comes from.
        layers, heads, hidden: Numbers of the language model; 0 where they are not known.
        cache_each: Keys and values of one token in one layer.
        intermediate: Width of its feed-forward layers.
    """

    parameters: int
    dtype: str
    bytes_each: float
    known_from: str
    image_tokens: int = 576
    tokens_from: str = "assumed"
    layers: int = 0
    heads: int = 0
    hidden: int = 0
    cache_each: int = 0
    intermediate: int = 0

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights."""
        return int(self.parameters * self.bytes_each)


@dataclass(frozen=True)
class HeadsSize:
    """Numbers of grounding heads that costs depend on.

    Attributes:
        parameters: Weights of mask decoder, text projection and selector, without SAM's.
        sam_parameters: Weights of SAM; 0 without one.
        sam_encoder: Weights of its image encoder, a part of those.
        sam_cells: Cells of the image encoder's grid.
        sam_heads: Attention heads of a block of it.
        sam: Name of SAM's variant, such as ``vit_l``.
        known_from: Where the numbers come from.
    """

    parameters: int
    sam_parameters: int
    sam_encoder: int
    sam_cells: int
    sam_heads: int
    sam: str
    known_from: str


def model_size(pretrained: str, options: WeightOptions) -> ModelSize | None:
    """Return the numbers of an LMM; None where neither a configuration nor its name says them.

    Args:
        pretrained: Name of a bundled model, folder or hub id. Of a hub id the configuration is read, not the weights.
        options: Options of loading it: revision, dtype, 4 or 8 bits.
    """
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    from flmm_plugin.backbones.registry import folder_of
    from flmm_plugin.heads.released import find_released

    bytes_of_bits = {None: None, 4: 0.5, 8: 1.0}[options.bits]
    try:
        config = AutoConfig.from_pretrained(folder_of(pretrained), revision=options.revision)
        maker: Any = AutoModelForImageTextToText
        with torch.device("meta"):
            model = maker.from_config(config)
    except (OSError, ValueError, KeyError, ImportError, AttributeError, TypeError, RuntimeError):
        found = _OF_NAME.search(pretrained.rsplit("/", 1)[-1])
        if found is None:
            return None
        dtype = "bfloat16" if options.dtype == "auto" else options.dtype
        each = bytes_of_bits or _BYTES.get(dtype, 2)
        size = ModelSize(int(float(found[1]) * 1e9), _named(dtype, options), each, "the name of the model")
        known = find_released(pretrained)
        if known is None:
            return size
        width = known.hidden_size
        return replace(
            size, layers=known.layers, heads=known.heads, hidden=width, cache_each=2 * width, intermediate=4 * width
        )
    stored = getattr(config, "dtype", None) or "float32"
    dtype = str(stored if options.dtype == "auto" else options.dtype).removeprefix("torch.")
    text = config.get_text_config()
    heads = int(text.num_attention_heads)
    width = int(getattr(text, "head_dim", None) or text.hidden_size // heads)
    image_tokens, tokens_from = _image_tokens(config)
    return ModelSize(
        parameters=sum(one.numel() for one in model.parameters()),
        dtype=_named(dtype, options),
        bytes_each=bytes_of_bits or _BYTES.get(dtype, 2),
        known_from="its configuration",
        image_tokens=image_tokens,
        tokens_from=tokens_from,
        layers=int(text.num_hidden_layers),
        heads=heads,
        hidden=int(text.hidden_size),
        cache_each=2 * int(getattr(text, "num_key_value_heads", None) or heads) * width,
        intermediate=int(getattr(text, "intermediate_size", None) or 4 * text.hidden_size),
    )


def _named(dtype: str, options: WeightOptions) -> str:
    return dtype if options.bits is None else f"{options.bits} bit"


def _image_tokens(config: Any) -> tuple[int, str]:
    """Return the tokens of one picture, and where the number comes from."""
    vision = getattr(config, "vision_config", None)
    given = getattr(config, "image_seq_length", None) or getattr(config, "num_image_tokens", None)
    patch, side = getattr(vision, "patch_size", None), getattr(vision, "image_size", None)
    sizes = [one[0] if isinstance(one, list | tuple) else one for one in (patch, side)]
    count, said = 1024, "assumed"
    if isinstance(given, int):
        count, said = given, "its configuration"
    elif isinstance(sizes[0], int) and isinstance(sizes[1], int) and sizes[0] > 0:
        count, said = (sizes[1] // sizes[0]) ** 2, "the vision tower's patches"
    if getattr(config, "image_grid_pinpoints", None):
        return 5 * count, f"five views at most, each from {said}"
    return count, said


def heads_size(pretrained: str, size: ModelSize | None, heads: str | None, sam: str | None) -> HeadsSize | None:
    """Return the numbers of heads; None without heads, or where the LMM's numbers are not known.

    Args:
        pretrained: Name of a bundled model, folder or hub id.
        size: Numbers of the LMM, None if they are not known.
        heads: A file, ``auto`` or ``none``, as for ``heads=``.
        sam: Name of the SAM where no heads file says it; ``none`` for none.
    """
    import torch

    from flmm_plugin.heads import GroundingHeads, HeadsManifest, read_manifest

    if heads in (None, "none"):
        return None
    file = str(bundled.model(pretrained).heads()) if heads == "auto" and bundled.is_model(pretrained) else str(heads)
    try:
        if isfile(file):
            manifest, known = read_manifest(file), "the heads file"
        elif size is None or not size.layers:
            return None
        else:
            variant = None if sam == "none" else sam or "vit_l"
            manifest = HeadsManifest(pretrained, size.layers, size.heads, size.hidden, sam=variant)
            known = "the paper's settings"
        with torch.device("meta"):
            built = GroundingHeads.build(manifest)
    except FlmmError:
        return None
    total = sum(one.numel() for one in built.parameters())
    refiner = built.mask_refiner
    if refiner is None:
        return HeadsSize(total, 0, 0, 0, 0, "none", known)
    encoder = refiner.sam.image_encoder
    in_sam = sum(one.numel() for one in refiner.sam.parameters())
    block: Any = encoder.blocks[0]
    return HeadsSize(
        parameters=total - in_sam,
        sam_parameters=in_sam,
        sam_encoder=sum(one.numel() for one in encoder.parameters()),
        sam_cells=(encoder.img_size // int(encoder.patch_embed.proj.kernel_size[0])) ** 2,
        sam_heads=int(block.attn.num_heads),
        sam=manifest.sam if isinstance(manifest.sam, str) else "a small SAM",
        known_from=known,
    )


def memory(size: ModelSize, heads: HeadsSize | None, *, batch: int, on_gpu: bool, trains: bool = False) -> list[Line]:
    """Return what a run keeps on its device, part by part.

    Args:
        size: Numbers of the LMM, from `model_size`.
        heads: Numbers of the heads; None if nothing is grounded.
        batch: Number of documents per forward pass, > 0.
        on_gpu: Whether the device is a GPU, whose driver takes memory too.
        trains: Whether the heads are trained.
    """
    lines = [
        Line(
            "LMM",
            f"{short(size.parameters)} parameters (from {size.known_from}) x {size.bytes_each:g} bytes ({size.dtype})",
            size.weight_bytes,
        )
    ]
    tokens = size.image_tokens + TEXT_TOKENS + ANSWER_TOKENS
    each = max(2, int(size.bytes_each)) if size.bytes_each >= 1 else 2
    if size.layers:
        lines += [
            Line(
                "KV cache",
                f"{size.layers} layers x {size.cache_each:,} values x {tokens:,} tokens x {each} bytes x batch {batch}",
                size.layers * size.cache_each * tokens * each * batch,
            ),
            Line(
                "activations",
                f"{tokens:,} tokens x (4 x {size.hidden:,} + 3 x {size.intermediate:,}) values x {each} bytes x batch "
                f"{batch}",
                tokens * (4 * size.hidden + 3 * size.intermediate) * each * batch,
            ),
        ]
    if heads is not None:
        lines += _heads_lines(size, heads, batch, trains)
    if on_gpu:
        lines.append(Line("CUDA", "context and kernels, assumed", _CUDA_CONTEXT))
    return lines


def _heads_lines(size: ModelSize, heads: HeadsSize, batch: int, trains: bool) -> list[Line]:
    each, how = (_TRAINED_BYTES, "with gradients and AdamW") if trains else (4, "float32")
    lines = [
        Line(
            "heads",
            f"{short(heads.parameters)} parameters (from {heads.known_from}) x {each} bytes ({how})",
            heads.parameters * each,
        ),
        Line(
            "attention rows",
            f"{size.layers} layers x {size.heads} heads x {PHRASE_TOKENS} x {size.image_tokens:,} tokens x 4 bytes x "
            f"batch {batch}",
            size.layers * size.heads * PHRASE_TOKENS * size.image_tokens * 4 * batch,
        ),
    ]
    if heads.sam_parameters:
        scores = 2 * heads.sam_heads * heads.sam_cells**2 * 4
        lines += [
            Line(f"SAM {heads.sam}", f"{short(heads.sam_parameters)} parameters x 4 bytes", heads.sam_parameters * 4),
            Line(
                "SAM attention",
                f"2 x {heads.sam_heads} heads x {heads.sam_cells:,} x {heads.sam_cells:,} cells x 4 bytes",
                scores,
            ),
        ]
    return lines


def cache_bytes(size: ModelSize, heads: HeadsSize, samples: int, phrases: int, pictures: int) -> Mapping[str, int]:
    """Return the bytes of a feature cache before compression, by what is kept.

    Args:
        size: Numbers of the LMM, from `model_size`.
        heads: Numbers of the heads, from `heads_size`.
        samples: Number of pictures with their text.
        phrases: Number of phrases in all samples.
        pictures: Distinct pictures, of which SAM's embedding is kept.
    """
    tokens = PHRASE_TOKENS // 8 * phrases
    return {
        "attention": phrases * size.layers * size.heads * size.image_tokens * 2,
        "hidden states": tokens * size.layers * size.hidden * 2,
        "SAM embeddings": pictures * 256 * heads.sam_cells * 2 if heads.sam_parameters else 0,
        "texts": samples * TEXT_TOKENS * size.hidden * 2,
    }


def short(count: int) -> str:
    """Write a number of weights.

    >>> short(7_062_902_784), short(93_735_472)
    ('7.06 G', '93.7 M')
    """
    return f"{count / 1e9:.2f} G" if count >= 1e9 else f"{count / 1e6:.1f} M"
