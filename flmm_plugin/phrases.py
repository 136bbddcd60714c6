"""Between words and tokens: phrases written into an answer, the tokens of a span of text, rows of tokens merged.

Shapes: n phrases, t tokens, m layers, c heads per layer, k image tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flmm_plugin.errors import BadText, EmptyPhrase, UnknownArgument
from flmm_plugin.words import Span, check_text, check_within, checked_phrases, short, trimmed

MERGES = ("mean", "max")


def plain_tokens(tokenizer: Any, text: str) -> list[int]:
    """Tokens of a given text, in which nothing is a special token: ``</s>`` is four characters."""
    ids: list[int] = _encoded(tokenizer, text)["input_ids"]
    return list(ids)


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
        BadText: A phrase is no text.
        EmptyPhrase: A phrase without words.
    """
    closing = plain_tokens(tokenizer, separator)[-1:] if separator else []
    ids: list[int] = []
    groups: list[list[int]] = []
    for index, phrase in enumerate(checked_phrases(phrases)):
        tokens = plain_tokens(tokenizer, phrase.strip())
        if not tokens:
            raise EmptyPhrase(f"phrase {index} has no token ({short(phrase)}); name what to ground, or leave it out")
        groups.append(list(range(len(ids), len(ids) + len(tokens))))
        ids += [*tokens, *closing]
    if not groups:
        raise EmptyPhrase("there is no phrase to ground; give at least one")
    return ids, groups


def text_offsets(tokenizer: Any, text: str) -> tuple[list[int], list[Span]]:
    """Tokens of a given text and the characters ``[start, end)`` that each covers, without special tokens."""
    encoded = _encoded(tokenizer, text, return_offsets_mapping=True)
    return list(encoded["input_ids"]), [(int(start), int(end)) for start, end in encoded["offset_mapping"]]


def pieces_tokens(tokenizer: Any, pieces: Sequence[str]) -> tuple[list[int], list[list[int]]]:
    """A text in pieces, each tokenised alone and without special tokens, joined as it is.

    Returns:
        The token ids of the text, and per piece the indices of its tokens; a piece may have none.
    """
    ids: list[int] = []
    groups: list[list[int]] = []
    for piece in pieces:
        tokens = plain_tokens(tokenizer, piece) if piece else []
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


def span_tokens(text: str, offsets: Sequence[Span], span: Span) -> list[int]:
    """Indices of the tokens that share a character with a span of the text.

    Raises:
        EmptyPhrase: The span is not within the text, or has no words or no token.
    """
    check_within(text, span)
    start, end = trimmed(text, span)
    found = [index for index, (first, last) in enumerate(offsets) if first < end and last > start]
    if not found:
        raise EmptyPhrase(f"span {tuple(span)} of the text has no token ({short(text[span[0] : span[1]])})")
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


def _encoded(tokenizer: Any, text: str, **options: Any) -> Any:
    """What the tokenizer makes of a given text; where the text spells special tokens, they are taken apart.

    Raises:
        BadText: The text is no string that a tokenizer can read, or the tokenizer cannot take such a token apart.
    """
    check_text(text)
    encoded = tokenizer(text, add_special_tokens=False, **options)
    own = _special_ids(tokenizer)
    if own.isdisjoint(encoded["input_ids"]):
        return encoded
    encoded = tokenizer(text, add_special_tokens=False, split_special_tokens=True, **options)
    # What a tokenizer makes of a character that it does not know is no token that the text spells.
    spelt = (own - {tokenizer.unk_token_id}).intersection(encoded["input_ids"])
    if spelt:
        names = ", ".join(map(repr, tokenizer.convert_ids_to_tokens(sorted(spelt))))
        raise BadText(f"the text {short(text)} spells {names}, a sign to this model; write it differently")
    return encoded


def _special_ids(tokenizer: Any) -> set[int]:
    """Ids of the tokens that are signs to the model, not text, its placeholder for pictures among them."""
    placeholder = getattr(tokenizer, "image_token_id", None)
    added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return {*tokenizer.all_special_ids, *added, *([] if placeholder is None else [int(placeholder)])}
