"""Between words and tokens: phrases written into an answer, the tokens of a span of text, rows of tokens merged.

Shapes: n phrases, t tokens, m layers, c heads per layer, k image tokens.
"""

from __future__ import annotations

import operator
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from flmm_plugin.errors import BadText, EmptyPhrase, UnknownArgument

Span = tuple[int, int]

MERGES = ("mean", "max")

#: Unicode categories of characters that show nothing: separators, controls, format marks, lone surrogates.
_UNSEEN = ("Zs", "Zl", "Zp", "Cc", "Cf", "Cs")


def checked_phrases(phrases: Iterable[str]) -> list[str]:
    """Return the phrases of any iterable as a list, each of them a string of words.

    Raises:
        BadText: It is no list of strings, or a phrase has a lone surrogate.
        EmptyPhrase: It is one string, whose letters would be phrases, or a phrase has no words.
    """
    if isinstance(phrases, str):
        raise EmptyPhrase(f"phrases is one string; give a list: [{_short(phrases)}]")
    if isinstance(phrases, bytes | bytearray | Mapping) or not isinstance(phrases, Iterable):
        raise BadText(f"phrases is a {type(phrases).__name__}; give a list of strings, such as ['the red circle']")
    found = list(phrases)
    for index, phrase in enumerate(found):
        check_text(phrase, f"phrase {index}")
        if not has_words(phrase):
            raise EmptyPhrase(f"phrase {index} is empty ({_short(phrase)}); name what to ground, or leave it out")
    return found


def checked_spans(spans: Iterable[Sequence[int]], text: str) -> list[Span]:
    """Return the spans of any iterable as pairs of Python integers that cover words of a text.

    Raises:
        BadText: It is no list of pairs of whole numbers.
        EmptyPhrase: A span is not within the text, or has no words.
    """
    if isinstance(spans, str | bytes | bytearray | Mapping) or not isinstance(spans, Iterable):
        raise BadText(f"spans is a {type(spans).__name__}; give a list of pairs (start, end), such as [(0, 9)]")
    found = []
    for index, span in enumerate(spans):
        try:
            start, end = span
            if any(isinstance(one, bool) for one in (start, end)):
                raise TypeError("a truth value is no place in a text")
            found.append((operator.index(start), operator.index(end)))
        except (TypeError, ValueError) as exc:
            raise BadText(
                f"span {index} is {_short(span)}; a span is a pair of whole numbers (start, end): characters of the "
                "text from start up to, not including, end"
            ) from exc
        _check_within(text, found[-1])
    return found


def check_text(text: object, what: str = "the text") -> None:
    """See that something is a string that a tokenizer can read.

    Args:
        text: Whatever was given.
        what: How an error calls it.

    Raises:
        BadText: It is no string, or has a lone surrogate: half of a character, which no encoding of Unicode has.
    """
    if not isinstance(text, str):
        raise BadText(f"{what} is {_short(text)}, of type {type(text).__name__}; give a string of words")
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise BadText(
            f"{what} has a lone surrogate at character {exc.start} ({_short(text[exc.start])}), which is half of a "
            "character; repair the text where it was read (open the file with its right encoding)"
        ) from exc


def has_words(text: str) -> bool:
    """Whether a text has a character that can be seen; zero-width and control characters cannot."""
    return any(unicodedata.category(character) not in _UNSEEN for character in text)


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
            raise EmptyPhrase(f"phrase {index} has no token ({_short(phrase)}); name what to ground, or leave it out")
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


def trimmed(text: str, span: Span) -> Span:
    """The span without the white space at its ends (tokens carry their leading space)."""
    start, end = span
    words = text[start:end]
    return start + len(words) - len(words.lstrip()), end - (len(words) - len(words.rstrip()))


def span_tokens(text: str, offsets: Sequence[Span], span: Span) -> list[int]:
    """Indices of the tokens that share a character with a span of the text.

    Raises:
        EmptyPhrase: The span is not within the text, or has no words or no token.
    """
    _check_within(text, span)
    start, end = trimmed(text, span)
    found = [index for index, (first, last) in enumerate(offsets) if first < end and last > start]
    if not found:
        raise EmptyPhrase(f"span {tuple(span)} of the text has no token ({_short(text[span[0] : span[1]])})")
    return found


def _check_within(text: str, span: Span) -> None:
    """Refuse a span that is not within the text, or covers no words of it."""
    if not 0 <= span[0] <= span[1] <= len(text):
        order = "; it ends before it begins" if span[0] > span[1] else ""
        raise EmptyPhrase(f"span {tuple(span)} is not within the text of {len(text)} characters{order}")
    if not has_words(text[slice(*span)]):
        raise EmptyPhrase(f"span {tuple(span)} of the text covers no words ({_short(text[slice(*span)])})")


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
        raise BadText(f"the text {_short(text)} spells {names}, a sign to this model; write it differently")
    return encoded


def _special_ids(tokenizer: Any) -> set[int]:
    """Ids of the tokens that are signs to the model, not text, its placeholder for pictures among them."""
    placeholder = getattr(tokenizer, "image_token_id", None)
    added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return {*tokenizer.all_special_ids, *added, *([] if placeholder is None else [int(placeholder)])}


def _short(value: object) -> str:
    """A value as code, cut to what a line of an error can hold."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:50]}... ({len(text)} characters)"
