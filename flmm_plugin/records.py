"""What the plugin hands back: named records, and the one JSON string that crosses harness borders.

Masks are ``bool[H, W]`` in the image frame: row 0 is the top row of the picture as it was given, whatever the model's
processor did to it. Boxes are ``(x0, y0, x1, y1)`` in pixels of the same frame, the right and lower edge exclusive, so
``x1 - x0`` is the width. The JSON form is the one that lmms-eval's own ``sam3`` model speaks, plus the text.

This module needs numpy and pycocotools alone: a report or a metric reads results without loading torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from flmm_plugin.errors import BadAnnotation

BoolMask = npt.NDArray[np.bool_]
FloatMap = npt.NDArray[np.float32]
Box = tuple[float, float, float, float]

EMPTY_BOX: Box = (0.0, 0.0, 0.0, 0.0)
LARGEST_MASK = 1 << 28  # pixels; a code of a few characters may claim any size, and would be given the memory


@dataclass(frozen=True, eq=False)
class Grounding:
    """One phrase and where it is in the picture.

    Attributes:
        phrase: The words that were grounded.
        span: Character span ``[start, end)`` of the phrase in the text it was read from; None when it was given alone.
        mask: ``bool[H, W]``, image frame; ``logits > 0``.
        logits: ``float32[H, W]``, image frame; of the refiner, or of the mask decoder when it answered alone.
        decoder_logits: ``float32[H, W]``, image frame; of the mask decoder, before any refinement.
        box: ``(x0, y0, x1, y1)`` pixels around the mask, all 0 for an empty mask.
        score: Mean probability inside the mask, 0 to 1; 0 for an empty mask.
    """

    phrase: str
    span: tuple[int, int] | None
    mask: BoolMask
    logits: FloatMap
    decoder_logits: FloatMap
    box: Box
    score: float

    @classmethod
    def from_logits(
        cls,
        phrase: str,
        logits: FloatMap,
        decoder_logits: FloatMap | None = None,
        span: tuple[int, int] | None = None,
    ) -> Grounding:
        """Derive mask, box and score from ``float32[H, W]`` logits in the image frame."""
        logits = np.ascontiguousarray(logits, dtype=np.float32)
        decoder = logits if decoder_logits is None else np.ascontiguousarray(decoder_logits, dtype=np.float32)
        mask = logits > 0
        return cls(phrase, span, mask, logits, decoder, mask_box(mask), mask_score(mask, logits))


@dataclass(frozen=True)
class ChatAnswer:
    """What the model said: its text and the ids it generated (without the prompt's)."""

    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class GroundedAnswer:
    """What the model said, and where the things it named are. ``text`` and ``token_ids`` equal those of plain chat."""

    text: str
    token_ids: tuple[int, ...]
    groundings: tuple[Grounding, ...]


@dataclass(frozen=True, eq=False)
class MasksReply:
    """A parsed reply of any model that answers with masks.

    Attributes:
        text: What it said, "" if nothing.
        masks: ``bool[H, W]`` each.
        phrases: One mapping per phrase: ``phrase``, ``span`` and ``mask`` (an index into ``masks``).
        boxes: One mapping per mask: ``x_min``, ``y_min``, ``x_max``, ``y_max`` as fractions of the picture.
        scores: One per mask.
        error: ``{"type", "message"}`` when the sample failed or the reply could not be read, else None.
    """

    text: str = ""
    masks: tuple[BoolMask, ...] = ()
    phrases: tuple[dict[str, Any], ...] = ()
    boxes: tuple[dict[str, float], ...] = ()
    scores: tuple[float, ...] = ()
    error: dict[str, str] | None = field(default=None)


def mask_box(mask: BoolMask) -> Box:
    """Tight box ``(x0, y0, x1, y1)`` in pixels around ``bool[H, W]``; all 0 for an empty mask.

    >>> grid = np.zeros((4, 6), dtype=bool)
    >>> grid[1:3, 2:5] = True
    >>> mask_box(grid)
    (2.0, 1.0, 5.0, 3.0)
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if rows.size == 0:
        return EMPTY_BOX
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def mask_score(mask: BoolMask, logits: FloatMap) -> float:
    """Mean ``sigmoid(logits)`` inside the mask, 0 for an empty mask."""
    inside = logits[mask].astype(np.float64)
    if inside.size == 0:
        return 0.0
    # tanh form: exp() of a large negative logit would overflow.
    return float(np.mean(0.5 * (1.0 + np.tanh(0.5 * inside))))


def encode_rle(mask: npt.NDArray[Any]) -> dict[str, Any]:
    """``bool[H, W]`` as a COCO run-length code with a JSON-able string: ``{"size": [H, W], "counts": str}``."""
    if mask.ndim != 2:
        raise BadAnnotation(f"a mask has two axes [H, W], got shape {tuple(mask.shape)}; encode masks one at a time")
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def decode_rle(rle: Mapping[str, Any]) -> BoolMask:
    """Inverse of `encode_rle`; also reads uncompressed counts (a list of run lengths).

    Raises:
        BadAnnotation: The code is not an RLE, or its runs do not add up to its size.
    """
    height, width, counts = _checked_rle(rle)
    code: dict[str, Any] = {"size": [height, width], "counts": counts}
    if isinstance(counts, list):
        code = coco_mask.frPyObjects(code, height, width)
    elif isinstance(counts, str):
        code["counts"] = counts.encode("ascii")
    return np.asarray(coco_mask.decode(code), dtype=bool)


def masks_json(groundings: Sequence[Grounding], text: str = "", size: tuple[int, int] | None = None) -> str:
    """The reply of one sample as a JSON string.

    Args:
        groundings: In the order in which their masks are listed.
        text: What the model said.
        size: ``(H, W)`` of the picture, written as ``"size"`` so that a reply without masks still says it.
    """
    masks, boxes, scores, phrases = [], [], [], []
    for index, grounding in enumerate(groundings):
        masks.append(encode_rle(grounding.mask))
        boxes.append(_fraction_box(grounding))
        scores.append(round(float(grounding.score), 6))
        span = None if grounding.span is None else list(grounding.span)
        phrases.append({"phrase": grounding.phrase, "span": span, "mask": index})
    reply: dict[str, Any] = {"text": text, "phrases": phrases, "masks": masks, "boxes": boxes, "scores": scores}
    if size is not None:
        reply["size"] = [int(size[0]), int(size[1])]
    return json.dumps(reply, ensure_ascii=False)


def error_json(exc: BaseException, text: str = "") -> str:
    """The reply of a sample that failed: no masks, and what went wrong."""
    error = {"type": type(exc).__name__, "message": str(exc)}
    reply = {"text": text, "phrases": [], "masks": [], "boxes": [], "scores": [], "error": error}
    return json.dumps(reply, ensure_ascii=False)


def parse_masks_json(reply: str) -> MasksReply:
    """Read a reply; never raises. Text that is not a masks reply gives no masks and an ``error`` that says why."""
    try:
        content = json.loads(reply)
        if not isinstance(content, dict):
            raise BadAnnotation(f"the reply is a JSON {type(content).__name__}, not an object with `masks`")
        masks = tuple(decode_rle(rle) for rle in content.get("masks") or ())
        error = content.get("error")
        if error is not None and not isinstance(error, dict):
            error = {"type": "error", "message": str(error)}
        if error is not None:
            error = {"type": str(error.get("type", "error")), "message": str(error.get("message", ""))}
        return MasksReply(
            text=str(content.get("text") or ""),
            masks=masks,
            phrases=tuple(dict(phrase) for phrase in content.get("phrases") or ()),
            boxes=tuple({str(k): float(v) for k, v in box.items()} for box in content.get("boxes") or ()),
            scores=tuple(float(score) for score in content.get("scores") or ()),
            error=error,
        )
    except Exception as exc:  # a model under test may answer anything; one odd reply must not end a run
        return MasksReply(text=str(reply), error={"type": type(exc).__name__, "message": str(exc)})


def _fraction_box(grounding: Grounding) -> dict[str, float]:
    height, width = grounding.mask.shape
    x0, y0, x1, y1 = grounding.box
    return {"x_min": x0 / width, "y_min": y0 / height, "x_max": x1 / width, "y_max": y1 / height}


def _checked_rle(rle: Mapping[str, Any]) -> tuple[int, int, Any]:
    """Size and counts of a code whose runs fill its picture exactly; pycocotools itself crashes or lies on others."""
    try:
        height, width = (int(side) for side in rle["size"])
        counts = rle["counts"]
        runs = counts if isinstance(counts, list) else _run_lengths(counts)
        total = sum(int(run) for run in runs)
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise BadAnnotation(f"not a COCO run-length code ({exc!r}); give {{'size': [H, W], 'counts': ...}}") from exc
    if height <= 0 or width <= 0 or total != height * width or any(int(run) < 0 for run in runs):
        raise BadAnnotation(
            f"run-length code covers {total} pixels, its size [{height}, {width}] has {height * width}; "
            "the mask was cut or belongs to another picture"
        )
    if total > LARGEST_MASK:
        raise BadAnnotation(f"run-length code of {total} pixels; no mask here is larger than {LARGEST_MASK}")
    return height, width, counts


def _run_lengths(counts: str | bytes) -> list[int]:
    """Run lengths of COCO's compressed string: 5 bits a character, later runs relative to the one two before."""
    data = counts.encode("ascii") if isinstance(counts, str) else bytes(counts)
    runs: list[int] = []
    position = 0
    while position < len(data):
        value, shift, more = 0, 0, True
        while more:
            if position >= len(data):
                raise ValueError("counts end inside a number")
            digit = data[position] - 48
            if not 0 <= digit < 64:
                raise ValueError(f"character {data[position]} is not of a run-length code")
            value |= (digit & 0x1F) << shift
            more = bool(digit & 0x20)
            position += 1
            shift += 5
            if not more and digit & 0x10:
                value |= -1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
    return runs
