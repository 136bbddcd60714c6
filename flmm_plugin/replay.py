"""Read back the attention of text that a model has already written, or that is written for it.

Chat is the plain ``generate()``; nothing is captured while it runs. Afterwards the answer is fed once more, as one
chunk, on a *copy* of the prompt's part of the returned key-value cache (tail replay): picture and prompt are not
computed again, every answer token is an input and so has a row of its own, the last one too. Where there is no such
cache (beam search, ``use_cache=False``, sliding windows) the whole sequence is run again (full replay). The replayed
cache never goes back into the chat: its last digits differ, and the next answer would no longer be that of the plain
model.

Shapes: b batch, l prompt slots, t answer tokens.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.cache_utils import DynamicCache, DynamicLayer, StaticLayer

from flmm_plugin.attention import AttentionCapture
from flmm_plugin.backbones.base import Backbone, EncodedChat, Generated
from flmm_plugin.context import check_encoded, check_tokens
from flmm_plugin.errors import CaptureError


def read_sequence(
    backbone: Backbone, encoded: EncodedChat, rows: Sequence[Tensor], columns: Sequence[Tensor]
) -> AttentionCapture:
    """Run given sequences once, without vocabulary logits and without a cache, and capture rows of them.

    Args:
        backbone: The frozen model.
        encoded: Sequences, e.g. `EncodedChat.extended` by a text.
        rows: Per item, sequence slots to read.
        columns: Per item, slots of its image tokens.

    Raises:
        BadText: A sequence is longer than the model's context.
    """
    check_encoded(backbone, encoded)
    inputs = encoded.grounding_inputs
    return _captured(backbone, {**inputs, "position_ids": backbone.positions(inputs)}, rows, columns)


def read_answer(
    backbone: Backbone,
    encoded: EncodedChat,
    generated: Generated,
    rows: Sequence[Sequence[int]],
    columns: Sequence[Tensor],
    *,
    tail: bool = True,
) -> AttentionCapture:
    """Capture rows of generated answers.

    Args:
        backbone: The frozen model.
        encoded: The prompts.
        generated: What the model answered to them.
        rows: Per item, indices of answer tokens.
        columns: Per item, slots of its image tokens.
        tail: Use the cache where there is one; False: always run the whole sequence.

    Raises:
        BadText: A prompt with its answer is longer than the model's context.
    """
    prompts = encoded.inputs["attention_mask"].sum(dim=1).tolist()
    check_tokens(backbone, max(map(operator.add, prompts, generated.lengths)))
    start = generated.prompt_length
    slots = [torch.tensor(list(one), dtype=torch.long) + start for one in rows]
    # The cache holds the picture as the chat saw it: of no use where grounding is to see another one.
    cache = prompt_cache(generated.past_key_values, start) if tail and not encoded.grounding else None
    longest = max(1, *generated.lengths)
    answers = generated.sequences[:, start : start + longest]
    lengths = torch.tensor(generated.lengths, device=answers.device)[:, None]
    written = torch.arange(answers.shape[1], device=answers.device) < lengths
    whole = _grown(encoded, answers, written)
    if cache is not None:
        return _captured(backbone, _continuation(whole, backbone.positions(whole), start, cache), slots, columns)
    image_token = getattr(backbone.model.config, "image_token_id", None)
    if image_token is not None and bool((answers == image_token).any()):
        raise CaptureError(
            "the answer contains the image placeholder and there is no cache to read it from; generate with "
            "use_cache=True and without beams"
        )
    return _captured(backbone, {**whole, "position_ids": backbone.positions(whole)}, slots, columns)


def read_continuations(
    backbone: Backbone,
    encoded: EncodedChat,
    texts: Sequence[Sequence[int]],
    rows: Sequence[Sequence[int]],
    columns: Tensor,
    *,
    at_once: int = 8,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Read several texts, each written alone behind the same single prompt; prompt and picture are computed once.

    Args:
        backbone: The frozen model.
        encoded: One prompt.
        texts: Token ids of each text.
        rows: Per text, indices of the tokens to read.
        columns: Slots of the prompt's image tokens.
        at_once: Texts per forward pass; each holds a copy of the prompt's cache.

    Yields:
        Per text, its rows ``[t, m, c, k]`` and hidden states ``[t, m, d]``.

    Raises:
        BadText: A text with its prompt is longer than the model's context.
    """
    check_tokens(backbone, encoded.length + max(map(len, texts), default=0))
    out = backbone.forward_body(encoded.grounding_inputs, use_cache=True)
    start, device = encoded.length, encoded.inputs["attention_mask"].device
    for first in range(0, len(texts), at_once):
        some, asked = texts[first : first + at_once], rows[first : first + at_once]
        cache = prompt_cache(out.past_key_values, start, repeats=len(some))
        if cache is None:
            # Nothing that can be shared (sliding windows): every sequence whole.
            for text, row in zip(some, asked, strict=True):
                slots = torch.tensor(list(row), dtype=torch.long) + start
                capture = read_sequence(backbone, encoded.extended([text], backbone.pad_id), [slots], [columns])
                yield capture.attention(0), capture.hidden(0)
            continue
        longest = max(len(text) for text in some)
        inputs, places = [], []
        for text in some:
            ids = torch.full((1, longest), backbone.pad_id, device=device)
            ids[0, : len(text)] = torch.tensor(list(text), device=device)
            inputs.append(_grown(encoded, ids, torch.arange(longest, device=device)[None] < len(text)))
            places.append(backbone.positions(inputs[-1]))
        whole = {key: torch.cat([one[key] for one in inputs]) for key in ("input_ids", "attention_mask")}
        slots_of = [torch.tensor(list(row), dtype=torch.long) + start for row in asked]
        continuation = _continuation(whole, torch.cat(places, dim=-2), start, cache)
        capture = _captured(backbone, continuation, slots_of, [columns] * len(some))
        for item in range(len(some)):
            yield capture.attention(item), capture.hidden(item)


