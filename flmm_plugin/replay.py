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

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, StaticLayer

from flmm_plugin.attention import AttentionCapture
from flmm_plugin.backbones.base import Backbone, EncodedChat, Generated, position_ids
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
    """
    inputs = {**encoded.inputs, "position_ids": position_ids(encoded.inputs["attention_mask"])}
    return _captured(backbone, inputs, rows, columns)


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
    """
    start = generated.prompt_length
    slots = [torch.tensor(list(one), dtype=torch.long) + start for one in rows]
    cache = prompt_cache(generated.past_key_values, start) if tail else None
    longest = max(1, *generated.lengths)
    answers = generated.sequences[:, start : start + longest]
    lengths = torch.tensor(generated.lengths, device=answers.device)[:, None]
    written = torch.arange(answers.shape[1], device=answers.device) < lengths
    prompt_mask = encoded.inputs["attention_mask"]
    mask = torch.cat([prompt_mask, written.to(prompt_mask.dtype)], dim=1)
    if cache is not None:
        return _captured(backbone, _continuation(answers, mask, start, cache), slots, columns)
    image_token = getattr(backbone.model.config, "image_token_id", None)
    if image_token is not None and bool((answers == image_token).any()):
        raise CaptureError(
            "the answer contains the image placeholder and there is no cache to read it from; generate with "
            "use_cache=True and without beams"
        )
    pictures = {key: value for key, value in encoded.inputs.items() if value.shape != prompt_mask.shape}
    ids = torch.cat([encoded.inputs["input_ids"], answers], dim=1)
    whole = {"input_ids": ids, "attention_mask": mask, "position_ids": position_ids(mask)}
    return _captured(backbone, {**pictures, **whole}, slots, columns)


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
    """
    out = backbone.forward_body(encoded.inputs, use_cache=True)
    start, mask = encoded.length, encoded.inputs["attention_mask"]
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
        ids = torch.full((len(some), max(len(text) for text in some)), backbone.pad_id, device=mask.device)
        written = torch.zeros_like(ids)
        for index, text in enumerate(some):
            ids[index, : len(text)] = torch.tensor(list(text), device=ids.device)
            written[index, : len(text)] = 1
        whole = torch.cat([mask.expand(len(some), -1), written.to(mask.dtype)], dim=1)
        slots_of = [torch.tensor(list(row), dtype=torch.long) + start for row in asked]
        capture = _captured(backbone, _continuation(ids, whole, start, cache), slots_of, [columns] * len(some))
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


def _continuation(ids: Tensor, mask: Tensor, start: int, cache: DynamicCache) -> dict[str, Any]:
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "position_ids": position_ids(mask)[:, start:],
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
