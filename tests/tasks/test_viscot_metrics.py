"""Metrics of answers and regions, held against lmms-eval's and pycocotools' own."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from flmm_plugin.tasks.metrics.viscot import (
    anls,
    box_hit,
    box_iou,
    edit_distance,
    exact_match,
    judge_score,
    yes_or_no,
)

WORDS = st.text(alphabet="ab cdE", max_size=12)


@given(WORDS, WORDS)
@settings(max_examples=60, deadline=None)
def test_edit_distance_is_lmms_eval_s(left: str, right: str) -> None:
    from lmms_eval.api.metrics import levenshtein_distance

    assert edit_distance(left, right) == levenshtein_distance(left, right)


@given(WORDS, st.lists(WORDS, min_size=1, max_size=3))
@settings(max_examples=60, deadline=None)
def test_anls_is_lmms_eval_s(answer: str, references: list[str]) -> None:
    from lmms_eval.api.metrics import anls as theirs

    # Its length counts the spaces that its distance does not; texts that are clean already agree.
    answer, references = " ".join(answer.split()), [" ".join(one.split()) for one in references]
    assert anls(answer, references) == pytest.approx(theirs(references, [answer])["anls"])


@pytest.mark.parametrize(
    ("answer", "reference", "same"),
    [
        ("Yes", "yes", True),
        (" Main  Street. ", "main street", True),
        ("", "", True),
        ("", "a", False),
        ("42", "4.2", False),
        ("the sign", "sign", False),
    ],
)
def test_exact_match(answer: str, reference: str, same: bool) -> None:
    assert exact_match(answer, reference) is same


def test_anls_counts_nothing_below_its_threshold() -> None:
    assert anls("abcd", ["abxy"]) == 0.5
    assert anls("abc", ["axy"]) == 0.0
    assert anls("", [""]) == 1.0


BOXES = st.tuples(*[st.integers(0, 20)] * 2, *[st.integers(1, 20)] * 2)


@given(BOXES, BOXES)
@settings(max_examples=100, deadline=None)
def test_box_iou_is_pycocotools(one: tuple[int, ...], other: tuple[int, ...]) -> None:
    corners = [(x, y, x + w, y + h) for x, y, w, h in (one, other)]
    (theirs,) = coco_mask.iou([list(map(float, one))], [list(map(float, other))], [0])[0]
    assert box_iou(*corners) == pytest.approx(theirs)


def test_boxes_at_the_threshold_and_reversed_ones_miss() -> None:
    assert not box_hit((0, 0, 2, 1), (0, 0, 1, 1))
    assert box_hit((0, 0, 1, 1), (0, 0, 1, 1))
    assert box_iou((5, 5, 1, 1), (5, 5, 1, 1)) == 0.0
    assert box_iou((0, 0, 0, 9), (0, 0, 9, 9)) == 0.0


def test_a_square_frame_changes_no_iou() -> None:
    from flmm_plugin.datasets.viscot import to_padded_square

    size, truth, box = (931, 1870), (86.0, 208.0, 840.0, 257.0), (80.0, 200.0, 800.0, 260.0)
    padded = [to_padded_square(one, size) for one in (truth, box)]
    assert box_iou(*padded) == pytest.approx(box_iou(truth, box))
    side, top = 1870, (1870 - 931) // 2
    assert padded[0] == pytest.approx((86 / side, (208 + top) / side, 840 / side, (257 + top) / side))
    # As fractions of width and height the same boxes lie elsewhere: the frames must not be mixed.
    plain = (86 / 1870, 208 / 931, 840 / 1870, 257 / 931)
    assert box_iou(plain, padded[0]) < 0.5


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("score: 0.8", 0.8),
        ("SCORE: 1", 1.0),
        ("The answer is right.\nscore: 0.5.", 0.5),
        ("score: 3", 1.0),
        ("score: 0", 0.0),
        ("score:1", None),
        ("score: <0.8>", None),
        ("score: 1 or score: 0", None),
        ("score: 0.8.1", None),
        ("score: ..", None),
        ("", None),
    ],
)
def test_what_a_judge_says(reply: str, score: float | None) -> None:
    assert judge_score(reply) == score


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("yes", "yes"),
        ("no", "no"),
        ("No, there is not.", "no"),
        ("There is no dog.", "no"),
        ("Yes. No doubt.", "yes"),
        ("Nope", "yes"),
        ("", "yes"),
    ],
)
def test_the_first_sentence_says_yes_unless_it_denies(answer: str, said: str) -> None:
    assert yes_or_no(answer) == said
