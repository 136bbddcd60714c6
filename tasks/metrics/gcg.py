"""Mask metrics of grounded conversation generation (GCG): AP50, mIoU and mask recall.

A picture has n predicted masks and m annotated ones, each side with its phrases. Everything follows from one table per
picture, the pixel counts of every pair (`PairCounts`), so no mask is kept. The rules are those of the benchmark's own
evaluator, the odd ones too, because they change numbers:

- *mIoU*: pairs are taken greedily, the largest IoU first, until nothing overlaps; the mean runs over the pairs taken,
  so masks without a partner cost nothing. A picture without pairs counts 0.
- *Mask recall*: pairs are taken in the same order, and the search **stops** at the first one whose IoU or whose
  phrases' similarity is below 0.5; later pairs, good or not, are never looked at. A pair with a mask that has no phrase
  voids the whole picture (0 hits), its annotations stay in the denominator.
- *AP50*: COCO's average precision at IoU 0.5 with one class and **equal scores**, so the order of the predictions
  (pictures by id as text, masks as listed) stands in for confidence.

Shapes: tables are ``[m, n]``, annotated by predicted. All results are in 0..1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from flmm_plugin.tasks.metrics.segmentation import iou_counts

FloatTable = npt.NDArray[np.float64]

#: IoU and phrase similarity from which a pair counts for mask recall, and IoU from which one counts for AP50.
THRESHOLD = 0.5

#: COCO looks at no more predictions than this in one picture.
MAX_DETECTIONS = 100

_RECALL_POINTS = np.linspace(0.0, 1.0, 101)


class PairCounts(NamedTuple):
    """Pixels of every pair of an annotated and a predicted mask of one picture.

    Attributes:
        intersection: Pixels in both masks, ``int64[m, n]``.
        union: Pixels in either mask, ``int64[m, n]``; 0 where both masks are empty.
    """

    intersection: npt.NDArray[np.int64]
    union: npt.NDArray[np.int64]

    @property
    def iou(self) -> FloatTable:
        """``float64[m, n]``; two empty masks have nan, as in the benchmark's evaluator."""
        with np.errstate(invalid="ignore"):
            return np.asarray(self.intersection / self.union, dtype=np.float64)

    def of_columns(self, places: Sequence[int]) -> PairCounts:
        """Return the table with these predicted masks in this order; one may come several times."""
        return PairCounts(*(table[:, np.array(places, dtype=np.int64)] for table in self))


def pair_counts(targets: Sequence[npt.NDArray[Any]], predictions: Sequence[npt.NDArray[Any]]) -> PairCounts:
    """Count the pixels of every pair; masks are ``[H, W]`` of one picture, on where they are not 0.

    Raises:
        ValueError: Masks of different sizes; resize them to the picture first.

    >>> square = np.array([[1, 1], [0, 0]])
    >>> pair_counts([square], [square, 1 - square]).iou
    array([[1., 0.]])
    """
    counts = [[iou_counts(pred, target) for pred in predictions] for target in targets]
    table = np.array(counts, dtype=np.int64).reshape(len(targets), len(predictions), 2)
    return PairCounts(table[..., 0], table[..., 1])


def greedy_pairs(iou: FloatTable) -> list[tuple[int, int]]:
    """Pairs (annotated, predicted), largest IoU first, each mask at most once, until no pair overlaps.

    Ties go to the first pair in reading order of the table.

    >>> greedy_pairs(np.array([[0.6, 0.5], [0.7, 0.0]]))
    [(1, 0), (0, 1)]
    """
    left = np.nan_to_num(iou, nan=0.0).copy()
    pairs: list[tuple[int, int]] = []
    while left.size and left.max() > 0:
        row, column = np.unravel_index(int(np.argmax(left)), left.shape)
        pairs.append((int(row), int(column)))
        left[row, :] = 0
        left[:, column] = 0
    return pairs


def picture_miou(iou: FloatTable) -> float:
    """Mean IoU of a picture's greedy pairs, 0 without any; 0 as well where an empty mask meets an empty one (nan).

    >>> round(picture_miou(np.array([[0.6, 0.5], [0.7, 0.0]])), 3), picture_miou(np.zeros((2, 0)))
    (0.6, 0.0)
    """
    if np.isnan(iou).any():
        return 0.0
    # The evaluator's table is predicted by annotated here, the other way round than for recall: it decides ties.
    by_prediction = iou.T
    pairs = greedy_pairs(by_prediction)
    return float(np.mean([by_prediction[pair] for pair in pairs])) if pairs else 0.0


def recall_hits(iou: FloatTable, similarity: FloatTable) -> int:
    """Count the annotated masks of a picture that are found, with a phrase that means the same.

    Args:
        iou: ``[m, n]`` of all masks; nan (two empty masks) counts as no overlap.
        similarity: ``[labels, phrases]``, which may have another number of rows and columns than `iou` where a mask has
            no phrase: the first such mask that comes up voids the picture.

    >>> iou = np.array([[0.9, 0.0], [0.0, 0.8]])
    >>> recall_hits(iou, np.array([[0.2, 0.9], [0.9, 0.9]]))  # the best pair fails: the other is never looked at
    0
    >>> recall_hits(iou, np.array([[0.9, 0.2], [0.2, 0.3]]))
    1
    """
    hits = 0
    for row, column in greedy_pairs(iou):
        if row >= similarity.shape[0] or column >= similarity.shape[1]:
            return 0
        if iou[row, column] < THRESHOLD or similarity[row, column] < THRESHOLD:
            break
        hits += 1
    return hits


def match_detections(iou: FloatTable) -> list[bool]:
    """Tell which of a picture's first 100 predictions are true positives, by COCO's matching, in their order.

    A prediction takes the annotated mask of largest IoU among those still free, the later one of equals; it is true if
    that IoU reaches the threshold.

    >>> match_detections(np.array([[0.9, 0.8]]))
    [True, False]
    """
    table = np.nan_to_num(iou, nan=0.0)[:, :MAX_DETECTIONS]
    free = set(range(table.shape[0]))
    matched: list[bool] = []
    for column in range(table.shape[1]):
        reached = [row for row in sorted(free) if table[row, column] >= THRESHOLD]
        best = max(reached, key=lambda row: (table[row, column], row), default=None)
        matched.append(best is not None)
        free.discard(-1 if best is None else best)
    return matched


def average_precision(matched: Sequence[bool], targets: int) -> float:
    """COCO's 101-point average precision of predictions in the order of their confidence; 0 without annotations.

    Precision at a recall is the largest at that recall or a higher one. COCO itself says -1 where nothing is annotated.

    >>> average_precision([True, False, True], 2)
    0.834983498349835
    """
    if targets == 0:
        return 0.0
    true = np.cumsum(np.asarray(matched, dtype=np.int64))
    ranks = np.arange(1, len(matched) + 1)
    recall, precision = true / targets, true / (ranks + np.spacing(1))
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(recall, _RECALL_POINTS, side="left")
    # A recall that is never reached has the place behind the last one, and precision 0.
    return float(np.mean(np.append(precision, 0.0)[places]))


def ap50(pictures: Iterable[tuple[str, Sequence[bool], int]]) -> float:
    """Average precision over pictures given as (id, matched predictions, number of annotated masks), in any order."""
    listed = sorted(pictures, key=lambda picture: picture[0])
    matched = [hit for _, hits, _ in listed for hit in hits]
    return average_precision(matched, sum(targets for _, _, targets in listed))
