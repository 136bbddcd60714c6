"""Sample logs (``*_samples_<task>.jsonl``) as what a page shows: question, both arms' answers, phrases with masks.

Read from the log alone: masks that were answered stand in the reply, target masks and the picture's path under
``reference``, pixel counts in a metric's ``{"I": [...], "U": [...]}``. What a log does not hold (logs of other tools,
tasks without masks, older logs) stays empty.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flmm_plugin.images import Orientation
from flmm_plugin.public import public_text
from flmm_plugin.reports.runs import Run, named, sample_lines

Rle = Mapping[str, Any]


@dataclass(frozen=True)
class PhraseView:
    """One phrase: its IoU in 0..1 (None where the log has no pixel counts), and its masks as COCO RLE."""

    phrase: str
    iou: float | None = None
    score: float | None = None
    predicted: Rle | None = None
    target: Rle | None = None


@dataclass(frozen=True)
class SampleView:
    """One document of a task.

    Attributes:
        model: Label of the run.
        task: Its name.
        doc_id: Its number in the task.
        question: What was asked.
        target: What the task holds to be right.
        answer: What the F-LMM arm said.
        stock: What the stock arm said to the same question; None where no run of it was asked.
        image: Path of the picture, "" where the log does not say.
        orientation: How it was opened, so that masks lie on it; ``stored`` where the log does not say.
        phrases: In order; empty for a question without masks.
        score: 0 (wrong) to 1 (right) for a question without masks; None where the log does not say.
        error: Why the sample has no answer, "" if it has one.
    """

    model: str
    task: str
    doc_id: int
    question: str
    target: str
    answer: str
    stock: str | None = None
    image: str = ""
    orientation: Orientation = "stored"
    phrases: tuple[PhraseView, ...] = ()
    score: float | None = None
    error: str = ""

    @property
    def value(self) -> float | None:
        """How good it is, 0 to 1: mean IoU of its phrases, else its score."""
        known = [phrase.iou for phrase in self.phrases if phrase.iou is not None]
        return sum(known) / len(known) if known else self.score


def read_samples(runs: Sequence[Run]) -> Iterator[SampleView]:
    """Every logged sample of the F-LMM runs, with the stock arm's answer where the same was asked of the same weights.

    Without any F-LMM run, the stock runs' samples.
    """
    stock = [run for run in runs if not run.flmm]
    shown = [run for run in runs if run.flmm] or stock
    for run in shown:
        rivals = [other for other in stock if other is not run and other.pair == run.pair] if run.flmm else []
        for name, task in run.tasks.items():
            if task.samples is None:
                continue
            theirs = _answers(rivals, name)
            for view in _views(run.label, name, task.samples):
                yield replace(view, stock=theirs.get((view.doc_id, view.question)))


def _answers(rivals: Sequence[Run], task: str) -> dict[tuple[int, str], str]:
    """The newest stock run's answers by document and question: an answer to another question is not beside ours."""
    for run in reversed(rivals):
        found = run.tasks.get(task)
        if found is not None and found.samples is not None:
            return {(one.doc_id, one.question): one.answer for one in _views(run.label, task, found.samples)}
    return {}


def _views(model: str, task: str, path: Path) -> Iterator[SampleView]:
    for line in sample_lines(path):
        with named(path, "log of samples"):
            view = _view(model, task, line)
        yield view


def _view(model: str, task: str, line: Mapping[str, Any]) -> SampleView:
    said = _first(line["resps"] if "resps" in line else line.get("filtered_resps", ""))
    reply = _masks_reply(said)
    kept = line.get("reference")
    reference: Mapping[str, Any] = kept if isinstance(kept, Mapping) else {}
    media = [item for item in line.get("input_media") or [] if isinstance(item, str)]
    error = (reply or {}).get("error") or {}
    return SampleView(
        model=model,
        task=task,
        doc_id=int(line.get("doc_id", -1)),
        question=str(line.get("input", "")),
        target=str(line.get("target", "")),
        answer=said if reply is None else str(reply.get("text") or ""),
        image=str(reference.get("image_path") or (media[0] if media else "")),
        orientation="upright" if reference.get("orientation") == "upright" else "stored",
        phrases=tuple(_phrases(reply, reference, line)) if reply is not None else (),
        score=_score(line),
        error=public_text(f"{error.get('type', '')}: {error.get('message', '')}") if error else "",
    )


def _first(said: Any) -> str:
    """The reply itself; it is nested once per repeat and per filter, depending on lmms-eval's version."""
    while isinstance(said, list) and said:
        said = said[0]
    return said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)


