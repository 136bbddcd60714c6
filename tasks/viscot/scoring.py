"""Score answers and boxes of visual questions.

A model answers with text, or with lmms-eval's masks JSON that carries ``text`` and a box: ``flmm_*`` models do the
latter where a second look was asked for. A sample that failed is answered with an error record or not at all: it
scores 0 and counts as an error.

``exact``, ``anls``, ``judged``, ``box_acc@0.5`` and ``both_views`` are percentages of questions; the others are numbers
of questions. A box is compared in pixels of the original picture.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from flmm_plugin.datasets.viscot import ORIENTATION, encloses
from flmm_plugin.errors import BadImage
from flmm_plugin.images import open_image
from flmm_plugin.records import answer_of, parse_masks_json
from flmm_plugin.tasks.metrics.totals import counted
from flmm_plugin.tasks.metrics.viscot import anls, box_hit, exact_match
from flmm_plugin.tasks.sample_log import reference_of, referred_document, reply_of

Sample = Mapping[str, Any]

#: What a log has that no scoring without a judge can make again.
KEPT = ("judged", "judge_items")


@dataclass(frozen=True)
class Reply:
    """A model's answer to one question.

    Attributes:
        text: The answer in words, "" if there is none.
        box: ``[x0, y0, x1, y1]`` as fractions of the picture, None if it gave none.
        size: ``(H, W)`` of the picture, as the reply states it.
        views: What a second look answered from, ``both`` or ``crop``; None if there was none.
        failed: Whether the request failed, so that nothing of it counts.
    """

    text: str
    box: tuple[float, float, float, float] | None = None
    size: tuple[int, int] | None = None
    views: str | None = None
    failed: bool = False


def read_reply(reply: Any) -> Reply:
    """Read text or masks JSON, never raising: a model under test may answer anything."""
    parsed = parse_masks_json(reply)
    if parsed.error is not None:
        answer = answer_of(reply)
        return Reply(answer or "", failed=answer is None)
    # Of several boxes (a detector's instances) the best-scored one counts, the first if none is scored.
    scores = parsed.scores if len(parsed.scores) == len(parsed.boxes) else (0.0,) * len(parsed.boxes)
    best = max(zip(scores, range(len(scores)), strict=True), key=lambda pair: (pair[0], -pair[1]), default=None)
    box = None
    if best is not None:
        sides = parsed.boxes[best[1]]
        box = tuple(sides.get(side, 0.0) for side in ("x_min", "y_min", "x_max", "y_max"))
    content = json.loads(reply)
    size = content.get("size") or next((mask.shape for mask in parsed.masks), None)
    cot = content.get("visual_cot")
    views = str(cot.get("views")) if isinstance(cot, dict) else None
    failed = box is None and not parsed.text.strip()
    return Reply(parsed.text, box, _sides(size), views, failed)  # type: ignore[arg-type]


def _sides(size: Any) -> tuple[int, int] | None:
    """Return ``(H, W)`` as a reply states it; None if it is no size."""
    if isinstance(size, list | tuple) and len(size) == 2 and all(type(side) is int and side > 0 for side in size):
        return size[0], size[1]
    return None


def score_reply(doc: Mapping[str, Any], reply: Any) -> dict[str, dict[str, Any]]:
    """Return the scores of one question, keyed by metric; without those of a judge.

    Args:
        doc: A document of `read_documents`, or of `logged_document`.
        reply: The model's masks JSON or answer, as a text or as lmms-eval nests it.
    """
    said = read_reply(reply_of(reply).strip())
    answer = said.text.strip()
    sample: dict[str, dict[str, Any]] = {
        "exact": {"score": float(bool(answer) and exact_match(answer, doc["answer"]))},
        "anls": {"score": anls(answer, [doc["answer"]]) if answer else 0.0},
        **counted(1, int(said.failed), doc["expected_items"]),
        "reference": {
            **reference_of(doc, "question", "answer", "question_id"),
            "box": list(doc["box"]),
            "box_from": doc.get("box_from", ""),
        },
    }
    if doc["with_boxes"]:
        box = _pixels(said, doc)
        sample["box_acc@0.5"] = {"score": float(box is not None and box_hit(box, doc["box"])), "box": box}
        sample["boxes"] = {"count": int(box is not None)}
        sample["whole_number_boxes"] = {"count": int(doc.get("box_from") == "benchmark")}
        sample["reversed_boxes"] = {"count": int(not encloses(tuple(doc["box"])))}
        if said.views is not None:
            sample["both_views"] = {"score": float(said.views == "both")}
    return sample


def logged_document(sample: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document of a line of lmms-eval's sample log, as far as `score_reply` needs it."""
    return {
        **referred_document(sample, "question", "answer", "box", "question_id"),
        "box_from": sample["reference"].get("box_from", ""),
        "with_boxes": "boxes" in sample,
    }


def _pixels(said: Reply, doc: Mapping[str, Any]) -> list[float] | None:
    """Return the reply's box in pixels of the picture."""
    if said.box is None:
        return None
    size = (doc["height"], doc["width"]) if doc["height"] else said.size
    if size is None:
        try:
            picture = open_image(doc["image_path"], ORIENTATION)
        except BadImage:
            return None
        size = picture.height, picture.width
    height, width = size
    x0, y0, x1, y1 = said.box
    return [x0 * width, y0 * height, x1 * width, y1 * height]


def percent(samples: Iterable[Sample]) -> float:
    """Return the mean score of all questions, percent; 0 where there are none."""
    scores = [float(sample["score"]) for sample in samples]
    return 100 * sum(scores) / len(scores) if scores else 0.0
