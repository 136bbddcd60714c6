"""Read sample logs (``*_samples_<task>.jsonl``) as what a page shows: question, both answers, phrases with masks.

Read from the log alone: masks that were answered stand in the reply, target masks and the image's path under
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
from flmm_plugin.redaction import public_text
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
        model: Label of the run, as in tables.
        doc_id: Its number in the task.
        target: Answer that the task holds to be right.
        answer: Answer of the F-LMM model.
        stock: Answer of the stock model to the same question; None where no run of it was asked.
        image: Path of the image, "" where the log does not say.
        orientation: How it was opened, so that masks lie on it; ``stored`` where the log does not say.
        phrases: Phrases in order; empty for a question without masks.
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
        """Quality, 0 to 1: mean IoU of its phrases, else its score."""
        known = [phrase.iou for phrase in self.phrases if phrase.iou is not None]
        return sum(known) / len(known) if known else self.score


def read_samples(runs: Sequence[Run]) -> Iterator[SampleView]:
    """Read every logged sample of the F-LMM runs, with the stock answer where the same was asked of the same weights.

    Without any F-LMM run, read the stock runs' samples.
    """
    stock = [run for run in runs if not run.flmm]
    for run in [run for run in runs if run.flmm] or stock:
        rivals = [other for other in stock if run.flmm and other.pair == run.pair]
        for name, task in run.tasks.items():
            if task.samples is not None:
                answers = _answers(rivals, name)
                for view in _views(run.label, name, task.samples):
                    yield replace(view, stock=answers.get((view.doc_id, view.question)))


def _answers(rivals: Sequence[Run], task: str) -> dict[tuple[int, str], str]:
    """Return the newest stock run's answers by document and question: answers to other questions do not count."""
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
    answer = _first(line["resps"] if "resps" in line else line.get("filtered_resps", ""))
    reply = _masks_reply(answer)
    reference = line.get("reference")
    if not isinstance(reference, Mapping):
        reference = {}
    media = [item for item in line.get("input_media") or [] if isinstance(item, str)]
    error = (reply or {}).get("error") or {}
    return SampleView(
        model=model,
        task=task,
        doc_id=int(line.get("doc_id", -1)),
        question=str(line.get("input", "")),
        target=str(line.get("target", "")),
        answer=answer if reply is None else str(reply.get("text") or ""),
        image=str(reference.get("image_path") or (media[0] if media else "")),
        orientation="upright" if reference.get("orientation") == "upright" else "stored",
        phrases=tuple(_phrases(reply, reference, line)) if reply is not None else (),
        score=_score(line),
        error=public_text(f"{error.get('type', '')}: {error.get('message', '')}") if error else "",
    )


def _first(replies: Any) -> str:
    """Return the reply itself; it is nested once per repeat and per filter, depending on lmms-eval's version."""
    while isinstance(replies, list) and replies:
        replies = replies[0]
    return replies if isinstance(replies, str) else json.dumps(replies, ensure_ascii=False)


def _masks_reply(reply: str) -> Mapping[str, Any] | None:
    """Parse a reply with masks; None for any other. Masks stay run-length codes: a page decodes those that are seen."""
    try:
        content = json.loads(reply) if reply.lstrip().startswith("{") else None
    except ValueError:
        return None
    return content if isinstance(content, Mapping) and isinstance(content.get("masks"), list) else None


def _phrases(reply: Mapping[str, Any], reference: Mapping[str, Any], line: Mapping[str, Any]) -> Iterator[PhraseView]:
    """Return the reference's phrases with the masks that answer them; without a reference, the reply's own phrases."""
    masks, scores = reply["masks"], reply.get("scores") or []
    answered = [one for one in reply.get("phrases") or [] if isinstance(one, Mapping)]
    names = [str(name) for name in reference.get("phrases") or []]
    targets = reference.get("masks") or []
    ious, nearest = _overlaps(line, answered, len(masks))
    if not names:
        names = [str(one.get("phrase", "")) for one in answered] or [f"mask {at + 1}" for at in range(len(masks))]
    for place, name in enumerate(names):
        index = nearest[place] if len(nearest) == len(names) else _answering(place, name, len(names), answered)
        mask = _at(masks, index)
        score = _at(scores, index)
        target = _at(targets, place)
        yield PhraseView(
            phrase=name,
            iou=ious[place] if len(ious) == len(names) else None,
            score=None if score is None else float(score),
            predicted=mask if _is_rle(mask) else None,
            target=target if _is_rle(target) else None,
        )


def _at(values: Sequence[Any], index: int | None) -> Any:
    return values[index] if index is not None and 0 <= index < len(values) else None


def _answering(place: int, name: str, count: int, answered: Sequence[Mapping[str, Any]]) -> int | None:
    """Return the index of the mask that answers a phrase: as the reply's phrases say, in order or by the same words."""
    if not answered:
        return place
    same = [answered[place]] if len(answered) == count else [one for one in answered if one.get("phrase") == name]
    index = same[0].get("mask") if same else None
    return index if isinstance(index, int) else None


def _overlaps(
    line: Mapping[str, Any], answered: Sequence[Mapping[str, Any]], masks: int
) -> tuple[list[float], list[int | None]]:
    """Return IoU per item, and the index of its mask, from the first metric that logged pixel counts.

    Counts of a task that compares masks in order are lists: 0/0 counts 0, as in mIoU, and the indices are left empty. A
    task that matches masks logs tables (rows are targets, columns predictions): a target has its best IoU and mask.
    """
    counts: tuple[list[Any], list[Any]] = next(
        (
            (value["I"], value["U"])
            for value in line.values()
            if isinstance(value, Mapping) and isinstance(value.get("I"), list) and isinstance(value.get("U"), list)
        ),
        ([], []),
    )
    if not any(isinstance(row, list) for row in counts[0]):
        return _ious(*counts), []
    table = [_ious(over, under) for over, under in zip(*counts, strict=True)]
    listed = [one.get("mask") for one in answered] if answered else list(range(masks))
    columns = [at for at in listed if isinstance(at, int) and 0 <= at < masks]
    best = [max(range(len(row)), key=row.__getitem__, default=-1) for row in table]
    indices = [columns[at] if 0 <= at < len(columns) else None for at in best]
    return [max(row, default=0.0) for row in table], indices


def _ious(intersections: Sequence[int], unions: Sequence[int]) -> list[float]:
    return [i / u if u else 0.0 for i, u in zip(intersections, unions, strict=True)]


#: Keys of a sample line that are no metric.
_NOT_METRICS = frozenset(
    {"doc_id", "input", "target", "resps", "filtered_resps", "doc_hash", "token_counts", "reference", "input_media"}
)


def _score(line: Mapping[str, Any]) -> float | None:
    """Return the first metric that is a number in 0..1, or a mapping with such a ``score``."""
    for name, value in line.items():
        number = value.get("score") if isinstance(value, Mapping) else value
        if name not in _NOT_METRICS and isinstance(number, int | float) and 0 <= number <= 1:
            return float(number)
    return None


def _is_rle(mask: Any) -> bool:
    if not isinstance(mask, Mapping) or not isinstance(mask.get("counts"), str):
        return False
    size = mask.get("size")
    return isinstance(size, list) and len(size) == 2 and all(type(side) is int for side in size)
