"""Captions: CIDEr against its definition written out, METEOR against recorded values, and life without Java."""

from __future__ import annotations

import math
import shutil
from collections import Counter

import pytest

from flmm_plugin.errors import ToolNotFound
from flmm_plugin.tasks.metrics import text
from flmm_plugin.tasks.metrics.text import Caption

needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="needs a Java runtime on the PATH")

TOKENIZED = [
    Caption("a large red circle at the left", "a large red circle at the top left"),
    Caption("a dog runs", "two dogs run over the grass"),
    Caption("a blue star", "a small blue star near a red circle"),
    Caption("", "an empty answer"),
]


def cider_by_definition(captions: list[Caption]) -> list[float]:
    """CIDEr-D of one reference each: clipped tf-idf n-grams, a Gaussian of the lengths, n from 1 to 4, times 10."""

    def grams(sentence: str, n: int) -> Counter[tuple[str, ...]]:
        words = sentence.split()
        return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))

    scores = []
    for caption in captions:
        total = 0.0
        for n in range(1, 5):
            seen = Counter(gram for other in captions for gram in grams(other.reference, n))
            weight = {gram: math.log(len(captions)) - math.log(max(1, count)) for gram, count in seen.items()}
            said, meant = grams(caption.candidate, n), grams(caption.reference, n)
            one = {gram: count * weight.get(gram, math.log(len(captions))) for gram, count in said.items()}
            two = {gram: count * weight[gram] for gram, count in meant.items()}
            norms = math.hypot(*one.values()) * math.hypot(*two.values()) if one and two else 0.0
            product = sum(min(value, two.get(gram, 0.0)) * two.get(gram, 0.0) for gram, value in one.items())
            apart = len(caption.candidate.split()) - len(caption.reference.split())
            # The penalty of the peers' code counts bigrams: sentences without one have length 0.
            if min(len(caption.candidate.split()), len(caption.reference.split())) == 0:
                apart = max(len(caption.candidate.split()) - 1, 0) - max(len(caption.reference.split()) - 1, 0)
            total += (product / norms if norms else 0.0) * math.exp(-(apart**2) / (2 * 6.0**2))
        scores.append(10 * total / 4)
    return scores


def test_cider_is_its_definition() -> None:
    assert text.cider(TOKENIZED) == pytest.approx(cider_by_definition(TOKENIZED), abs=1e-9)
    assert text.cider(TOKENIZED)[0] > 1
    assert text.cider(TOKENIZED)[3] == 0


def test_cider_of_part_of_a_set_is_another_number() -> None:
    assert text.cider(TOKENIZED[:2])[0] != pytest.approx(text.cider(TOKENIZED)[0], abs=1e-3)
    assert text.cider(TOKENIZED[:1]) == [0.0]
    assert text.cider([]) == []
    assert text.cider([Caption("a dog", "")]) == [0.0]


@needs_java
def test_tokens_are_lower_case_words_without_punctuation_whatever_the_text_holds() -> None:
    found = text.tokenize(
        [
            Caption("A large, red circle -- at the Top.", ""),
            Caption("...", "line one\nline two\r\nline\u2028three"),
            Caption("", "Is it? Yes!"),
        ]
    )
    assert found == [
        Caption("a large red circle at the top", ""),
        Caption("", "line one line two line three"),
        Caption("", "is it yes"),
    ]


def test_without_java_the_message_names_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ToolNotFound, match=r"install a JRE.*flmm score"):
        text.tokenize(TOKENIZED)
    with pytest.raises(ToolNotFound, match="install a JRE"):
        text.Meteor()


@needs_java
@pytest.mark.slow
def test_meteor_is_what_pycocoevalcap_s_own_wrapper_says() -> None:
    """Recorded from pycocoevalcap 1.2's ``Meteor().compute_score`` on these two captions."""
    captions = [Caption("a large red circle", "a red circle"), Caption("dog a", "a dog")]
    with text.Meteor() as meteor:
        counts = [meteor.statistics(caption) for caption in captions]
        assert meteor.score(counts) == pytest.approx(0.4094387337454809, abs=1e-12)
        assert meteor.score(counts[:1]) == pytest.approx(0.4197512445337911, abs=1e-12)
        assert meteor.score([meteor.statistics(Caption("", "a dog"))]) == 0
        assert meteor.score([]) == 0
    with pytest.raises((ToolNotFound, ValueError)):
        meteor.statistics(captions[0])
