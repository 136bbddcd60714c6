"""Build passages: texts behind a chat as token ids, with the tokens of each phrase that is to be grounded.

Nothing in a given text is a special token: ``</s>`` in it is four characters.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from flmm_plugin.errors import BadText, EmptyPhrase
from flmm_plugin.images import ImageSource
from flmm_plugin.text_checks import Span, check_text, check_within, checked_phrases, has_words, short, trimmed


@dataclass(frozen=True)
class Passage:
    """A text behind a chat, and the phrases in it.

    Attributes:
        ids: Token ids of the whole text; they are the last tokens of the sequence that a model reads.
        groups: Per phrase, the indices of its tokens in ``ids``.
        phrases: Per phrase, its words and their characters ``[start, end)`` in the text; None where a phrase was given
            without a text.
    """

    ids: list[int]
    groups: list[list[int]]
    phrases: list[tuple[str, Span | None]]

    @property
    def tokens(self) -> list[int]:
        """Indices of the tokens of all phrases, phrase after phrase."""
        return [index for group in self.groups for index in group]

    @property
    def sizes(self) -> list[int]:
        """Number of tokens of each phrase."""
        return [len(group) for group in self.groups]

    @classmethod
    def of_phrases(cls, tokenizer: Any, phrases: Sequence[str], separator: str) -> Passage:
        """Write phrases as one answer, the way the paper's models were trained to read them.

        Each phrase is tokenised alone, without special tokens, and followed by the last token of the separator, so
        that a phrase has the same tokens wherever it stands.

        Args:
            tokenizer: The backbone's own, any of transformers' classes.
            phrases: At least one, none empty.
            separator: Written after each phrase; "" for nothing.

        Raises:
            BadText: A phrase is no text.
            EmptyPhrase: A phrase without words or tokens, or no phrase at all.
        """
        closing = plain_tokens(tokenizer, separator)[-1:] if separator else []
        ids: list[int] = []
        groups: list[list[int]] = []
        phrases = checked_phrases(phrases)
        for index, phrase in enumerate(phrases):
            tokens = plain_tokens(tokenizer, phrase.strip())
            if not tokens:
                raise EmptyPhrase(
                    f"phrase {index} has no token ({short(phrase)}); name what to ground, or leave it out"
                )
            groups.append(list(range(len(ids), len(ids) + len(tokens))))
            ids += [*tokens, *closing]
        if not groups:
            raise EmptyPhrase("there is no phrase to ground; give at least one")
        return cls(ids, groups, [(phrase, None) for phrase in phrases])

    @classmethod
    def of_spans(cls, tokenizer: Any, text: str, spans: Sequence[Span]) -> Passage:
        """Tokenise a text as a whole; its phrases are the tokens that share a character with each span.

        Raises:
            EmptyPhrase: A span is not within the text, or has no words or no token.
        """
        ids, offsets = text_offsets(tokenizer, text)
        words = [trimmed(text, span) for span in spans]
        groups = [span_tokens(text, offsets, span) for span in spans]
        return cls(ids, groups, [(text[start:end], (start, end)) for start, end in words])

    @classmethod
    def of_pieces(cls, tokenizer: Any, pieces: Sequence[str], grounded: Sequence[int]) -> Passage:
        """Tokenise each piece of a text alone, without special tokens; some of the pieces are its phrases.

        Args:
            tokenizer: The backbone's own, any of transformers' classes.
            pieces: The text, cut where its phrases begin and end; joined as they are.
            grounded: Indices of the pieces that are phrases.

        Raises:
            EmptyPhrase: A piece without words or tokens is to be grounded, or there is no such piece.
        """
        ids: list[int] = []
        of_piece: list[list[int]] = []
        for piece in pieces:
            tokens = plain_tokens(tokenizer, piece) if piece else []
            of_piece.append(list(range(len(ids), len(ids) + len(tokens))))
            ids += tokens
        for index in grounded:
            if not 0 <= index < len(pieces) or not of_piece[index] or not has_words(pieces[index]):
                what = repr(pieces[index]) if 0 <= index < len(pieces) else f"of {len(pieces)}"
                raise EmptyPhrase(f"piece {index} ({what}) has no words to ground; name a piece that has some")
        text = "".join(pieces)
        spans = piece_spans(pieces, grounded)
        phrases: list[tuple[str, Span | None]] = [(text[start:end], (start, end)) for start, end in spans]
        return cls(ids, [of_piece[index] for index in grounded], phrases)

    @classmethod
    def of_tokens(
        cls, ids: Sequence[int], text: str, offsets: Sequence[Span], groups: Iterable[Sequence[int]]
    ) -> Passage:
        """Make phrases of runs of tokens; a run whose characters are white space alone is left out.

        Args:
            ids: Token ids of the whole text.
            text: The text that the ids decode to.
            offsets: Characters ``[start, end)`` of each token.
            groups: Per phrase, the indices of its tokens, ascending.
        """
        found = cls(list(ids), [], [])
        for group in groups:
            if not group:
                continue
            start, end = trimmed(text, (offsets[group[0]][0], offsets[group[-1]][1]))
            if start < end:
                found.groups.append(list(group))
                found.phrases.append((text[start:end], (start, end)))
        return found


@dataclass(frozen=True, eq=False)
class GivenText:
    """A text in pieces that stands as the answer to a question about one picture, such as a panoptic narrative.

    Each piece is tokenised alone, as the paper's models read them (sections 4.2 and A1.3).

    Attributes:
        image: The picture that the text is about.
        question: The user's words before the text, written in the template that the heads were trained with.
        pieces: The text, cut where its phrases begin and end; joined as they are.
        grounded: Indices of the pieces that are to be grounded.
    """

    image: ImageSource
    question: str
    pieces: tuple[str, ...]
    grounded: tuple[int, ...] = ()

    @property
    def text(self) -> str:
        """The pieces, joined as they are."""
        return "".join(self.pieces)

    @property
    def spans(self) -> tuple[Span, ...]:
        """Characters ``[start, end)`` of each grounded piece in `text`, without white space at the ends."""
        return tuple(piece_spans(self.pieces, self.grounded))

    def check(self) -> None:
        """Refuse pieces that are no text, and grounded pieces that are no indices.

        Raises:
            BadText: One of them is.
        """
        for index, piece in enumerate(self.pieces):
            check_text(piece, f"piece {index}")
        for place in self.grounded:
            if isinstance(place, bool) or not hasattr(place, "__index__"):
                raise BadText(f"{place!r} among the grounded pieces is no index; give whole numbers from 0 on")


@dataclass(frozen=True)
class Keyword:
    """Words that the keyword selector chose in a text.

    Attributes:
        phrase: The words, without white space at their ends.
        span: Their characters ``[start, end)`` in the text.
    """

    phrase: str
    span: Span


def plain_tokens(tokenizer: Any, text: str) -> list[int]:
    """Tokenise a given text, in which nothing is a special token."""
    return list(_encoded(tokenizer, text)["input_ids"])


def text_offsets(tokenizer: Any, text: str) -> tuple[list[int], list[Span]]:
    """Tokenise a given text; also return the characters ``[start, end)`` that each token covers."""
    encoded = _encoded(tokenizer, text, return_offsets_mapping=True)
    return list(encoded["input_ids"]), [(int(start), int(end)) for start, end in encoded["offset_mapping"]]


def decoded_offsets(tokenizer: Any, ids: Sequence[int]) -> tuple[str, list[Span]]:
    """Decode generated tokens; also return the characters that each of them covers.

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


