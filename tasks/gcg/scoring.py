"""Score captions with masks.

A model answers with lmms-eval's masks JSON and a text. Phrases are the JSON's own or, without them, what stands between
``<p>`` and ``</p>`` in the text; mask i belongs to phrase i; the caption is the text without such marks and ``[SEG]``.
Printed numbers are 100 times those of `flmm_plugin.tasks.metrics`, as in the benchmark's table.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from flmm_plugin.records import BoolMask, MasksReply, decode_rle, parse_masks_json
from flmm_plugin.tasks.gcg import encoders
from flmm_plugin.tasks.metrics import gcg, text
from flmm_plugin.tasks.metrics.bootstrap import Ratio, Sample, Statistic, with_interval
from flmm_plugin.tasks.metrics.totals import counted
from flmm_plugin.tasks.sample_log import reference_of, referred_document, reply_of

_PHRASE = re.compile(r"<p>(.*?)</p>", re.DOTALL)
_MARK = re.compile(r"<[^<>]*>|\[SEG\]")


class Prediction(NamedTuple):
    """Caption, phrases and masks of a reply.

    Attributes:
        caption: Without marks; "" if the request failed.
        phrases: Phrase i names mask i; masks beyond the last phrase have none.
        masks: Each mask once, ``bool[H, W]`` in the image frame.
        order: For each predicted mask its place in `masks`: several phrases may name the same one.
        usable: False if the reply is counted as an error.
    """

    caption: str
    phrases: tuple[str, ...]
    masks: tuple[BoolMask, ...]
    order: tuple[int, ...]
    usable: bool


def score_reply(doc: Mapping[str, Any], reply: Any) -> dict[str, dict[str, Any]]:
    """Return what one picture contributes to each metric.

    Args:
        doc: A document of `read_documents`, or of `logged_document`.
        reply: The model's masks JSON, or anything else it said, as a text or as lmms-eval nests it.

    Returns:
        For METEOR and CIDEr both captions; for the mask metrics the pixel counts of every pair of an annotated and a
        predicted mask (``I``, ``U``, rows are annotated) with labels and phrases; ``items``, ``errors`` and
        ``complete``; ``reference``, what the reply was compared with.
    """
    size = (doc["height"], doc["width"])
    said = read_prediction(parse_masks_json(reply_of(reply), size), size)
    targets = [decode_rle(rle, size) for rle in doc["masks"]]
    pairs = gcg.pair_counts(targets, said.masks).of_columns(said.order)
    captions = {"image_id": doc["image_id"], "caption": said.caption, "reference": doc["caption"]}
    table = {
        "image_id": doc["image_id"],
        "I": pairs.intersection.tolist(),
        "U": pairs.union.tolist(),
        "predicted": len(said.order),
    }
    phrases = {"labels": list(doc["labels"]), "phrases": list(said.phrases), "encoder": doc["sentence_encoder"]}
    return {
        "METEOR": captions,
        "CIDEr": captions,
        "AP50": table,
        "mIoU": table,
        "mask_recall": {**table, **phrases},
        **counted(1, int(not said.usable), doc["expected_items"]),
        "reference": {
            "phrases": list(doc["labels"]),
            **reference_of(doc, "masks", "orientation", "image_id", "caption"),
        },
    }


def logged_document(sample: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document of a line of lmms-eval's sample log, as far as `score_reply` needs it."""
    return {
        **referred_document(sample, "image_id", "caption", "masks"),
        "orientation": sample["reference"].get("orientation"),
        "labels": sample["reference"]["phrases"],
        "sentence_encoder": sample["mask_recall"]["encoder"],
    }


def read_prediction(reply: MasksReply, size: tuple[int, int]) -> Prediction:
    """Caption, phrases and masks of a reply; a mask of another size than the picture's counts as an empty one.

    All masks count. Those that the reply's ``phrases`` name come first, in the order of the phrases.
    """
    empty = np.zeros(size, dtype=bool)
    caption = " ".join(_MARK.sub(" ", reply.text).split())
    if reply.error is not None:
        # What could not be read as a reply is still what the model said; a failed sample said nothing.
        return Prediction(caption, (), (), (), usable=False)
    places = range(len(reply.masks))
    if reply.phrases:
        listed = [(str(one.get("phrase", "")), one.get("mask")) for one in reply.phrases]
        named = [(words, at) for words, at in listed if type(at) is int and at in places]
        phrases = tuple(words for words, _ in named)
        taken = dict.fromkeys(at for _, at in named)
        order = (*(at for _, at in named), *(at for at in places if at not in taken))
    else:
        phrases = tuple(" ".join(words.split()) for words in _PHRASE.findall(reply.text))
        order = tuple(places)
    fitting = all(mask.shape == size for mask in reply.masks)
    masks = tuple(mask if mask.shape == size else empty for mask in reply.masks)
    return Prediction(caption, phrases, masks, order, usable=fitting and bool(caption or masks))


