"""Define the records that the plugin returns, and the JSON string that crosses harness borders.

Masks are ``bool[H, W]`` in the image frame: row 0 is the top row of the picture as it was given, whatever the model's
processor did to it. Boxes are ``(x0, y0, x1, y1)`` in pixels of the same frame, the right and lower edge exclusive, so
``x1 - x0`` is the width. The JSON form is the one that lmms-eval's own ``sam3`` model speaks, plus the text.

This module needs numpy and pycocotools alone: a report or a metric reads results without loading torch. Drawing loads
matplotlib when it is asked for.
"""

from __future__ import annotations

import io
import json
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from flmm_plugin import files
from flmm_plugin.errors import BadAnnotation, BadImage, UnknownArgument

if TYPE_CHECKING:
    from PIL import Image

BoolMask = npt.NDArray[np.bool_]
FloatMap = npt.NDArray[np.float32]
Box = tuple[float, float, float, float]
LogitsSource = Callable[[], FloatMap]

EMPTY_BOX: Box = (0.0, 0.0, 0.0, 0.0)
#: A part of a mask with fewer pixels than this share of the largest part's does not stretch the box.
SPECK = 0.1
#: Pixels of a mask, and of all masks of a reply: a code of a few characters may claim any size.
LARGEST_MASK = 1 << 28

_MANY_MASKS = 100  # of one picture; COCO's evaluation looks at no more either
_REPLY_KEYS = ("text", "masks", "boxes", "phrases", "error")
_LONGEST_NUMBER = 7  # characters of a run's length in COCO's compressed form: 32 bits, 5 in each


@dataclass(frozen=True, eq=False, repr=False)
class Grounding:
    """One phrase and where it is in the picture.

    A mask is kept as bits, and logits as what they are computed from: `mask`, `logits` and `decoder_logits` are made
    anew each time they are looked at.

    Attributes:
        phrase: The words that were grounded.
        span: Character span ``[start, end)`` of the phrase in the text it was read from; None when it was given alone.
        box: ``(x0, y0, x1, y1)`` pixels around the parts of the mask that are no specks (`thing_box`), all 0 for an
            empty mask.
        score: Mean probability inside the mask, 0 to 1; 0 for an empty mask.
        size: Height and width of the picture.
        bits: The mask row by row, eight pixels a byte, ``uint8[ceil(H * W / 8)]``.
        logits_source: Computes `logits` from what is kept.
        decoder_source: Computes `decoder_logits` from what is kept.
        picture: The picture, RGB, to draw on; None where only the mask is known.
    """

    phrase: str
    span: tuple[int, int] | None
    box: Box
    score: float
    size: tuple[int, int]
    bits: npt.NDArray[np.uint8] = field(repr=False)
    logits_source: LogitsSource = field(repr=False)
    decoder_source: LogitsSource = field(repr=False)
    picture: Image.Image | None = field(default=None, repr=False)

    @classmethod
    def of(
        cls,
        phrase: str,
        logits: LogitsSource,
        decoder_logits: LogitsSource | None = None,
        span: tuple[int, int] | None = None,
        picture: Image.Image | None = None,
    ) -> Grounding:
        """Derive mask, box and score from logits that can be computed again.

        Args:
            phrase: The words that were grounded.
            logits: Gives ``float32[H, W]``, image frame.
            decoder_logits: The same of the mask decoder; None: it gave the final ones.
            span: Place of the phrase in a text, if it has one.
            picture: The picture, if it is known.
        """
        values = logits()
        mask = values > 0
        box, score = thing_box(mask), mask_score(mask, values)
        decoder = decoder_logits or logits
        return cls(phrase, span, box, score, mask.shape, np.packbits(mask), logits, decoder, picture)

    @classmethod
    def from_logits(
        cls,
        phrase: str,
        logits: FloatMap,
        decoder_logits: FloatMap | None = None,
        span: tuple[int, int] | None = None,
    ) -> Grounding:
        """Derive mask, box and score from ``float32[H, W]`` logits in the image frame, which are kept."""
        decoder = None if decoder_logits is None else partial(np.ascontiguousarray, decoder_logits, dtype=np.float32)
        return cls.of(phrase, partial(np.ascontiguousarray, logits, dtype=np.float32), decoder, span)

    @property
    def mask(self) -> BoolMask:
        """``bool[H, W]``, image frame: ``logits > 0``."""
        flat = np.unpackbits(self.bits, count=self.size[0] * self.size[1])
        return flat.view(np.bool_).reshape(self.size)

    @property
    def logits(self) -> FloatMap:
        """``float32[H, W]``, image frame; of the refiner, or of the mask decoder when it answered alone."""
        return self.logits_source()

    @property
    def decoder_logits(self) -> FloatMap:
        """``float32[H, W]``, image frame; of the mask decoder, before any refinement."""
        return self.decoder_source()

    def __repr__(self) -> str:
        height, width = self.size
        box = ", ".join(f"{side:.0f}" for side in self.box)
        share = np.unpackbits(self.bits).sum() / (height * width)
        return f"Grounding({self.phrase!r}, box=({box}), score={self.score:.2f}, {share:.1%} of {width} x {height})"

    def overlay(self) -> Image.Image:
        """Draw the mask on its picture."""
        return Groundings([self]).overlay()

    def _repr_png_(self) -> bytes | None:
        return Groundings([self])._repr_png_()


