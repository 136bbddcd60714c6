"""Between words and tokens: phrases written into an answer, the tokens of a span of text, rows of tokens merged.

Shapes: n phrases, t tokens, m layers, c heads per layer, k image tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flmm_plugin.errors import EmptyPhrase, UnknownArgument

Span = tuple[int, int]

MERGES = ("mean", "max")


def written_phrases(tokenizer: Any, phrases: Sequence[str], separator: str) -> tuple[list[int], list[list[int]]]:
    """Phrases as one answer, the way the paper's models were trained to read them.

    Each phrase is tokenised alone, without special tokens, and followed by the last token of the separator, so that a
    phrase has the same tokens wherever it stands.

    Args:
        tokenizer: The backbone's.
        phrases: At least one, none empty.
        separator: Written after each phrase; "" for nothing.

    Returns:
        The token ids of the answer, and per phrase the indices of its tokens in it.

    Raises:
        EmptyPhrase: A phrase without text.
    """
    closing = tokenizer.encode(separator, add_special_tokens=False)[-1:] if separator else []
    ids: list[int] = []
    groups: list[list[int]] = []
    for index, phrase in enumerate(phrases):
        words = phrase.strip()
        tokens = tokenizer.encode(words, add_special_tokens=False) if words else []
        if not tokens:
            raise EmptyPhrase(f"phrase {index} is empty ({phrase!r}); name what to ground, or leave it out")
        groups.append(list(range(len(ids), len(ids) + len(tokens))))
        ids += [*tokens, *closing]
    if not groups:
        raise EmptyPhrase("there is no phrase to ground; give at least one")
    return ids, groups


def text_offsets(tokenizer: Any, text: str) -> tuple[list[int], list[Span]]:
    """Tokens of a given text and the characters ``[start, end)`` that each covers, without special tokens."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return list(encoded["input_ids"]), [(int(start), int(end)) for start, end in encoded["offset_mapping"]]


def pieces_tokens(tokenizer: Any, pieces: Sequence[str]) -> tuple[list[int], list[list[int]]]:
    """A text in pieces, each tokenised alone and without special tokens, joined as it is.

    Returns:
        The token ids of the text, and per piece the indices of its tokens; a piece may have none.
    """
    ids: list[int] = []
    groups: list[list[int]] = []
    for piece in pieces:
        tokens = tokenizer.encode(piece, add_special_tokens=False) if piece else []
        groups.append(list(range(len(ids), len(ids) + len(tokens))))
        ids += tokens
    return ids, groups


def decoded_offsets(tokenizer: Any, ids: Sequence[int]) -> tuple[str, list[Span]]:
    """Text of generated tokens and the characters that each covers.

    The text is not tokenised again: another split of the same characters would shift every token. Special tokens and
    the first bytes of a character that is not complete yet cover nothing.

    Returns:
        The decoded text without special tokens, and per token its ``[start, end)`` in it, never overlapping.
    """
    text: str = tokenizer.decode(list(ids), skip_special_tokens=True)
    offsets: list[Span] = []
    end = 0
    for count in range(1, len(ids) + 1):
        begun = tokenizer.decode(list(ids[:count]), skip_special_tokens=True)
        start, end = end, max(end, _shared(text, begun))
        offsets.append((start, end))
    return text, offsets


def _shared(text: str, other: str) -> int:
    """Leading characters that two texts have in common."""
    length = min(len(text), len(other))
    return next((index for index in range(length) if text[index] != other[index]), length)


def trimmed(text: str, span: Span) -> Span:
    """The span without the white space at its ends (tokens carry their leading space)."""
    start, end = span
    words = text[start:end]
    return start + len(words) - len(words.lstrip()), end - (len(words) - len(words.rstrip()))


def span_tokens(text: str, offsets: Sequence[Span], span: Span) -> list[int]:
    """Indices of the tokens that share a character with a span of the text.

    Raises:
        EmptyPhrase: The span is not within the text, or has no text or no token.
    """
    if not 0 <= span[0] <= span[1] <= len(text):
        raise EmptyPhrase(f"span {tuple(span)} is not within the text of {len(text)} characters")
    start, end = trimmed(text, span)
    found = [index for index, (first, last) in enumerate(offsets) if first < end and last > start]
    if start >= end or not found:
        raise EmptyPhrase(f"span {tuple(span)} of the text covers no words ({text[span[0] : span[1]]!r})")
    return found


def merged_rows(rows: Tensor, sizes: Sequence[int], merge: str) -> Tensor:
    """One map per phrase out of its tokens' rows.

    Args:
        rows: ``[t, m, c, k]``, phrase after phrase.
        sizes: Tokens of each phrase; their sum is t.
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
