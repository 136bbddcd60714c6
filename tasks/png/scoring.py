"""Score replies to panoptic narratives.

Every phrase of a document is one item whether or not the model gave it a usable mask: one without has IoU 0 and no
pixel right, and is counted as an error. A document whose *target* cannot be read has no items; its phrases are counted
as skipped. Average recall, accuracies and cIoU are percentages, as in the papers' tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from flmm_plugin import files
from flmm_plugin.records import encode_rle, parse_masks_json
from flmm_plugin.tasks.mask_scoring import count_items, counts_of, match_masks, percent, record_of
from flmm_plugin.tasks.metrics.bootstrap import Ratio, with_interval
from flmm_plugin.tasks.metrics.png import RecallSums, pixel_accuracy
from flmm_plugin.tasks.metrics.totals import counted
from flmm_plugin.tasks.png.benchmark import targets_of
from flmm_plugin.tasks.sample_log import reference_of, referred_document, reply_of

Sample = Mapping[str, Any]

#: Printed name -> kind of item, None for all.
RECALLS: Mapping[str, str | None] = {
    "AR": None, "AR_thing": "thing", "AR_stuff": "stuff", "AR_singular": "singular", "AR_plural": "plural",
}  # fmt: skip

_CURVE_NAMES = dict(zip(RECALLS, ("all", "things", "stuff", "singulars", "plurals"), strict=True))


def score_reply(doc: Mapping[str, Any], reply: Any) -> dict[str, dict[str, Any]]:
    """Return the counts of one document, keyed by metric.

    Args:
        doc: A document of `read_documents`, or of `logged_document`.
        reply: The model's masks JSON, or anything else it said, as a text or as lmms-eval nests it.

    Returns:
        For each recall ``{"I": [...], "U": [...]}`` over the items of its kind, and so for ``acc@0.5`` and ``cIoU``
        over all; ``pixel_acc`` with ``pixels`` of the picture too; ``recall_curve`` with the ``kinds`` of the items;
        a ``{"count"}`` for the others; and ``reference``, what the reply was compared with.

    Raises:
        BadAnnotation: The panoptic map cannot be read: there is nothing to compare with.
    """
    targets = targets_of(doc)
    size = (doc["height"], doc["width"])
    predictions = match_masks(parse_masks_json(reply_of(reply), size), doc["expressions"], size)
    counts = count_items(predictions, targets)
    every = record_of(counts)
    sample: dict[str, dict[str, Any]] = {
        name: record_of([item for item, kinds in zip(counts, doc["kinds"], strict=True) if kind in (None, *kinds)])
        for name, kind in RECALLS.items()
    }
    pixels = size[0] * size[1]
    # An empty mask has most pixels right; a failed request has none.
    unions = [pixels if pred is None else item.union for pred, item in zip(predictions, counts, strict=True)]
    return {
        **sample,
        "acc@0.5": every,
        "cIoU": every,
        "pixel_acc": {**every, "U": unions, "pixels": pixels},
        "recall_curve": {**every, "kinds": doc["kinds"]},
        **counted(len(counts), sum(pred is None for pred in predictions), doc["expected_items"]),
        **_skipped(doc, phrases=0, narratives=0),
        "reference": {
            "phrases": doc["expressions"],
            "masks": [encode_rle(target) for target in targets],
            **reference_of(doc, "kinds"),
        },
    }


def skipped(doc: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what stands for a document whose target cannot be read."""
    return {**counted(0, 0, doc["expected_items"]), **_skipped(doc, phrases=len(doc["expressions"]), narratives=1)}


def _skipped(doc: Mapping[str, Any], phrases: int, narratives: int) -> dict[str, dict[str, Any]]:
    return {
        "skipped_phrases": {"count": phrases, "left_out": doc["left_out"]["phrases"]},
        "skipped_narratives": {"count": narratives, "left_out": doc["left_out"]["narratives"]},
    }


def logged_document(sample: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document of a logged sample, as far as `score_reply` needs it."""
    return {
        **referred_document(sample, "masks", "kinds"),
        "expressions": sample["reference"]["phrases"],
        "left_out": {
            "phrases": sample["skipped_phrases"]["left_out"],
            "narratives": sample["skipped_narratives"]["left_out"],
        },
    }


@with_interval(Ratio(lambda sample: _recall_terms(sample)))
def average_recall(samples: Iterable[Sample]) -> float | None:
    """Return average recall of the samples' items, percent; None if there are none."""
    return percent(RecallSums.of(counts_of(samples)).average_recall())


@with_interval(Ratio(lambda sample: (RecallSums.of(counts_of([sample])).over_half, len(sample["I"]))))
def accuracy(samples: Iterable[Sample]) -> float | None:
    """Return the share of items with IoU > 0.5, percent."""
    return percent(RecallSums.of(counts_of(samples)).accuracy())


@with_interval(Ratio(lambda sample: _pixel_terms(sample)))
def pixel_acc(samples: Iterable[Sample]) -> float | None:
    """Return the share of pixels that are rightly in or out, mean over items, percent."""
    listed = list(samples)
    return percent(pixel_accuracy(counts_of(listed), [one["pixels"] for one in listed for _ in one["I"]]))


def _recall_terms(sample: Sample) -> tuple[float, float]:
    sums = RecallSums.of(counts_of([sample]))
    return (sums.average_recall() or 0.0) * sums.items, sums.items


def _pixel_terms(sample: Sample) -> tuple[float, float]:
    wrong = sum(item.union - item.intersection for item in counts_of([sample]))
    return len(sample["I"]) - wrong / sample["pixels"], len(sample["I"])


def skips(samples: Iterable[Sample]) -> int:
    """Count what has no score: left out when the file was read (the same in each sample), or for a damaged map."""
    listed = list(samples)
    damaged = sum(int(sample["count"]) for sample in listed)
    return damaged + max((int(sample["left_out"]) for sample in listed), default=0)


def curves(samples: Iterable[Sample]) -> dict[str, RecallSums]:
    """Return the sums of each printed recall, from samples of ``recall_curve``."""
    sums = {name: RecallSums() for name in RECALLS}
    for sample in samples:
        for item, kinds in zip(counts_of([sample]), sample["kinds"], strict=True):
            for name, kind in RECALLS.items():
                if kind in (None, *kinds):
                    sums[name].update(item)
    return sums


def draw_curves(sums: Mapping[str, RecallSums], path: Path, title: str = "") -> Path:
    """Write the recall curves as a PNG; the area under a line is the average recall in its label.

    Args:
        sums: By printed name of the recall; a kind without items has no line.
        path: The file; its folder is made.
        title: Text above the picture, none if empty.

    Returns:
        ``path``.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Not through pyplot: nobody's backend is changed and nothing has to be closed.
    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, one in sums.items():
        recall = one.average_recall()
        if recall is None:
            continue
        thresholds, recalls = zip(*one.curve(), strict=True)
        label = f"{_CURVE_NAMES[name]}: {100 * recall:.1f} ({one.items})"
        axes.plot(thresholds, recalls, label=label, linewidth=2.4 if name == "AR" else 1.4)
    axes.set(xlabel="IoU threshold", ylabel="recall", xlim=(0, 1), ylim=(0, 1.02), title=title)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(title="average recall, % (phrases)", loc="lower left")
    with files.new_file(path) as part:
        figure.savefig(part, format=path.suffix.removeprefix(".") or "png", dpi=120)
    return path