class Groundings(list[Grounding]):
    """The groundings of one picture, in the order in which they were asked for; a notebook shows them drawn."""

    def overlay(self) -> Image.Image:
        """Draw all masks on the picture, numbered, with what each number means below.

        Raises:
            BadImage: The picture is not known: the masks were read from a file.
        """
        from flmm_plugin.figures import overlay

        pictures = [one.picture for one in self if one.picture is not None]
        if not pictures:
            raise BadImage("there is no picture to draw on; use flmm_plugin.figures.overlay(picture, groundings)")
        return overlay(pictures[0], self)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the drawing (``.png``, ``.jpg``), or the masks as a COCO file (``.json``).

        Raises:
            UnknownArgument: Another ending.
        """
        place = Path(path)
        forms = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
        if place.suffix == ".json":
            files.write(place, json.dumps(self.to_coco(place.stem), ensure_ascii=False) + "\n")
        elif place.suffix in forms:
            with files.new_file(place) as part:
                self.overlay().save(part, format=forms[place.suffix])
        else:
            raise UnknownArgument(f"save writes .png, .jpg or .json, not {place.name!r}")

    def to_coco(self, name: str = "picture") -> dict[str, Any]:
        """Return the masks as the content of a COCO file; each annotation has its ``phrase`` and ``score``.

        Boxes are ``x, y, width, height`` in pixels, as COCO has them. Empty masks are left out: COCO has none.

        Args:
            name: File name of the picture.
        """
        annotations: list[dict[str, Any]] = []
        for one in self:
            x0, y0, x1, y1 = one.box
            if x1 > x0:
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": 1,
                        "category_id": 1,
                        "phrase": one.phrase,
                        "score": round(float(one.score), 6),
                        "bbox": [x0, y0, x1 - x0, y1 - y0],
                        "area": int(one.mask.sum()),
                        "iscrowd": 0,
                        "segmentation": encode_rle(one.mask),
                    }
                )
        height, width = self[0].size if self else (0, 0)
        image = {"id": 1, "file_name": name, "width": width, "height": height}
        return {"images": [image], "annotations": annotations, "categories": [{"id": 1, "name": "phrase"}]}

    def to_supervision(self) -> Any:
        """Return ``supervision.Detections`` with masks, boxes (``xyxy``, pixels), scores and phrases.

        Raises:
            UnknownArgument: supervision is not installed.
        """
        try:
            import supervision
        except ImportError as exc:
            raise UnknownArgument("to_supervision needs supervision: pip install supervision") from exc
        if not self:
            return supervision.Detections.empty()
        return supervision.Detections(
            xyxy=np.array([one.box for one in self], dtype=np.float32),
            mask=np.stack([one.mask for one in self]),
            confidence=np.array([one.score for one in self], dtype=np.float32),
            data={"class_name": np.array([one.phrase for one in self])},
        )

    def _repr_png_(self) -> bytes | None:
        """Draw for a notebook; None, which shows the text, where there is nothing to draw on."""
        if all(one.picture is None for one in self):
            return None
        buffer = io.BytesIO()
        self.overlay().save(buffer, format="PNG")
        return buffer.getvalue()


@dataclass(frozen=True)
class ChatAnswer:
    """An answer: its text, and the ids that the model generated (without the prompt's)."""

    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class GroundedAnswer:
    """An answer, and the place of the things that it names. ``text`` and ``token_ids`` equal those of plain chat."""

    text: str
    token_ids: tuple[int, ...]
    groundings: tuple[Grounding, ...]


@dataclass(frozen=True, eq=False)
class MasksReply:
    """A parsed reply of any model that answers with masks.

    Attributes:
        text: The words of the reply, "" if it has none.
        masks: One ``bool[H, W]`` per mask, image frame.
        phrases: One mapping per phrase: ``phrase``, ``span`` and ``mask`` (an index into ``masks``).
        boxes: One mapping per mask: ``x_min``, ``y_min``, ``x_max``, ``y_max`` as fractions of the picture.
        scores: One number per mask, 0 to 1.
        error: ``{"type", "message"}`` when the sample failed or the reply could not be read, else None.
    """

    text: str = ""
    masks: tuple[BoolMask, ...] = ()
    phrases: tuple[dict[str, Any], ...] = ()
    boxes: tuple[dict[str, float], ...] = ()
    scores: tuple[float, ...] = ()
    error: dict[str, str] | None = field(default=None)


def mask_box(mask: BoolMask) -> Box:
    """Return the tight box ``(x0, y0, x1, y1)`` in pixels around ``bool[H, W]``; all 0 for an empty mask.

    >>> grid = np.zeros((4, 6), dtype=bool)
    >>> grid[1:3, 2:5] = True
    >>> mask_box(grid)
    (2.0, 1.0, 5.0, 3.0)
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if rows.size == 0:
        return EMPTY_BOX
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def thing_box(mask: BoolMask) -> Box:
    """Return the box of what a mask shows: around its parts, without those smaller than `SPECK` of the largest one.

    Parts touch at sides or corners. The mask itself keeps every pixel; docs/heads.md says how the limit was chosen.

    >>> grid = np.zeros((20, 40), dtype=bool)
    >>> grid[5:15, 5:15] = grid[5:15, 20:25] = True
    >>> grid[0, 39] = True  # one pixel
    >>> thing_box(grid)
    (5.0, 5.0, 25.0, 15.0)
    """
    import cv2  # reports read records without it

    whole = mask_box(mask)
    left, top, right, bottom = (int(side) for side in whole)
    part = np.ascontiguousarray(mask[top:bottom, left:right]).view(np.uint8)
    if not part.size:
        return whole
    number, _, facts, _ = cv2.connectedComponentsWithStats(part, connectivity=8)
    if number < 3:  # the ground and at most one part
        return whole
    areas = facts[1:, cv2.CC_STAT_AREA]
    kept = facts[1:][areas >= SPECK * areas.max()]
    x0, y0, width, height = kept[:, :4].T
    x1, y1 = x0 + width, y0 + height
    return float(left + x0.min()), float(top + y0.min()), float(left + x1.max()), float(top + y1.max())


def mask_score(mask: BoolMask, logits: FloatMap) -> float:
    """Return the mean ``sigmoid(logits)`` inside the mask, 0 for an empty mask."""
    inside = logits[mask].astype(np.float64)
    if inside.size == 0:
        return 0.0
    # tanh form: exp() of a large negative logit would overflow.
    return float(np.mean(0.5 * (1.0 + np.tanh(0.5 * inside))))


def encode_rle(mask: npt.NDArray[Any]) -> dict[str, Any]:
    """Encode ``bool[H, W]`` as a COCO run-length code with a JSON-able string: ``{"size": [H, W], "counts": str}``."""
    if mask.ndim != 2:
        raise BadAnnotation(f"a mask has two axes [H, W], got shape {tuple(mask.shape)}; encode masks one at a time")
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def decode_rle(rle: Mapping[str, Any], size: tuple[int, int] | None = None) -> BoolMask:
    """Decode what `encode_rle` writes, and uncompressed counts (a list of run lengths).

    Args:
        rle: ``{"size": [H, W], "counts": text or list of run lengths}``.
        size: ``(H, W)`` that it must have; None: any.

    Raises:
        BadAnnotation: The code is not an RLE, its runs do not add up to its size, or it is of another size.
    """
    height, width, runs = _runs(rle, size)
    return np.repeat(np.arange(runs.size) % 2 == 1, runs).reshape((height, width), order="F")


def checked_rle(rle: Mapping[str, Any], size: tuple[int, int] | None = None) -> dict[str, Any]:
    """Rewrite a run-length code as `encode_rle` does; no pixel is decoded. Takes and raises what `decode_rle` does."""
    height, width, runs = _runs(rle, size)
    code = coco_mask.frPyObjects({"size": [height, width], "counts": runs.tolist()}, height, width)
    return {"size": [height, width], "counts": code["counts"].decode("ascii")}


def masks_json(groundings: Sequence[Grounding], text: str = "", size: tuple[int, int] | None = None) -> str:
    """Write the reply of one sample as a JSON string.

    Args:
        groundings: In the order in which their masks are listed.
        text: The words of the model's answer.
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


def error_json(exc: BaseException) -> str:
    """Write the reply of a sample that failed: no masks, and what went wrong."""
    error = {"type": type(exc).__name__, "message": str(exc)}
    reply = {"text": "", "phrases": [], "masks": [], "boxes": [], "scores": [], "error": error}
    return json.dumps(reply, ensure_ascii=False)


def parse_masks_json(reply: Any, size: tuple[int, int] | None = None) -> MasksReply:
    """Read a reply; never raises.

    Text that is not a masks reply gives no masks and an ``error`` that says why. A request that failed said nothing:
    an error record, a JSON object that was cut or cannot be read, and what is no text have no ``text`` either.

    Args:
        reply: The answer of a model, of whatever type.
        size: ``(H, W)`` of the picture, where it is known: a hundred masks of it are read however large it is. All
            other replies may claim `LARGEST_MASK` pixels in all.
    """
    try:
        if not isinstance(reply, str):
            raise BadAnnotation(f"the reply is no text but {type(reply).__name__}")
        content = json.loads(reply)
        if not isinstance(content, dict) or content.keys().isdisjoint(_REPLY_KEYS):
            raise BadAnnotation(f"the reply is no JSON object with any of {', '.join(_REPLY_KEYS)}")
        error = content.get("error")
        if error is not None:
            error = error if isinstance(error, dict) else {"message": error}
            told = {"type": str(error.get("type", "error")), "message": str(error.get("message", ""))}
            return MasksReply(error=told)
        return MasksReply(
            text=_text(content.get("text")),
            masks=_decoded(content.get("masks") or (), size),
            phrases=tuple(dict(phrase) for phrase in content.get("phrases") or ()),
            boxes=tuple({str(k): _finite(v) for k, v in box.items()} for box in content.get("boxes") or ()),
            scores=tuple(_finite(score) for score in content.get("scores") or ()),
        )
    except Exception as exc:  # a model under test may answer anything; one odd reply must not end a run
        text = reply if isinstance(reply, str) and (reply.lstrip()[:1] != "{" or _is_other_object(reply)) else ""
        return MasksReply(text=text, error={"type": type(exc).__name__, "message": str(exc)})


def answer_of(reply: Any) -> str | None:
    """Return the answer in a reply of words, or in the ``text`` of a masks reply; None where the request failed.

    >>> answer_of("Yes."), answer_of('{"text": "Yes.", "masks": []}'), answer_of(" "), answer_of('{"error": "x"}')
    ('Yes.', 'Yes.', None, None)
    """
    if not isinstance(reply, str):
        return None
    said = parse_masks_json(reply).text if reply.lstrip()[:1] == "{" else reply
    return said if said.strip() else None


def _is_other_object(reply: str) -> bool:
    """Tell a JSON object that is no masks reply: words that happen to stand in braces."""
    try:
        content = json.loads(reply)
    except (ValueError, RecursionError):
        return False
    return isinstance(content, dict) and content.keys().isdisjoint(_REPLY_KEYS)


def _decoded(codes: Sequence[Any], size: tuple[int, int] | None) -> tuple[BoolMask, ...]:
    """Decode the masks of a reply, none of them before all are known to be small enough together."""
    allowed = LARGEST_MASK if size is None else max(LARGEST_MASK, _MANY_MASKS * size[0] * size[1])
    claimed = sum(math.prod(_checked_size(code)) for code in codes)
    if claimed > allowed:
        raise BadAnnotation(f"{len(codes)} masks of {claimed} pixels together; a reply has no more than {allowed}")
    return tuple(decode_rle(code) for code in codes)


def _text(said: Any) -> str:
    if not isinstance(said, str | None):
        raise BadAnnotation(f"`text` is no text but {type(said).__name__}")
    return said or ""


def _finite(number: Any) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{value} is no measure")
    return value


def _fraction_box(grounding: Grounding) -> dict[str, float]:
    height, width = grounding.size
    x0, y0, x1, y1 = grounding.box
    return {"x_min": x0 / width, "y_min": y0 / height, "x_max": x1 / width, "y_max": y1 / height}


def _runs(rle: Mapping[str, Any], size: tuple[int, int] | None) -> tuple[int, int, npt.NDArray[np.int64]]:
    """Return height, width and run lengths ``int64[runs]`` of a code whose runs fill its picture exactly.

    Work and memory grow with the length of the code, which is bounded by its picture before it is looked at;
    pycocotools itself crashes or lies on codes that do not fill their picture.
    """
    try:
        height, width = _checked_size(rle, size)
        counts = rle["counts"]
        runs = _listed_runs(counts, height * width) if isinstance(counts, list) else _read_runs(counts, height * width)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as exc:
        raise BadAnnotation(f"not a COCO run-length code ({exc!r}); give {{'size': [H, W], 'counts': ...}}") from exc
    total = int(runs.sum())
    if total != height * width or (runs < 0).any() or (runs > height * width).any():
        raise BadAnnotation(
            f"run-length code covers {total} pixels, its size [{height}, {width}] has {height * width}; "
            "the mask was cut or belongs to another picture"
        )
    return height, width, runs


def _checked_size(rle: Mapping[str, Any], wanted: tuple[int, int] | None = None) -> tuple[int, int]:
    height, width = (_whole(side) for side in rle["size"])
    if min(height, width) <= 0 or height * width > LARGEST_MASK:
        raise BadAnnotation(
            f"run-length code of size [{height}, {width}]; a mask has at least 1 pixel and at most {LARGEST_MASK}"
        )
    if wanted is not None and (height, width) != tuple(wanted):
        raise BadAnnotation(f"run-length code of size [{height}, {width}] on a picture of {list(wanted)}")
    return height, width


def _whole(number: Any) -> int:
    """Return a whole number; text, truth values and numbers with a fraction are none."""
    if isinstance(number, bool):
        raise TypeError(f"{number} is no number")
    return operator.index(number)


def _listed_runs(counts: list[Any], pixels: int) -> npt.NDArray[np.int64]:
    if len(counts) > pixels + 1:
        raise ValueError(f"{len(counts)} runs in {pixels} pixels")
    return np.array([_whole(run) for run in counts], dtype=np.int64)


def _read_runs(counts: str | bytes, pixels: int) -> npt.NDArray[np.int64]:
    """Read run lengths of COCO's compressed string: 5 bits a character, later runs relative to the one two before."""
    if len(counts) > _LONGEST_NUMBER * (pixels + 1):
        raise ValueError(f"{len(counts)} characters for {pixels} pixels")
    digits = np.frombuffer(counts.encode("ascii") if isinstance(counts, str) else counts, dtype=np.uint8).astype(int)
    digits -= 48
    if ((digits < 0) | (digits >= 64)).any():
        raise ValueError("a character is not of a run-length code")
    last = np.flatnonzero(digits < 32)
    if digits.size and (last.size == 0 or last[-1] != digits.size - 1):
        raise ValueError("counts end inside a number")
    first = np.concatenate([[0], last[:-1] + 1]) if last.size else last
    lengths = last - first + 1
    if lengths.size and lengths.max() > _LONGEST_NUMBER:
        raise ValueError(f"a number of {lengths.max()} characters")
    shifts = 5 * (np.arange(digits.size) - np.repeat(first, lengths))
    values = np.add.reduceat((digits & 0x1F) << shifts, first) if first.size else first
    runs = np.where(digits[last] & 0x10, values - (1 << 5 * lengths), values).astype(np.int64)
    for chain in (runs[1::2], runs[2::2]):  # views: the first number and the first two of the others are absolute
        np.cumsum(chain, out=chain)
    return runs
