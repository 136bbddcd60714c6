"""Check given words before a model is loaded; this module needs no torch."""

from __future__ import annotations

import operator
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from flmm_plugin.errors import BadText, EmptyPhrase

Span = tuple[int, int]

#: Unicode categories of characters that show nothing: separators, controls, format marks, lone surrogates.
_UNSEEN = ("Zs", "Zl", "Zp", "Cc", "Cf", "Cs")


def checked_phrases(phrases: Iterable[str]) -> list[str]:
    """Return the phrases of any iterable as a list, each of them a string of words.

    Raises:
        BadText: It is no list of strings, or a phrase has a lone surrogate.
        EmptyPhrase: It is one string, whose letters would be phrases, or a phrase has no words.
    """
    if isinstance(phrases, str):
        raise EmptyPhrase(f"phrases is one string; give a list: [{short(phrases)}]")
    if isinstance(phrases, bytes | bytearray | Mapping) or not isinstance(phrases, Iterable):
        raise BadText(f"phrases is a {type(phrases).__name__}; give a list of strings, such as ['the red circle']")
    found = list(phrases)
    for index, phrase in enumerate(found):
        check_text(phrase, f"phrase {index}")
        if not has_words(phrase):
            raise EmptyPhrase(f"phrase {index} is empty ({short(phrase)}); name what to ground, or leave it out")
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
                f"span {index} is {short(span)}; a span is a pair of whole numbers (start, end): characters of the "
                "text from start up to, not including, end"
            ) from exc
        check_within(text, found[-1])
    return found


def check_text(text: object, what: str = "the text") -> None:
    """Check that something is a string that a tokenizer can read.

    Args:
        text: Value to check; anything but a string is refused.
        what: Name of the value in an error.

    Raises:
        BadText: It is no string, or has a lone surrogate: half of a character, which no encoding of Unicode has.
    """
    if not isinstance(text, str):
        raise BadText(f"{what} is {short(text)}, of type {type(text).__name__}; give a string of words")
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise BadText(
            f"{what} has a lone surrogate at character {exc.start} ({short(text[exc.start])}), which is half of a "
            "character; repair the text where it was read (open the file with its right encoding)"
        ) from exc


def has_words(text: str) -> bool:
    """Tell whether a text has a character that can be seen; zero-width and control characters cannot."""
    return any(unicodedata.category(character) not in _UNSEEN for character in text)


def trimmed(text: str, span: Span) -> Span:
    """Return the span without the white space at its ends (tokens carry their leading space)."""
    start, end = span
    words = text[start:end]
    return start + len(words) - len(words.lstrip()), end - (len(words) - len(words.rstrip()))


def check_within(text: str, span: Span) -> None:
    """Refuse a span that is not within the text, or covers no words of it."""
    if not 0 <= span[0] <= span[1] <= len(text):
        order = "; it ends before it begins" if span[0] > span[1] else ""
        raise EmptyPhrase(f"span {tuple(span)} is not within the text of {len(text)} characters{order}")
    if not has_words(text[slice(*span)]):
        raise EmptyPhrase(f"span {tuple(span)} of the text covers no words ({short(text[slice(*span)])})")


def short(value: object) -> str:
    """Return a value as code, cut to what a line of an error can hold."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:50]}... ({len(text)} characters)"
