"""Compute metrics of visual question answering with a region: of answers, and of boxes.

==========================  =====================  ===============================================================
printed                     function               rule
==========================  =====================  ===============================================================
``exact``                   `exact_match`          equal after lower case, one space, no full stop at the end
``anls``                    `anls`                 1 - edit distance / longer length, 0 below 0.5 (DocVQA)
``box_acc@0.5``             `box_hit`              IoU above 0.5, strictly (Visual-CoT); a reversed box is a miss
``judged``                  `judge_score`          what a judge wrote after "score: ", held to 0..1 (Visual-CoT)
==========================  =====================  ===============================================================

All results are in 0..1; the mean over questions comes last and weighs every question the same.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

#: Similarity below which ANLS counts nothing.
ANLS_THRESHOLD = 0.5

#: IoU that a box must exceed.
BOX_THRESHOLD = 0.5

_SCORE = re.compile(r"score: ([\d.]+)")


def normalised(text: str) -> str:
    r"""Return text in lower case, single spaces, nothing at the ends.

    >>> normalised("  Main\n Street ")
    'main street'
    """
    return " ".join(text.lower().split())


def exact_match(answer: str, reference: str) -> bool:
    """Return whether an answer is the reference; a full stop at its end is forgiven, "a sign" for "sign" is not.

    >>> exact_match("Lancome.", "LANCOME"), exact_match("a sign", "sign")
    (True, False)
    """
    return normalised(answer).removesuffix(".").rstrip() == normalised(reference).removesuffix(".").rstrip()


def edit_distance(left: str, right: str) -> int:
    """Return the Levenshtein distance: fewest insertions, deletions and replacements of a character.

    >>> edit_distance("kitten", "sitting")
    3
    """
    if len(left) < len(right):
        left, right = right, left
    row = list(range(len(right) + 1))
    for above, character in enumerate(left, start=1):
        diagonal, row[0] = row[0], above
        for place, other in enumerate(right, start=1):
            diagonal, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, diagonal + (character != other))
    return row[-1]


def anls(answer: str, references: Sequence[str]) -> float:
    """Return the average normalised Levenshtein similarity of one question: its best reference.

    Case and runs of spaces do not count; two empty texts are equal.

    >>> anls("Main Stret", ["main street"])
    0.9090909090909091
    >>> anls("no idea", ["main street"])
    0.0
    """
    best = 0.0
    given = normalised(answer)
    for reference in references:
        wanted = normalised(reference)
        longest = max(len(given), len(wanted))
        best = max(best, 1.0 if longest == 0 else 1 - edit_distance(given, wanted) / longest)
    return best if best >= ANLS_THRESHOLD else 0.0


def box_iou(one: Sequence[float], other: Sequence[float]) -> float:
    """Return intersection over union of two boxes ``(x0, y0, x1, y1)``; 0 with a box that encloses nothing.

    IoU is the same in the picture's pixels and in those of the picture padded to a square.

    >>> box_iou((0, 0, 2, 2), (1, 0, 3, 2))
    0.3333333333333333
    """
    areas = [max(box[2] - box[0], 0) * max(box[3] - box[1], 0) for box in (one, other)]
    if not all(areas):
        return 0.0
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0) * max(height, 0)
    return float(shared / (sum(areas) - shared))


def box_hit(box: Sequence[float], truth: Sequence[float]) -> bool:
    """Return whether the IoU of a box exceeds the threshold; exactly the threshold is a miss.

    >>> box_hit((0, 0, 2, 1), (0, 0, 1, 1)), box_hit((0, 0, 1.9, 1), (0, 0, 1, 1))
    (False, True)
    """
    return box_iou(box, truth) > BOX_THRESHOLD


def judge_score(reply: str) -> float | None:
    """Return the score in a judge's reply, None if it has none that can be read.

    As in the benchmark's own code, exactly one "score: " followed by a number is wanted, in any case, and the number is
    held to 0..1. A number with a full stop behind it, on which that code breaks off, is read without it.

    >>> judge_score("Score: 0.8."), judge_score("score: 7"), judge_score("score:1"), judge_score("score: 1 score: 0")
    (0.8, 1.0, None, None)
    """
    found = _SCORE.findall(reply.lower())
    if len(found) != 1:
        return None
    try:
        return min(max(float(found[0].rstrip(".")), 0.0), 1.0)
    except ValueError:
        return None


def yes_or_no(answer: str) -> str:
    """Return what an answer says, as LLaVA's POPE script reads it: "no" if its first sentence denies, else "yes".

    The first sentence ends at the first full stop, commas do not count, words end at spaces; the words "No", "not" and
    "no" deny.

    >>> yes_or_no("No, there is none."), yes_or_no("Yes. There is no doubt."), yes_or_no("It is not.")
    ('no', 'yes', 'no')
    """
    words = answer.split(".")[0].replace(",", "").split(" ")
    return "no" if any(word in ("No", "not", "no") for word in words) else "yes"
