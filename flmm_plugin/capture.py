"""Run the frozen model over passages, given or generated, and capture the attention and states of their phrases.

Chat is the plain ``generate()``; nothing is captured while it runs. Afterwards the answer is fed once more, as one
chunk, on a *copy* of the prompt's part of the returned key-value cache: picture and prompt are not computed again,
every answer token is an input and so has a row of its own, the last one too. Where there is no such cache (beam search,
``use_cache=False``, sliding windows) the whole sequence is run again. The cache of this second pass never goes back
into the chat: its last digits differ, and the next answer would no longer be that of the plain model.

Shapes: b batch, l prompt slots, t tokens, n phrases, m layers, c heads per layer, k image tokens, d hidden size.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.cache_utils import DynamicCache, DynamicLayer, StaticLayer

from flmm_plugin.attention import AttentionCapture
from flmm_plugin.backbones.base import Backbone, EncodedChat, Generated, ImageTokens
from flmm_plugin.context_length import check_encoded, check_tokens
from flmm_plugin.errors import CaptureError, UnknownArgument
from flmm_plugin.heads.manifest import MERGES
from flmm_plugin.passages import Passage


@dataclass(frozen=True, eq=False)
class CapturedPassage:
    """The attention and hidden states of a passage's phrases.

    Attributes:
        passage: The text, and which tokens of it are phrases.
        rows: Attention of each phrase to the image tokens, merged over its tokens, ``[n, m, c, k]``; not normalised.
        hidden: Outputs of every decoder layer at the phrases' tokens, phrase after phrase, ``[t, m, d]``.
        image: The image tokens, and how they lie on the picture.
    """

    passage: Passage
    rows: Tensor
    hidden: Tensor
    image: ImageTokens

    def maps(self, backbone: Backbone) -> Tensor:
        """Lay each phrase's attention on the token grid, ``[n, views * m * c, h, w]``."""
        return backbone.attention_maps(self.rows, self.image)

    def states(self) -> list[Tensor]:
        """Split the hidden states into those of each phrase, n x ``[t_i, m, d]``."""
        return list(self.hidden.split(self.passage.sizes))


def merged_rows(rows: Tensor, sizes: Sequence[int], merge: str) -> Tensor:
    """Merge attention rows that were kept one by one, because the phrases were not known when they were read.

    Args:
        rows: ``[t, m, c, k]``, phrase after phrase.
        sizes: Number of tokens of each phrase; their sum is t.
        merge: ``mean`` or ``max`` over a phrase's tokens.

    Returns:
        ``[n, m, c, k]``, not normalised.
    """
    check_merge(merge)
    parts = rows.split(list(sizes))
    return torch.stack([part.mean(dim=0) if merge == "mean" else part.amax(dim=0) for part in parts])


def check_merge(merge: str) -> None:
    """Refuse any other way of merging than the known ones."""
    if merge not in MERGES:
        raise UnknownArgument(f"merge is 'mean' or 'max', not {merge!r}")


def capture_passages(
    backbone: Backbone, encoded: EncodedChat, passages: Sequence[Passage], merge: str
) -> list[CapturedPassage]:
    """Run chats that end with given passages once, and capture the phrases of each.

    Args:
        backbone: The frozen model that reads them.
        encoded: The chats, each with its passage behind it.
        passages: Texts with their phrases, one for each chat.
        merge: ``mean`` or ``max`` over a phrase's tokens.

    Raises:
        BadText: A chat with its passage is longer than the model's context.
    """
    slots = [_slots(passage, encoded.length - len(passage.ids)) for passage in passages]
    columns = [images[0].slots for images in encoded.image_tokens]
    capture = read_sequence(backbone, encoded, slots, columns, _merging(passages, merge))
    return [_captured_passage(capture, item, passage, encoded) for item, passage in enumerate(passages)]


