"""Words and phrases that were picked, against sklearn and against sets written out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import precision_recall_fscore_support

from flmm_plugin.tasks.metrics.keywords import PickedCounts, covered, phrase_counts, total, word_counts, words_of

TEXT = "In this image there is a brown dog's bowl, near two well-fed dogs."


def span(words: str) -> tuple[int, int]:
    start = TEXT.index(words)
    return start, start + len(words)


def test_words() -> None:
    found = [TEXT[start:end] for start, end in words_of(TEXT)]
    assert found == [
        "In",
        "this",
        "image",
        "there",
        "is",
        "a",
        "brown",
        "dog's",
        "bowl",
        "near",
        "two",
        "well-fed",
        "dogs",
    ]
    assert words_of("... !") == []
    assert [("caf\u00e9 na\u00efve")[a:b] for a, b in words_of("caf\u00e9 na\u00efve")] == ["caf\u00e9", "na\u00efve"]


def test_a_part_of_a_word_takes_the_word_and_punctuation_takes_none() -> None:
    words = words_of(TEXT)
    start, _ = span("bowl")
    assert covered(words, [(start + 1, start + 2)]) == {8}
    assert covered(words, [(start + 4, start + 6)]) == set()


@pytest.mark.parametrize("seed", range(5))
def test_words_equal_sklearn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    words = words_of(TEXT)
    picked, wanted = rng.random((2, len(words))) < 0.5
    counts = word_counts(
        TEXT,
        [w for w, on in zip(words, picked, strict=True) if on],
        [w for w, on in zip(words, wanted, strict=True) if on],
    )
    precision, recall, f1, _ = precision_recall_fscore_support(wanted, picked, average="binary", zero_division=0)
    assert (counts.precision, counts.recall, counts.f1) == pytest.approx((precision, recall, f1))


def test_phrases_need_more_than_half_of_their_words_in_common() -> None:
    wanted = [span("brown dog's bowl"), span("dogs.")]
    assert phrase_counts(TEXT, [span("a brown dog's bowl")], wanted) == (1, 1, 2)
    assert phrase_counts(TEXT, [span("bowl"), span("two well-fed dogs")], wanted) == (0, 2, 2)
    # Exactly a half is not more than it.
    assert phrase_counts(TEXT, [span("well-fed dogs")], [span("dogs.")]) == (0, 1, 1)
    # All in one span has every word, and no phrase.
    everything = (0, len(TEXT))
    assert word_counts(TEXT, [everything], wanted).recall == 1
    assert phrase_counts(TEXT, [everything], wanted) == (0, 1, 2)
    # The same phrase found twice is found once.
    assert phrase_counts(TEXT, [span("brown dog's bowl"), span("a brown dog's bowl")], wanted) == (1, 2, 2)
    assert phrase_counts(TEXT, [span(",")], [span(".")]) == (0, 0, 0)


def test_sums_come_before_divisions() -> None:
    summed = total([PickedCounts(1, 1, 4), PickedCounts(0, 3, 0)])
    assert summed == (1, 4, 4)
    assert (summed.precision, summed.recall, summed.f1) == (0.25, 0.25, 0.25)
    nothing = total([])
    assert (nothing.precision, nothing.recall, nothing.f1) == (None, None, None)