def _iou(sample: Sample) -> gcg.FloatTable:
    shape = (len(sample["I"]), sample["predicted"])
    counts = [np.array(sample[key], dtype=np.int64).reshape(shape) for key in ("I", "U")]
    return gcg.PairCounts(*counts).iou


def _detections(samples: Sequence[Sample]) -> list[tuple[str, list[bool], int]]:
    return [(sample["image_id"], gcg.match_detections(_iou(sample)), len(sample["I"])) for sample in samples]


def _hits(samples: Sequence[Sample], encoder: encoders.Encoder | None = None) -> list[tuple[int, int]]:
    """Hits and labels of each picture; every phrase of the set is encoded once."""
    texts = list(dict.fromkeys(text for sample in samples for text in (*sample["labels"], *sample["phrases"])))
    if not texts:
        return [(0, 0) for _ in samples]
    named = {sample["encoder"] for sample in samples}
    if encoder is None:
        if len(named) != 1:
            raise ValueError(f"predictions of several sentence encoders ({sorted(named)}): score them with one of them")
        encoder = encoders.load(named.pop())
    vectors = dict(zip(texts, encoder(texts), strict=True))
    found = []
    for sample in samples:
        labels, phrases = sample["labels"], sample["phrases"]
        similarity = np.zeros((len(labels), len(phrases)))
        if labels and phrases:
            similarity = encoders.cosine(
                np.stack([vectors[one] for one in labels]), np.stack([vectors[one] for one in phrases])
            )
        found.append((gcg.recall_hits(_iou(sample), similarity), len(labels)))
    return found


def _captions(samples: Sequence[Sample]) -> list[text.Caption]:
    return text.tokenize([text.Caption(sample["caption"], sample["reference"]) for sample in samples])


@functools.cache
def _meteor() -> text.Meteor:
    return text.Meteor()


def _share(pairs: Sequence[tuple[int, int]]) -> float:
    labels = sum(count for _, count in pairs)
    return 100 * sum(hits for hits, _ in pairs) / labels if labels else 0.0


def _mean(values: Sequence[float]) -> float:
    return 100 * float(np.mean(values)) if len(values) else 0.0


_METEOR = Statistic(
    reduce=lambda samples: [_meteor().statistics(caption) for caption in _captions(samples)],
    combine=lambda counts: 100 * _meteor().score(counts),
)
# How much a word weighs is taken from the whole set, in a resample too.
_CIDER = Statistic(reduce=lambda samples: text.cider(_captions(samples)), combine=_mean)
_AP50 = Statistic(reduce=_detections, combine=lambda pictures: 100 * gcg.ap50(pictures))
_MIOU = Ratio(lambda sample: (gcg.picture_miou(_iou(sample)), 1))


@with_interval(_METEOR)
def meteor(samples: Sequence[Sample]) -> float:
    """Return METEOR of all captions, times 100."""
    return _METEOR(samples)


@with_interval(_CIDER)
def cider(samples: Sequence[Sample]) -> float:
    """Return CIDEr of all captions, times 100; words weigh by this very set."""
    return _CIDER(samples)


@with_interval(_AP50)
def ap50(samples: Sequence[Sample]) -> float:
    """Return AP at IoU 0.5, percent."""
    return _AP50(samples)


@with_interval(_MIOU)
def miou(samples: Sequence[Sample]) -> float:
    """Return mIoU of greedy pairs, percent."""
    return _MIOU(samples)


@with_interval(Statistic(reduce=_hits, combine=_share))
def mask_recall(samples: Sequence[Sample], encoder: encoders.Encoder | None = None) -> float:
    """Return the share of annotated masks found with a phrase that means the same, percent.

    Args:
        samples: Records of `score_reply` for ``mask_recall``.
        encoder: Compares phrases; None: the one that the records name.
    """
    return _share(_hits(samples, encoder))