def capture_answers(
    backbone: Backbone,
    encoded: EncodedChat,
    generated: Generated,
    passages: Sequence[Passage],
    merge: str,
    *,
    attention: bool = True,
) -> list[CapturedPassage]:
    """Capture the phrases of generated answers.

    Args:
        backbone: The frozen model that generated them.
        encoded: The prompts, padded on the left.
        generated: The answers to these prompts.
        passages: Per answer, a passage whose ``ids`` are the answer's.
        merge: ``mean`` or ``max`` over a phrase's tokens.
        attention: Whether to read attention; False: hidden states alone, and rows of no image token.

    Raises:
        BadText: A prompt with its answer is longer than the model's context.
    """
    columns = [images[0].slots if attention else images[0].slots[:0] for images in encoded.image_tokens]
    tokens = [passage.tokens for passage in passages]
    capture = read_answer(backbone, encoded, generated, tokens, columns, _merging(passages, merge))
    return [_captured_passage(capture, item, passage, encoded) for item, passage in enumerate(passages)]


def last_states(backbone: Backbone, encoded: EncodedChat, lengths: Sequence[int]) -> list[Tensor]:
    """Read the states after the final norm of each sequence's last tokens, b x ``[t, d]``; no attention is kept.

    Args:
        backbone: The frozen model that reads them.
        encoded: Chats, each with a passage behind it.
        lengths: Number of tokens of each passage.
    """
    slots = [torch.arange(encoded.length - length, encoded.length) for length in lengths]
    capture = read_sequence(backbone, encoded, slots, [images[0].slots[:0] for images in encoded.image_tokens])
    return [capture.hidden(item)[:, -1] for item in range(len(lengths))]


def _slots(passage: Passage, start: int) -> Tensor:
    """Return the sequence slots of a passage's phrases, where its first token is in slot ``start``."""
    return torch.tensor(passage.tokens, dtype=torch.long) + start


def _captured_passage(capture: AttentionCapture, item: int, passage: Passage, encoded: EncodedChat) -> CapturedPassage:
    return CapturedPassage(passage, capture.attention(item), capture.hidden(item), encoded.image_tokens[item][0])


@dataclass(frozen=True)
class Merging:
    """Say which rows become one while they are captured.

    Attributes:
        sizes: Per item, numbers of rows that follow each other and become one.
        how: ``mean`` or ``max`` over these.
    """

    sizes: Sequence[Sequence[int]]
    how: str


def _merging(passages: Sequence[Passage], merge: str) -> Merging:
    check_merge(merge)
    return Merging([passage.sizes for passage in passages], merge)


def read_sequence(
    backbone: Backbone,
    encoded: EncodedChat,
    rows: Sequence[Tensor],
    columns: Sequence[Tensor],
    merging: Merging | None = None,
) -> AttentionCapture:
    """Run given sequences once, without vocabulary logits and without a cache, and capture rows of them.

    Args:
        backbone: The frozen model that reads them.
        encoded: Sequences, e.g. `EncodedChat.extended` by a text.
        rows: Per item, the sequence slots to read.
        columns: Per item, the slots of its image tokens.
        merging: Which rows become one; None: every row is kept.

    Raises:
        BadText: A sequence is longer than the model's context.
    """
    check_encoded(backbone, encoded)
    inputs = encoded.grounding_inputs
    return _captured(backbone, {**inputs, "position_ids": backbone.positions(inputs)}, rows, columns, merging)


