"""Metrics of keyword selection: of the words that should be grounded, which were picked, and what else was.

The paper (section 4.4, table 6) prints precision, recall and F1 and does not say of what. Two units are counted here:

- *words*: a word (letters and digits, with apostrophes and hyphens inside) is wanted if it shares a character with an
  annotated phrase, picked if it shares one with a picked span. It needs no tokenizer, so that selectors of all models
  and noun chunks stand on the same ground.
- *phrases*: a picked span is right if its words and an annotated phrase's words have an IoU of more than 0.5. Spans do
  not overlap, so each has at most one partner. A selector that picks the whole text has recall 1 in words and 0 here.

Counts are summed over texts, then divided. Results are in 0..1; None for 0/0. Spans are characters ``[start, end)``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

Span = tuple[int, int]

_WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")


class PickedCounts(NamedTuple):
    """Units that were picked and wanted, picked, and wanted."""

    right: int
    picked: int
    wanted: int

    def plus(self, other: PickedCounts) -> PickedCounts:
        """Sums of both."""
        return PickedCounts(*(one + two for one, two in zip(self, other, strict=True)))

    @property
    def precision(self) -> float | None:
        """The share of what was picked that was wanted."""
        return self.right / self.picked if self.picked else None

    @property
    def recall(self) -> float | None:
        """The share of what was wanted that was picked."""
        return self.right / self.wanted if self.wanted else None

    @property
    def f1(self) -> float | None:
        """Harmonic mean of both; 0 where nothing is right."""
        return 2 * self.right / (self.picked + self.wanted) if self.picked + self.wanted else None


def words_of(text: str) -> list[Span]:
    """Return where the words of a text are.

    >>> [text[start:end] for text in ["A man's well-worn hat, 2 of them."] for start, end in words_of(text)]
    ['A', "man's", 'well-worn', 'hat', '2', 'of', 'them']
    """
    return [match.span() for match in _WORD.finditer(text)]


def covered(words: Sequence[Span], spans: Iterable[Span]) -> set[int]:
    """Indices of the words that share a character with any of the spans."""
    listed = list(spans)
    return {i for i, (first, last) in enumerate(words) if any(first < end and start < last for start, end in listed)}


def word_counts(text: str, picked: Sequence[Span], wanted: Sequence[Span]) -> PickedCounts:
    """Count words.

    >>> word_counts("a red ball on grass", picked=[(0, 10)], wanted=[(2, 10), (14, 19)])
    PickedCounts(right=2, picked=3, wanted=3)
    """
    words = words_of(text)
    taken, asked = covered(words, picked), covered(words, wanted)
    return PickedCounts(len(taken & asked), len(taken), len(asked))


def phrase_counts(text: str, picked: Sequence[Span], wanted: Sequence[Span]) -> PickedCounts:
    """Count phrases; spans without a word are none.

    >>> phrase_counts("a red ball on grass", picked=[(0, 10)], wanted=[(2, 10), (14, 19)])
    PickedCounts(right=1, picked=1, wanted=2)
    """
    words = words_of(text)
    taken = [one for span in picked if (one := covered(words, [span]))]
    asked = [one for span in wanted if (one := covered(words, [span]))]
    partners = [next((i for i, two in enumerate(asked) if 2 * len(one & two) > len(one | two)), None) for one in taken]
    # Spans of another model may overlap: each annotated phrase is found once.
    return PickedCounts(len({index for index in partners if index is not None}), len(taken), len(asked))


def total(counts: Iterable[PickedCounts]) -> PickedCounts:
    """Sum over texts."""
    summed = PickedCounts(0, 0, 0)
    for one in counts:
        summed = summed.plus(one)
    return summed