def piece_spans(pieces: Sequence[str], grounded: Sequence[int]) -> list[Span]:
    """Return the characters of some pieces in the joined text, without white space at their ends."""
    starts = [0]
    for piece in pieces:
        starts.append(starts[-1] + len(piece))
    text = "".join(pieces)
    return [trimmed(text, (starts[index], starts[index + 1])) for index in grounded]


def span_tokens(text: str, offsets: Sequence[Span], span: Span) -> list[int]:
    """Return the indices of the tokens that share a character with a span of the text.

    Raises:
        EmptyPhrase: The span is not within the text, or has no words or no token.
    """
    check_within(text, span)
    start, end = trimmed(text, span)
    found = [index for index, (first, last) in enumerate(offsets) if first < end and last > start]
    if not found:
        raise EmptyPhrase(f"span {tuple(span)} of the text has no token ({short(text[span[0] : span[1]])})")
    return found


def _shared(text: str, other: str) -> int:
    """Count the leading characters that two texts have in common."""
    length = min(len(text), len(other))
    return next((index for index in range(length) if text[index] != other[index]), length)


def _encoded(tokenizer: Any, text: str, **options: Any) -> Any:
    """Tokenise a given text; where it spells special tokens, they are taken apart.

    Raises:
        BadText: The text is no string that a tokenizer can read, or the tokenizer cannot take such a token apart.
    """
    check_text(text)
    encoded = tokenizer(text, add_special_tokens=False, **options)
    own = _special_ids(tokenizer)
    if own.isdisjoint(encoded["input_ids"]):
        return encoded
    encoded = tokenizer(text, add_special_tokens=False, split_special_tokens=True, **options)
    # A character that the tokenizer does not know becomes its unknown token; the text does not spell that one.
    spelt = (own - {tokenizer.unk_token_id}).intersection(encoded["input_ids"])
    if spelt:
        names = ", ".join(map(repr, tokenizer.convert_ids_to_tokens(sorted(spelt))))
        raise BadText(f"the text {short(text)} spells {names}, a sign to this model; write it differently")
    return encoded


def _special_ids(tokenizer: Any) -> set[int]:
    """Return the ids of the tokens that are signs to the model, not text, its placeholder for pictures among them."""
    placeholder = getattr(tokenizer, "image_token_id", None)
    added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return {*tokenizer.all_special_ids, *added, *([] if placeholder is None else [int(placeholder)])}
