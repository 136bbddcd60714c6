"""Compare the records of two runs check by check, and decide whether chat was left unchanged. Pure data, no model.

A *run* is one way to put one LMM through a harness: with its stock adapter, or with this package's model and grounding
between the questions. The verdict is exact: one differing bit is a change. Where the two had to run under different
settings (batch size, kernel, device, precision), a third run of the *stock* model under the settings of the F-LMM run
shows what the settings do, and only what differs from that one is held against the plugin. Where even the stock model
does not repeat itself, its repetition is measured the same way, and both numbers are in the verdict.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Status = Literal["unchanged", "changed", "uncomparable"]

#: Names of the checks, in the order of a computation: the first that differs says where a change comes in.
CHECKS = (
    "weights", "questions", "prompts", "pictures", "generated ids", "texts", "log-likelihoods", "metrics", "logits",
)  # fmt: skip
#: Checks of a model's output. The others are of the model and its input, on which no kernel has any influence.
OUTPUTS = frozenset({"generated ids", "texts", "log-likelihoods", "metrics", "logits"})

_EXIT = {"unchanged": 0, "changed": 1, "uncomparable": 2}


@dataclass(frozen=True)
class Answer:
    """One request and the model's answer: a line of ``answers.jsonl``.

    Attributes:
        key: Names the request within its run: kind, task, document, and which of that document's requests.
        task, doc_id: Task and number of the document.
        question: The request's text as the harness made it, before any chat template.
        text: The reply; empty for a log-likelihood.
        ids: Generated token ids, the end token included; None where no ``generate`` of transformers was seen.
        prompt: SHA-256 of the prompt's token ids without padding; None as above.
        inputs: SHA-256 of each other tensor that the model was given, by name: the pictures, mostly.
        score: The number of a log-likelihood request, and whether greedy decoding agrees.
        error: The model's error message, if it failed.
        asked: The prompt after the chat template, for a reader; not compared, `prompt` is.
    """

    key: str
    task: str
    doc_id: int
    question: str
    text: str = ""
    ids: tuple[int, ...] | None = None
    prompt: str | None = None
    inputs: Mapping[str, str] = field(default_factory=dict)
    score: tuple[float, bool] | None = None
    error: str = ""
    asked: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return the fields as one JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> Answer:
        """Read an object that `as_json` returned."""
        lists = {name: None if line[name] is None else tuple(line[name]) for name in ("ids", "score")}
        return cls(**{**line, **lists})


@dataclass(frozen=True)
class RunRecord:
    """One finished run: ``arm.json``, and the answers beside it.

    Attributes:
        role: ``stock``, ``F-LMM``, ``stock again`` or ``stock, settings of F-LMM``.
        adapter: Name of the model class that answered: an adapter of the harness, or plain transformers and the reason.
        settings: Batch size, kernel, precision and device: they may change numbers without changing the model.
        answers: Every answer by its key, in the order of the requests.
        metrics: Numbers by task and metric.
        weights: Hash of every parameter and buffer before the first request, by name.
        weights_after: Names whose hash was another one after the last request.
        grounded: Grounding requests run between questions: ``asked`` and ``failed``.
        judge: Judge answers: ``asked``, ``reused`` (recorded by another run) and ``failed``.
        provenance: Versions and facts that belong beside the numbers.
        resumed: Number of requests whose answers were already on disk.
        seconds: Wall time of the last start of the run.
    """

    role: str
    adapter: str
    settings: Mapping[str, Any]
    answers: Mapping[str, Answer]
    metrics: Mapping[str, Mapping[str, Any]]
    weights: Mapping[str, str]
    weights_after: tuple[str, ...] = ()
    grounded: Mapping[str, int] = field(default_factory=dict)
    judge: Mapping[str, int] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    resumed: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Difference:
    """One thing that differs between two runs, as text for a reader."""

    where: str
    left: str
    right: str
    question: str = ""


@dataclass(frozen=True)
class Check:
    """One kind of comparison over two runs; ``first`` is the first difference in the order of the requests."""

    name: str
    compared: int
    differing: int
    first: Difference | None = None
    detail: str = ""


@dataclass(frozen=True)
class Verdict:
    """The result of a proof.

    Attributes:
        status: One of ``unchanged``, ``changed`` and ``uncomparable``.
        mode: ``exact``, or ``measured`` where the stock model's own noise was measured beside.
        reason: One sentence for a reader.
        checks: The stock run against the F-LMM run.
        runs: All runs, stock first, F-LMM second.
        noise: Stock against the stock model under the F-LMM run's settings, or again under its own; empty if exact.
        same: The stock model under the F-LMM run's settings against F-LMM; empty if the settings were the same.
        repeat: That stock model against its own repetition, if it came to that.
        notes: Remarks for a reader: which stock adapter, planted faults, what was not seen.
    """

    status: Status
    mode: str
    reason: str
    checks: tuple[Check, ...]
    runs: tuple[RunRecord, ...]
    noise: tuple[Check, ...] = ()
    same: tuple[Check, ...] = ()
    repeat: tuple[Check, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def exit_status(self) -> int:
        """0 unchanged, 1 changed, 2 could not compare."""
        return _EXIT[self.status]

    @property
    def unchanged(self) -> bool:
        """True if chat is proven to be what it is without the plugin."""
        return self.status == "unchanged"

    @property
    def blamed(self) -> tuple[Check, ...]:
        """The checks whose differences are held against the plugin."""
        return self.same or self.checks

    @property
    def first(self) -> Check | None:
        """The first check that differs, and with it the first differing sample."""
        return next((check for check in self.blamed if check.differing), None)


def compare(left: RunRecord, right: RunRecord, logits: Check | None = None) -> tuple[Check, ...]:
    """Make every check of two runs, in the order of `CHECKS`.

    Requests that only one run has are left to `missing`. Nothing else is skipped silently: what could not be seen is
    not counted in ``compared``.

    Args:
        left: The run to be held to.
        right: The run to be compared with it.
        logits: Result of `logits_check` for the two.
    """
    pairs = [(answer, right.answers[key]) for key, answer in left.answers.items() if key in right.answers]
    tensors = dict.fromkeys([*left.weights, *right.weights])
    absent = "no such tensor"
    weights = [_Item(f"tensor {one}", left.weights.get(one, absent), right.weights.get(one, absent)) for one in tensors]
    return (
        _check("weights", weights),
        _per_answer("questions", pairs, lambda a: a.question, lambda a: a.question),
        _per_answer("prompts", pairs, lambda a: a.prompt, lambda a: f"{a.asked!r}, ids of SHA-256 {a.prompt}"),
        _pictures(pairs),
        _per_answer("generated ids", pairs, lambda a: a.ids, lambda a: f"{_shown(a)} {list(a.ids or ())}"),
        _per_answer("texts", pairs, lambda a: a.text if a.score is None else None, _shown),
        _per_answer("log-likelihoods", pairs, lambda a: a.score, lambda a: str(a.score), same=_same_score),
        _check("metrics", _numbers(left, right), show=repr, same=_same_value),
        logits or logits_check(None, "not compared"),
    )


def logits_check(equal: bool | None, detail: str) -> Check:
    """Make the check of the logits of one batch.

    Args:
        equal: Result of ``torch.equal``; None where a run has no logits.
        detail: Shape and, if they differ, by how much and in how many places; or why there are none.
    """
    first = Difference("first batch", "torch.equal", detail) if equal is False else None
    return Check("logits", int(equal is not None), int(equal is False), first, detail)


def missing(left: RunRecord, right: RunRecord) -> list[str]:
    """Return the keys of requests that only one of the runs has."""
    return sorted(set(left.answers) ^ set(right.answers))


def decide(
    runs: Sequence[RunRecord],
    checks: Sequence[Check],
    *,
    noise: Sequence[Check] = (),
    same: Sequence[Check] = (),
    repeat: Sequence[Check] = (),
    notes: Sequence[str] = (),
) -> Verdict:
    """Decide over comparisons that `compare` made; arguments are as in `Verdict`."""
    stock, ours = runs[0], runs[1]
    blamed = tuple(same or checks)

    def verdict(status: Status, reason: str) -> Verdict:
        return Verdict(
            status, "measured" if noise else "exact", reason, tuple(checks), tuple(runs), noise=tuple(noise),
            same=tuple(same), repeat=tuple(repeat), notes=tuple(notes),
        )  # fmt: skip

    if ours.weights_after:
        return verdict("changed", f"weights of the LMM changed during the run, first {ours.weights_after[0]}")
    failed = [answer for answer in stock.answers.values() if answer.error]
    differing = [check for check in blamed if check.differing]
    alone = missing(stock, ours)
    if not stock.answers or alone:
        return verdict("uncomparable", f"{len(alone)} requests were asked in one run only; first {alone[:1] or 'none'}")
    if failed and all(check.name in OUTPUTS for check in differing):
        return verdict(
            "uncomparable",
            f"{stock.adapter} failed on {len(failed)} of {len(stock.answers)} requests; first {failed[0].key}: "
            f"{failed[0].error}",
        )
    if not differing:
        if 0 < ours.grounded.get("asked", 0) == ours.grounded.get("failed", 0):
            return verdict("uncomparable", "every grounding request between the questions failed: see that run's log")
        if any(check.differing for check in checks):
            return verdict(
                "unchanged",
                "what differs from stock comes from the settings: the stock model under the same settings differs in "
                "the same way, and F-LMM is equal to it bit by bit",
            )
        return verdict("unchanged", "every compared bit is the same")
    names = ", ".join(f"{check.name} ({check.differing} of {check.compared})" for check in differing)
    own_noise = {check.name: check.differing for check in repeat}
    if repeat and all(c.name in OUTPUTS and c.differing <= own_noise.get(c.name, 0) for c in differing):
        return verdict(
            "unchanged",
            f"within the stock model's own noise: {names} differ, and the stock model differs from its own repetition "
            "in no fewer",
        )
    return verdict("changed", f"{names} differ")


@dataclass(frozen=True)
class _Item:
    """Two values that should be the same."""

    where: str
    left: Any
    right: Any
    question: str = ""


def _check(
    name: str, items: Sequence[_Item], detail: str = "", *, show: Callable[[Any], str] = str, same: Any = operator.eq
) -> Check:
    wrong = [item for item in items if not same(item.left, item.right)]
    first = None
    if wrong:
        first = Difference(wrong[0].where, show(wrong[0].left), show(wrong[0].right), wrong[0].question)
    return Check(name, len(items), len(wrong), first, detail)


def _per_answer(
    name: str,
    pairs: Sequence[tuple[Answer, Answer]],
    value: Callable[[Answer], Any],
    show: Callable[[Answer], str],
    *,
    same: Callable[[Any, Any], bool] = operator.eq,
) -> Check:
    """Compare one value per request; a request for which one of the runs has none is not counted as compared."""
    seen = [_item(a, a, b) for a, b in pairs if value(a) is not None and value(b) is not None]
    unseen = sum((value(a) is None) != (value(b) is None) for a, b in pairs)
    detail = f"{unseen} seen in one run only" if unseen else ""
    return _check(name, seen, detail, show=show, same=lambda a, b: same(value(a), value(b)))


def _pictures(pairs: Sequence[tuple[Answer, Answer]]) -> Check:
    """Compare every tensor besides the token ids by name; one that only one adapter passes is named, not compared."""
    items = []
    for a, b in pairs:
        names = sorted(set(a.inputs) & set(b.inputs))
        differing = [name for name in names if a.inputs[name] != b.inputs[name]]
        left, right = (", ".join(f"{name} of SHA-256 {one.inputs[name]}" for name in differing) for one in (a, b))
        if names:
            items.append(_item(a, left, right))
    alone = sorted({name for a, b in pairs for name in set(a.inputs) ^ set(b.inputs)})
    return _check("pictures", items, f"in one run only: {', '.join(alone)}" if alone else "")


def _numbers(left: RunRecord, right: RunRecord) -> list[_Item]:
    names = sorted({(task, name) for run in (left, right) for task, found in run.metrics.items() for name in found})
    return [
        _Item(f"{task}: {name}", left.metrics.get(task, {}).get(name), right.metrics.get(task, {}).get(name))
        for task, name in names
    ]


def _item(answer: Answer, left: Any, right: Any) -> _Item:
    return _Item(f"{answer.task} document {answer.doc_id}", left, right, answer.question)


def _same_value(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b):
        return True
    return bool(type(a) is type(b) and a == b)


def _same_score(a: tuple[float, bool], b: tuple[float, bool]) -> bool:
    return _same_value(a[0], b[0]) and a[1] == b[1]


def _shown(answer: Answer) -> str:
    return f"{answer.text!r}{f' (failed: {answer.error})' if answer.error else ''}"
