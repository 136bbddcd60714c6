"""Count and score phrases that may mean several objects, or nothing (GRES).

One *item* is one phrase with one predicted mask and the union of its objects. Prediction and target may be empty; an
empty prediction says that nothing in the picture is meant.

==============  ======================================================================================================
name            rule
==============  ======================================================================================================
gIoU            mean of I/U; where nothing is meant, 1 for an empty prediction and 0 for any other
cIoU            sum of intersections / sum of unions; a right empty prediction adds nothing to either
N-acc           of the phrases that mean nothing, the share with an empty prediction
T-acc           of the phrases that mean something, the share with a prediction that is not empty
N-acc, as code  the first one, with 1 added to the denominator: what ReLA's released evaluator prints
T-acc, as code  of the empty predictions, the share that is right, with 1 added to the denominator: likewise
==============  ======================================================================================================

The paper (arXiv 2306.00968) defines N-acc and T-acc as above, and so do the evaluators of GSVA and DeRIS.

Results are in 0..1; None where a rate has no item that it could be of.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from flmm_plugin.tasks.metrics.segmentation import failed_counts, iou_counts


class PhraseCounts(NamedTuple):
    """Pixels of one item, whether it means something, and whether the prediction says so."""

    intersection: int
    union: int
    target: bool
    found: bool

    @property
    def iou(self) -> float:
        """Intersection over union; where nothing is meant, 1 for an empty prediction and 0 for any other."""
        if not self.target:
            return float(not self.found)
        return self.intersection / self.union if self.union else 0.0


def phrase_counts(
    pred: npt.NDArray[Any] | None, target: npt.NDArray[Any], means_something: bool, smallest: int = 1
) -> PhraseCounts:
    """Count one item.

    Args:
        pred: Predicted mask, ``[H, W]`` in the image frame; None: the request failed, which is wrong in any case.
        target: Union of the objects, ``[H, W]``; empty where nothing is meant.
        means_something: Whether the phrase has objects.
        smallest: Pixels that a prediction needs, else it is empty.

    >>> empty, full = np.zeros((10, 10)), np.ones((10, 10))
    >>> phrase_counts(empty, empty, False), phrase_counts(full, empty, False).iou
    (PhraseCounts(intersection=0, union=0, target=False, found=False), 0.0)
    >>> phrase_counts(full, full, True).iou, phrase_counts(None, empty, False).iou
    (1.0, 0.0)
    """
    if pred is None:
        return PhraseCounts(*failed_counts(target), means_something, not means_something)
    found = int(np.count_nonzero(pred)) >= smallest
    counts = iou_counts(pred if found else np.zeros_like(pred), target)
    return PhraseCounts(*counts, means_something, found)


def giou(items: Sequence[PhraseCounts]) -> float:
    """Return the mean over all items; 0 without items.

    >>> giou([PhraseCounts(1, 2, True, True), PhraseCounts(0, 0, False, False)])
    0.75
    """
    return sum(item.iou for item in items) / len(items) if items else 0.0


def n_acc(items: Sequence[PhraseCounts], more: int = 0) -> float | None:
    """Return the share of right answers among the phrases that mean nothing; `more` is added to their number.

    >>> n_acc([PhraseCounts(0, 0, False, False), PhraseCounts(0, 90, False, True)])
    0.5
    """
    none = [not item.found for item in items if not item.target]
    return sum(none) / (len(none) + more) if none else None


def t_acc(items: Sequence[PhraseCounts]) -> float | None:
    """Return the share of the phrases that mean something for which something was found.

    >>> t_acc([PhraseCounts(5, 90, True, True), PhraseCounts(0, 90, True, False)])
    0.5
    """
    some = [item.found for item in items if item.target]
    return sum(some) / len(some) if some else None


def t_acc_as_code(items: Sequence[PhraseCounts]) -> float | None:
    """Return what ReLA's evaluator prints as T-acc: right ones among the empty predictions, and 1 below.

    >>> t_acc_as_code([PhraseCounts(0, 0, False, False), PhraseCounts(0, 90, True, False)])
    0.3333333333333333
    """
    if all(item.target for item in items):
        return None
    empty = [not item.target for item in items if not item.found]
    return sum(empty) / (len(empty) + 1)