def read_answer(
    backbone: Backbone,
    encoded: EncodedChat,
    generated: Generated,
    rows: Sequence[Sequence[int]],
    columns: Sequence[Tensor],
    merging: Merging | None = None,
    *,
    tail: bool = True,
) -> AttentionCapture:
    """Capture rows of generated answers.

    Args:
        backbone: The frozen model that generated them.
        encoded: The prompts, padded on the left.
        generated: The answers to these prompts.
        rows: Per item, indices of answer tokens.
        columns: Per item, the slots of its image tokens.
        merging: Which rows become one; None: every row is kept.
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
        continuation = _continuation(whole, backbone.positions(whole), start, cache)
        return _captured(backbone, continuation, slots, columns, merging)
    image_token = getattr(backbone.model.config, "image_token_id", None)
    if image_token is not None and bool((answers == image_token).any()):
        raise CaptureError(
            "the answer contains the image placeholder and there is no cache to read it from; generate with "
            "use_cache=True and without beams"
        )
    return _captured(backbone, {**whole, "position_ids": backbone.positions(whole)}, slots, columns, merging)


def capture_alternatives(
    backbone: Backbone, encoded: EncodedChat, passages: Sequence[Passage], merge: str, *, at_once: int = 8
) -> Iterator[CapturedPassage]:
    """Capture several passages, each alone behind the same single prompt; prompt and picture are computed once.

    Args:
        backbone: The frozen model that reads them.
        encoded: The prompt, a batch of one.
        passages: Texts with their phrases, in any number.
        merge: ``mean`` or ``max`` over a phrase's tokens.
        at_once: Passages per forward pass; each holds a copy of the prompt's cache.

    Raises:
        BadText: A passage with the prompt is longer than the model's context.
    """
    check_tokens(backbone, encoded.length + max((len(passage.ids) for passage in passages), default=0))
    out = backbone.forward_body(encoded.grounding_inputs, use_cache=True)
    start, device = encoded.length, encoded.inputs["attention_mask"].device
    image = encoded.image_tokens[0][0]
    for first in range(0, len(passages), at_once):
        some = passages[first : first + at_once]
        cache = prompt_cache(out.past_key_values, start, repeats=len(some))
        if cache is None:
            # Nothing that can be shared (sliding windows): every sequence whole.
            for passage in some:
                whole_chat = encoded.extended([passage.ids], backbone.pad_id)
                yield from capture_passages(backbone, whole_chat, [passage], merge)
            continue
        longest = max(len(passage.ids) for passage in some)
        inputs, places = [], []
        for passage in some:
            ids = torch.full((1, longest), backbone.pad_id, device=device)
            ids[0, : len(passage.ids)] = torch.tensor(passage.ids, device=device)
            written = torch.arange(longest, device=device)[None] < len(passage.ids)
            inputs.append(_grown(encoded, ids, written))
            places.append(backbone.positions(inputs[-1]))
        whole = {key: torch.cat([one[key] for one in inputs]) for key in ("input_ids", "attention_mask")}
        slots = [_slots(passage, start) for passage in some]
        continuation = _continuation(whole, torch.cat(places, dim=-2), start, cache)
        columns = [image.slots] * len(some)
        capture = _captured(backbone, continuation, slots, columns, _merging(some, merge))
        for item, passage in enumerate(some):
            yield CapturedPassage(passage, capture.attention(item), capture.hidden(item), image)


def prompt_cache(cache: Any, length: int, *, repeats: int = 1) -> DynamicCache | None:
    """Copy the first ``length`` slots of a cache, for a forward pass that must leave the cache itself as it is.

    Args:
        cache: A key-value cache of transformers, or None.
        length: Slots of the prompt, left padding included.
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
    """Return the inputs with ``ids [b, t]`` behind each sequence, where ``written`` says that they are no padding."""
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
    """Return the inputs of a forward pass behind a cache of ``start`` slots."""
    return {
        "input_ids": whole["input_ids"][:, start:],
        "attention_mask": whole["attention_mask"],
        "position_ids": positions[..., start:],
        "past_key_values": cache,
        "use_cache": True,
    }


def _captured(
    backbone: Backbone,
    inputs: dict[str, Any],
    rows: Sequence[Tensor],
    columns: Sequence[Tensor],
    merging: Merging | None,
) -> AttentionCapture:
    sizes, how = (None, "mean") if merging is None else (merging.sizes, merging.how)
    weighted = backbone.rows == "value"
    capture = AttentionCapture(backbone.decoder, rows, columns, sizes=sizes, merge=how, weighted=weighted)
    with capture.active():
        backbone.forward_body(inputs)
    return capture