def prompt_cache(cache: Any, length: int, *, repeats: int = 1) -> DynamicCache | None:
    """The first ``length`` slots of a cache, for a forward pass that must leave the cache itself as it is.

    Args:
        cache: A key-value cache of transformers, or None.
        length: Slots of the prompt.
        repeats: Copies along the batch, for one prompt with several continuations.

    Returns:
        A new cache, or None when the prompt's keys cannot be taken from this one: sliding windows drop them, quantised
        and offloaded layers hold them in another form.
    """
    layers = getattr(cache, "layers", None)
    if not layers or getattr(cache, "offloading", False):
        return None
    if not all(type(layer) in (DynamicLayer, StaticLayer) and layer.is_initialized for layer in layers):
        return None
    if any(layer.keys.shape[-2] < length for layer in layers):
        return None
    copy = DynamicCache()
    for index, layer in enumerate(layers):
        keys, values = layer.keys[..., :length, :], layer.values[..., :length, :]
        # `update` concatenates into new memory; what was cached is read and never written.
        copy.update(keys.repeat_interleave(repeats, 0), values.repeat_interleave(repeats, 0), index)
    return copy


def _grown(encoded: EncodedChat, ids: Tensor, written: Tensor) -> dict[str, Tensor]:
    """The inputs with ``ids [b, t]`` behind each sequence, where ``written`` says that they are no padding."""
    shape = encoded.inputs["input_ids"].shape
    grown = {
        key: F.pad(value, (0, ids.shape[1])) if value.shape == shape else value
        for key, value in encoded.grounding_inputs.items()
    }
    mask = encoded.inputs["attention_mask"]
    grown["input_ids"] = torch.cat([encoded.inputs["input_ids"], ids], dim=1)
    grown["attention_mask"] = torch.cat([mask, written.to(mask.dtype)], dim=1)
    return grown


def _continuation(whole: dict[str, Tensor], positions: Tensor, start: int, cache: DynamicCache) -> dict[str, Any]:
    """What is fed behind a cache of ``start`` slots."""
    return {
        "input_ids": whole["input_ids"][:, start:],
        "attention_mask": whole["attention_mask"],
        "position_ids": positions[..., start:],
        "past_key_values": cache,
        "use_cache": True,
    }


def _captured(
    backbone: Backbone, inputs: dict[str, Any], rows: Sequence[Tensor], columns: Sequence[Tensor]
) -> AttentionCapture:
    capture = AttentionCapture(backbone.decoder, rows, columns)
    with capture.active():
        backbone.forward_body(inputs)
    return capture
