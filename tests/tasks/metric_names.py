"""Metrics that each benchmark prints, in the order of its README."""

from __future__ import annotations

_COUNTS = ("items", "errors", "complete")
_RATES = ("F1", "recall", "precision")
_IOU = ("gIoU", "cIoU", "cIoU_shares")

GCG = ("METEOR", "CIDEr", "AP50", "mIoU", "mask_recall", *_COUNTS)
REFCOCO = ("cIoU", "mIoU", "gIoU", "P@0.5", "P@0.6", "P@0.7", "P@0.8", "P@0.9", *_COUNTS)
GREFCOCO = (
    *("gIoU", "cIoU", "N_acc", "T_acc", "N_acc_as_code", "T_acc_as_code", "P@0.5", "P@0.7", "P@0.8", "P@0.9"),
    *_COUNTS,
)
REASONSEG_VAL = (*_IOU, *_COUNTS)
REASONSEG_TEST = (*(f"{name}{part}" for part in ("", "_short", "_long") for name in _IOU), *_COUNTS)
PNG = (
    *("AR", "AR_thing", "AR_stuff", "AR_singular", "AR_plural", "acc@0.5", "pixel_acc", "cIoU", "items", "errors"),
    *("skipped_phrases", "skipped_narratives", "complete", "recall_curve"),
)
KEYWORDS = (*(f"{of}{rate}" for of in ("", "phrase_", "spacy_", "spacy_phrase_") for rate in _RATES), *_COUNTS)
VISCOT_ANSWERS = ("exact", "anls", *_COUNTS)
VISCOT_BOXES = ("box_acc@0.5", "boxes", "reversed_boxes", "whole_number_boxes", "both_views")