def _masks_reply(said: str) -> Mapping[str, Any] | None:
    """The reply if it is a masks JSON, else None. Masks stay run-length codes: a page decodes those that are seen."""
    if not said.lstrip().startswith("{"):
        return None
    try:
        content = json.loads(said)
    except ValueError:
        return None
    return content if isinstance(content, Mapping) and isinstance(content.get("masks"), list) else None


def _phrases(reply: Mapping[str, Any], reference: Mapping[str, Any], line: Mapping[str, Any]) -> Iterator[PhraseView]:
    """The reference's phrases with the masks that answer them; without a reference, the reply's own phrases."""
    masks, scores = reply["masks"], reply.get("scores") or []
    said = [one for one in reply.get("phrases") or [] if isinstance(one, Mapping)]
    names = [str(name) for name in reference.get("phrases") or []]
    targets = reference.get("masks") or []
    ious, nearest = _ious(line), _nearest(line, said, len(masks))
    if not names:
        names = [str(one.get("phrase", "")) for one in said] or [f"mask {place + 1}" for place in range(len(masks))]
    for place, name in enumerate(names):
        index = nearest[place] if len(nearest) == len(names) else _answering(place, name, len(names), said)
        mask = masks[index] if index is not None and 0 <= index < len(masks) else None
        yield PhraseView(
            phrase=name,
            iou=ious[place] if len(ious) == len(names) else None,
            score=float(scores[index]) if index is not None and 0 <= index < len(scores) else None,
            predicted=mask if _drawable(mask) else None,
            target=targets[place] if place < len(targets) and _drawable(targets[place]) else None,
        )


def _answering(place: int, name: str, count: int, said: Sequence[Mapping[str, Any]]) -> int | None:
    """Index of the mask that answers a phrase: as the reply's phrases say, in order or by the same words."""
    if not said:
        return place
    if len(said) == count:
        one: Mapping[str, Any] | None = said[place]
    else:
        one = next((phrase for phrase in said if phrase.get("phrase") == name), None)
    index = one.get("mask") if one is not None else None
    return index if isinstance(index, int) else None


def _ious(line: Mapping[str, Any]) -> list[float]:
    """IoU per item from the first metric that logged pixel counts; 0/0 counts 0, as mIoU has it.

    Where counts are a table (rows are targets, columns predictions), a target's best IoU.
    """
    counts = _counts(line)
    if counts is None:
        return []
    if any(isinstance(row, list) for row in counts[0]):
        return [max(row, default=0.0) for row in _iou_table(*counts)]
    return [i / u if u else 0.0 for i, u in zip(*counts, strict=True)]


def _nearest(line: Mapping[str, Any], said: Sequence[Mapping[str, Any]], masks: int) -> list[int | None]:
    """Index of the mask that meets each target best, for tasks that match masks and not words; else empty."""
    counts = _counts(line)
    if counts is None or not any(isinstance(row, list) for row in counts[0]):
        return []
    listed = [one.get("mask") for one in said] if said else list(range(masks))
    columns = [at for at in listed if isinstance(at, int) and 0 <= at < masks]
    best = [max(range(len(row)), key=row.__getitem__, default=-1) for row in _iou_table(*counts)]
    return [columns[at] if 0 <= at < len(columns) else None for at in best]


def _iou_table(intersections: list[list[int]], unions: list[list[int]]) -> list[list[float]]:
    return [
        [i / u if u else 0.0 for i, u in zip(over, under, strict=True)]
        for over, under in zip(intersections, unions, strict=True)
    ]


def _counts(line: Mapping[str, Any]) -> tuple[list[Any], list[Any]] | None:
    """Intersections and unions of the first metric that logged some."""
    for value in line.values():
        if isinstance(value, Mapping) and isinstance(value.get("I"), list) and isinstance(value.get("U"), list):
            return value["I"], value["U"]
    return None


#: Keys of a sample line that are no metric.
_NOT_METRICS = frozenset(
    {"doc_id", "input", "target", "resps", "filtered_resps", "doc_hash", "token_counts", "reference", "input_media"}
)


def _score(line: Mapping[str, Any]) -> float | None:
    """The first metric that is a number in 0..1, or a mapping with such a ``score``."""
    for name, value in line.items():
        if name in _NOT_METRICS:
            continue
        number = value.get("score") if isinstance(value, Mapping) else value
        if isinstance(number, int | float) and 0 <= number <= 1:
            return float(number)
    return None


def _drawable(mask: Any) -> bool:
    if not isinstance(mask, Mapping) or not isinstance(mask.get("counts"), str):
        return False
    size = mask.get("size")
    return isinstance(size, list) and len(size) == 2 and all(type(side) is int for side in size)
