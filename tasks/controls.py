"""Score control replies: what the same scoring gives to replies that saw nothing, or another picture.

A number means something beside what a model without eyes would get. Every control rewrites the logged replies and
scores them by the functions that scored the run; no model is needed. What a control does not touch (a caption, when
masks are replaced) is not printed again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from flmm_plugin.errors import UnknownArgument
from flmm_plugin.records import BoolMask, decode_rle, encode_rle, mask_box, parse_masks_json
from flmm_plugin.tasks.rescoring import Log, Options, quiet, score
from flmm_plugin.tasks.sample_log import Record, reply_of
from flmm_plugin.tasks.task_files import aggregations

Reference = Mapping[str, Any]
Size = tuple[int, int]

_SEED = 0  # of the one order in which documents exchange their replies
_WITHOUT_INTERVAL = Options(resamples=0)


@dataclass(frozen=True)
class Logged:
    """One document of a log.

    Attributes:
        reply: What the model said, masks JSON or text.
        reference: What it was compared with.
        other: Place of a document about another picture; each document is the other of one.
    """

    reply: str
    reference: Reference
    other: int


@dataclass(frozen=True)
class Controlled:
    """A run's numbers beside those of its controls.

    Attributes:
        path: The samples file of the run.
        task: Name of the task that was run.
        documents: Number of lines in the log.
        values: Control -> metric -> value; the run itself is `RUN`. None: the metric could not be computed. A metric
            that the control does not touch is absent.
    """

    path: Path
    task: str
    documents: int
    values: Mapping[str, Mapping[str, float | None]]


RUN = "run"

#: What each control is; printed by ``flmm score --controls``.
CONTROLS: Mapping[str, str] = {
    "whole": "every mask is the whole picture; of a text, all words",
    "centre": "every mask is a centred box of half the sides",
    "wrong_phrase": "masks change places: another phrase's of the same reply, or another picture's if it has one alone",
    "other_picture": "the whole reply to a document about another picture",
    "constant": "the most frequent true answer, whatever is asked",
    "truth": "the reference itself: the most that the scoring can give",
}


def controlled(path: Path, task: str | None = None, metrics: Sequence[str] = ()) -> Controlled:
    """Score a log and its controls.

    Args:
        path: Written by lmms-eval with ``--log_samples``.
        task: Name of the task that was run; None: as the file's name says.
        metrics: Only these; none: all that are numbers.

    Raises:
        UnknownArgument: The task's log has no whole reference, so that nothing but the logged counts can be scored.
        DataNotFound, BadAnnotation: As `flmm_plugin.tasks.rescoring.rescore`.
    """
    log = Log(path, task)
    if not log.has_references:
        raise UnknownArgument(f"{path.name} has no whole reference to score controls of {log.task} against")
    documents = logged(log.lines)
    run = [log.score(line) for line in log.lines]
    functions = {
        metric: function
        for metric, function in aggregations(log.task).items()
        if (not metrics or metric in metrics) and _is_share(metric, run)
    }
    values: dict[str, dict[str, float | None]] = {RUN: {}}
    for metric, function in functions.items():
        found = score(metric, function, run, _WITHOUT_INTERVAL)
        if not found.problem.startswith("not a number"):
            values[RUN][metric] = found.value
    for control in tqdm(_possible(documents), desc=f"{log.task}: controls", disable=quiet()):
        replies = rewritten(control, documents)
        records = [log.score(line, reply) for line, reply in zip(log.lines, replies, strict=True)]
        values[control] = {
            metric: score(metric, functions[metric], records, _WITHOUT_INTERVAL).value
            for metric in values[RUN]
            if any(one.get(metric) != two.get(metric) for one, two in zip(records, run, strict=True))
        }
    return Controlled(path, log.task, len(log.lines), values)


def _is_share(metric: str, records: Sequence[Record]) -> bool:
    """Return whether documents have a metric that a control can say something about: no number of items."""
    samples = [record[metric] for record in records if metric in record]
    return bool(samples) and not any(isinstance(sample, Mapping) and "count" in sample for sample in samples)


def logged(lines: Sequence[Record]) -> list[Logged]:
    """Return the documents in the order of their lines, each with another one."""
    pictures = [_picture(line) for line in lines]
    order = [int(place) for place in np.random.default_rng(_SEED).permutation(len(lines))]
    others = dict(zip(order, [*order[1:], *order[:1]], strict=True))
    for place in order:  # exchange until no two of one picture are paired, where that can be had
        if pictures[others[place]] != pictures[place]:
            continue
        for rival in order:
            if pictures[others[rival]] != pictures[place] and pictures[others[place]] != pictures[rival]:
                others[place], others[rival] = others[rival], others[place]
                break
    return [
        Logged(reply_of(line["filtered_resps"]), line["reference"], others[place]) for place, line in enumerate(lines)
    ]


def _picture(line: Record) -> Any:
    reference = line["reference"]
    return reference.get("image_path") or reference.get("image_source") or line["doc_id"]


def _possible(documents: Sequence[Logged]) -> list[str]:
    """Controls that make sense for these replies, in the order of `CONTROLS`."""
    masks = [len(parse_masks_json(one.reply).masks) for one in documents]
    spans = any("spans" in one.reference for one in documents)
    answers = any("answer" in one.reference for one in documents)
    sense = {
        "whole": spans or any(masks),
        "centre": any(masks),
        "wrong_phrase": any(count > 1 for count in masks),
        "other_picture": len(documents) > 1,
        "constant": answers,
        "truth": True,
    }
    return [name for name in CONTROLS if sense[name]]


def rewritten(control: str, documents: Sequence[Logged]) -> list[str]:
    """Return the replies of a control, one per document.

    Raises:
        UnknownArgument: There is no such control.
    """
    if control not in CONTROLS:
        raise UnknownArgument(f"no control {control!r}; there are {', '.join(CONTROLS)}")
    if control == "constant":
        answers = Counter(str(one.reference["answer"]) for one in documents if "answer" in one.reference)
        return [_answered(one.reply, answers.most_common(1)[0][0]) for one in documents]
    return [_REWRITE[control](one, documents[one.other]) for one in documents]


def _whole(one: Logged, _: Logged) -> str:
    if "spans" in one.reference:
        text = one.reference["text"]
        return json.dumps({"text": text, "masks": [], "phrases": [{"phrase": text, "span": [0, len(text)]}]})
    return _with_masks(one, [np.ones(mask.shape, bool) for mask in _masks(one)])


def _centre(one: Logged, _: Logged) -> str:
    masks = []
    for mask in _masks(one):
        box = np.zeros(mask.shape, bool)
        high, wide = mask.shape[0] // 4, mask.shape[1] // 4
        box[high : mask.shape[0] - high, wide : mask.shape[1] - wide] = True
        masks.append(box)
    return _with_masks(one, masks)


def _wrong_phrase(one: Logged, other: Logged) -> str:
    masks = _masks(one)
    if len(masks) != 1:
        return _with_masks(one, [*masks[1:], *masks[:1]])
    size, strange = (masks[0].shape[0], masks[0].shape[1]), _masks(other)
    return _with_masks(one, [fitted(strange[0], size) if strange else np.zeros(size, dtype=np.bool_)])


def _other_picture(one: Logged, other: Logged) -> str:
    size = _size(one.reference)
    masks = _masks(other)
    if size is None or not masks:
        return other.reply
    return _with_masks(other, [fitted(mask, size) for mask in masks])


def _truth(one: Logged, _: Logged) -> str:
    reference = one.reference
    if "spans" in reference:
        phrases: list[dict[str, Any]] = [
            {"phrase": "", "span": list(span), "mask": None} for span in reference["spans"]
        ]
        return json.dumps({"text": reference["text"], "masks": [], "phrases": phrases})
    if "masks" in reference:
        phrases = [{"phrase": text, "mask": at} for at, text in enumerate(reference["phrases"])]
        masks = [encode_rle(decode_rle(rle)) for rle in reference["masks"]]
        return json.dumps({"text": reference.get("caption", ""), "masks": masks, "phrases": phrases})
    answer, size = str(reference["answer"]), _size(reference)
    if size is None or "box" not in reference:
        return answer
    return json.dumps({"text": answer, "masks": [], "boxes": [_fractions(reference["box"], size)], "size": list(size)})


_REWRITE: Mapping[str, Callable[[Logged, Logged], str]] = {
    "whole": _whole,
    "centre": _centre,
    "wrong_phrase": _wrong_phrase,
    "other_picture": _other_picture,
    "truth": _truth,
}


def fitted(mask: BoolMask, size: Size) -> BoolMask:
    """Return a mask of another picture, ``bool[H', W']``, stretched to ``(H, W)`` by nearest pixels.

    >>> fitted(np.array([[True, False]]), (2, 4)).astype(int).tolist()
    [[1, 1, 0, 0], [1, 1, 0, 0]]
    """
    rows = np.arange(size[0]) * mask.shape[0] // size[0]
    columns = np.arange(size[1]) * mask.shape[1] // size[1]
    stretched: BoolMask = mask[rows][:, columns]
    return stretched


def _masks(one: Logged) -> tuple[BoolMask, ...]:
    return parse_masks_json(one.reply).masks


def _with_masks(one: Logged, masks: Sequence[BoolMask]) -> str:
    """Return a reply with other masks and their boxes; one without masks as it is."""
    if not masks:
        return one.reply
    content = json.loads(one.reply)
    content["masks"] = [encode_rle(mask) for mask in masks]
    if content.get("boxes"):
        content["boxes"] = [_fractions(mask_box(mask), (mask.shape[0], mask.shape[1])) for mask in masks]
    content["size"] = list(masks[0].shape)
    return json.dumps(content)


def _answered(reply: str, answer: str) -> str:
    """Return a reply with another answer; its masks and boxes stay."""
    try:
        content = json.loads(reply)
    except ValueError:
        return answer
    if not isinstance(content, dict):
        return answer
    content.pop("error", None)  # a control has no failed requests
    return json.dumps({**content, "text": answer})


def _fractions(box: Sequence[float], size: Size) -> dict[str, float]:
    height, width = size
    sides = (box[0] / width, box[1] / height, box[2] / width, box[3] / height)
    return dict(zip(("x_min", "y_min", "x_max", "y_max"), sides, strict=True))


def _size(reference: Reference) -> Size | None:
    """Return ``(H, W)`` of the picture, where the log has it."""
    size = reference.get("size") or (0, 0)
    return (int(size[0]), int(size[1])) if size[0] else None
