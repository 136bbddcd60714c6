"""Was chat left unchanged? Two arms' records of the same questions, compared; pure data, no model.

An *arm* is one way to run one LMM through lmms-eval: the stock adapter, or this package's model with grounding between
the questions. `compare` holds two arms against each other check by check; `decide` makes the verdict.

The verdict is exact: one differing bit is a change. Where the arms had to run under different settings (batch size,
kernel, device, precision), a third arm tells the settings' share from the plugin's: the *stock* model under the
settings of the F-LMM arm. Only what differs from that one is held against the plugin. Where even the stock model does
not repeat itself, its repetition is measured the same way, and both numbers are in the verdict.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["unchanged", "changed", "uncomparable"]

#: Names of the checks, in the order of a computation: the first that differs says where a change comes in.
CHECKS = (
    "weights",
    "questions",
    "prompts",
    "pictures",
    "generated ids",
    "texts",
    "log-likelihoods",
    "metrics",
    "logits",
)
#: Checks of what a model says. The others are of what it is and what it is shown: no kernel has a say in those.
OUTPUTS = frozenset({"generated ids", "texts", "log-likelihoods", "metrics", "logits"})

_EXIT = {"unchanged": 0, "changed": 1, "uncomparable": 2}


@dataclass(frozen=True)
class Answer:
    """One request and what the model made of it.

    Attributes:
        key: The request among all of a run: kind, task, document, and which of that document's requests.
        task: Name of the task.
        doc_id: Number of the document.
        question: The request's text as lmms-eval made it, before any chat template.
        text: What came back; empty for a log-likelihood.
        ids: Generated token ids, the end token included; None where no ``generate`` of transformers was seen.
        prompt: SHA-256 of the prompt's token ids without padding; None as above.
        inputs: SHA-256 of each other tensor that the model was given, by name: the pictures, mostly.
        score: Of a log-likelihood request: the number, and whether greedy decoding agrees.
        error: What went wrong in the model, if anything.
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
        """One line of an arm's record."""
        return {
            "key": self.key, "task": self.task, "doc_id": self.doc_id, "question": self.question, "text": self.text,
            "ids": None if self.ids is None else list(self.ids), "prompt": self.prompt, "inputs": dict(self.inputs),
            "score": None if self.score is None else list(self.score), "error": self.error,
            "asked": self.asked,
        }  # fmt: skip

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> Answer:
        """What `as_json` wrote."""
        ids, score = line["ids"], line["score"]
        return cls(
            key=line["key"], task=line["task"], doc_id=int(line["doc_id"]), question=line["question"],
            text=line["text"], ids=None if ids is None else tuple(ids), prompt=line["prompt"],
            inputs=dict(line["inputs"]), score=None if score is None else (float(score[0]), bool(score[1])),
            error=line["error"], asked=line["asked"],
        )  # fmt: skip


@dataclass(frozen=True)
class Arm:
    """One finished run.

    Attributes:
        role: ``stock``, ``F-LMM``, ``stock again`` or ``stock, settings of F-LMM``.
        adapter: Who answered: lmms-eval's adapter by name, or plain transformers; with the reason if it is no adapter.
        settings: What may change numbers without changing the model: batch size, kernel, precision, device.
        answers: By request.
        metrics: By task and metric.
        weights: SHA-256 of every parameter and buffer before the first request, by name.
        weights_after: Names whose hash was another one after the last request.
        grounded: Grounding requests run between questions: ``asked`` and ``failed``.
        judge: Judge answers: ``asked``, ``reused`` (recorded by the other arm or an earlier run) and ``failed``.
        provenance: Versions and facts that belong beside the numbers.
        resumed: Requests whose answers were already on disk.
        seconds: Wall time of the last run of the arm.
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
class LogitsCheck:
    """``torch.equal`` on the logits of one batch, made where torch is known.

    Attributes:
        equal: What it said; None where an arm has no logits.
        detail: Shape and, if they differ, by how much and in how many places; or why there are none.
    """

    equal: bool | None
    detail: str


@dataclass(frozen=True)
class Difference:
    """One thing that is not the same in both arms, for a reader."""

    where: str
    left: str
    right: str
    question: str = ""


@dataclass(frozen=True)
class Check:
    """One kind of comparison over a whole run; ``first`` is the first difference in order of the requests."""

    name: str
    compared: int
    differing: int
    first: Difference | None = None
    detail: str = ""


@dataclass(frozen=True)
class Verdict:
    """What is proven.

    Attributes:
        status: ``unchanged``, ``changed`` or ``uncomparable``.
        mode: ``exact``, or ``measured`` where the stock model's own noise was measured beside.
        reason: One sentence.
        checks: Stock against F-LMM.
        noise: Stock against the stock model under the F-LMM arm's settings, or again under its own; empty if exact.
        same: The stock model under the F-LMM arm's settings against F-LMM; empty if the settings were the same.
        repeat: That stock model against its own repetition, if it came to that.
        arms: All that ran, stock first, F-LMM second.
        notes: What a reader should know: which stock arm, planted faults, what was not seen.
    """

    status: Status
    mode: str
    reason: str
    checks: tuple[Check, ...]
    arms: tuple[Arm, ...]
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
        """Whether chat is proven to be what it is without the plugin."""
        return self.status == "unchanged"

    @property
    def blamed(self) -> tuple[Check, ...]:
        """The checks whose differences are held against the plugin."""
        return self.same or self.checks

    @property
    def first(self) -> Check | None:
        """The first check that differs, and with it the first differing sample."""
        return next((check for check in self.blamed if check.differing), None)


def compare(left: Arm, right: Arm, logits: LogitsCheck | None = None) -> tuple[Check, ...]:
    """Every check of two arms, in the order of `CHECKS`.

    Requests that only one arm has are left to `missing`; nothing else is ever skipped silently: what could not be seen
    is not in ``compared``.
    """
    shared = [key for key in left.answers if key in right.answers]
    pairs = [(left.answers[key], right.answers[key]) for key in shared]
    return (
        _weights(left, right),
        _over(pairs, "questions", lambda a: a.question, show=lambda a: a.question),
        _over(pairs, "prompts", lambda a: a.prompt, show=lambda a: f"{a.asked!r}, ids of SHA-256 {a.prompt}"),
        _pictures(pairs),
        _over(pairs, "generated ids", lambda a: a.ids, show=lambda a: f"{_shown(a)} {list(a.ids or ())}"),
        _over(pairs, "texts", lambda a: a.text if a.score is None else None, show=_shown),
        _over(pairs, "log-likelihoods", lambda a: a.score, show=lambda a: str(a.score), same=_same_score),
        _metrics(left, right),
        _logits(logits),
    )


def missing(left: Arm, right: Arm) -> list[str]:
    """Requests that only one of the arms has."""
    return sorted(set(left.answers) ^ set(right.answers))


def decide(
    arms: Sequence[Arm],
    checks: Sequence[Check],
    *,
    noise: Sequence[Check] = (),
    same: Sequence[Check] = (),
    repeat: Sequence[Check] = (),
    notes: Sequence[str] = (),
) -> Verdict:
    """The verdict over comparisons that `compare` made.

    Args:
        arms: Stock, F-LMM, and any further ones.
        checks: Stock against F-LMM.
        noise: Stock against the stock model measured once more.
        same: The stock model under the F-LMM arm's settings against F-LMM; empty if the settings were the same.
        repeat: The arm that F-LMM is held against, against its own repetition; empty if it was not measured.
        notes: Passed on.
    """
    stock, ours = arms[0], arms[1]
    mode = "measured" if noise else "exact"
    blamed = tuple(same or checks)

    def verdict(status: Status, reason: str) -> Verdict:
        return Verdict(
            status, mode, reason, tuple(checks), tuple(arms), tuple(noise), tuple(same), tuple(repeat), tuple(notes)
        )

    if ours.weights_after:
        return verdict("changed", f"weights of the LMM changed during the run, first {ours.weights_after[0]}")
    failed = [answer for answer in stock.answers.values() if answer.error]
    differing = [check for check in blamed if check.differing]
    alone = missing(stock, ours)
    if not stock.answers or alone:
        return verdict("uncomparable", f"{len(alone)} requests were asked of one arm only; first {alone[:1] or 'none'}")
    if failed and not [check for check in differing if check.name not in OUTPUTS]:
        return verdict(
            "uncomparable",
            f"{stock.adapter} failed on {len(failed)} of {len(stock.answers)} requests; first {failed[0].key}: "
            f"{failed[0].error}",
        )
    if not differing and 0 < ours.grounded.get("asked", 0) == ours.grounded.get("failed", 0):
        return verdict("uncomparable", "every grounding request between the questions failed: see the log of that arm")
    if not differing:
        if any(check.differing for check in checks):
            return verdict(
                "unchanged",
                "what differs from stock comes from the settings: the stock model under the same settings differs in "
                "the same way, and F-LMM is equal to it bit by bit",
            )
        return verdict("unchanged", "every compared bit is the same")
    names = ", ".join(f"{check.name} ({check.differing} of {check.compared})" for check in differing)
    floor = {check.name: check.differing for check in repeat}
    if repeat and all(check.name in OUTPUTS and check.differing <= floor.get(check.name, 0) for check in differing):
        return verdict(
            "unchanged",
            f"within the stock model's own noise: {names} differ, and the stock model differs from its own repetition "
            "in no fewer",
        )
    return verdict("changed", f"{names} differ")


def _weights(left: Arm, right: Arm) -> Check:
    names = [*left.weights, *(name for name in right.weights if name not in left.weights)]
    wrong = [name for name in names if left.weights.get(name) != right.weights.get(name)]
    first = None
    if wrong:
        name = wrong[0]
        first = Difference(
            f"tensor {name}", left.weights.get(name, "no such tensor"), right.weights.get(name, "no such tensor")
        )
    return Check("weights", len(names), len(wrong), first)


def _over(pairs: Sequence[tuple[Answer, Answer]], name: str, value: Any, *, show: Any, same: Any = None) -> Check:
    """A check of one value per request; requests for which an arm has none are not counted as compared."""
    same = same or (lambda a, b: a == b)
    seen = [(a, b) for a, b in pairs if value(a) is not None and value(b) is not None]
    wrong = [(a, b) for a, b in seen if not same(value(a), value(b))]
    first = None
    if wrong:
        a, b = wrong[0]
        first = Difference(f"{a.task} document {a.doc_id}", show(a), show(b), a.question)
    unseen = len([1 for a, b in pairs if (value(a) is None) != (value(b) is None)])
    return Check(name, len(seen), len(wrong), first, f"{unseen} seen in one arm only" if unseen else "")


def _pictures(pairs: Sequence[tuple[Answer, Answer]]) -> Check:
    """Every tensor besides the token ids, by name; tensors that one adapter does not pass are named, not compared."""
    compared, wrong, alone = 0, [], set()
    for a, b in pairs:
        names = set(a.inputs) & set(b.inputs)
        alone |= set(a.inputs) ^ set(b.inputs)
        compared += bool(names)
        bad = sorted(name for name in names if a.inputs[name] != b.inputs[name])
        if bad:
            wrong.append((a, b, bad[0]))
    first = None
    if wrong:
        a, b, name = wrong[0]
        left, right = (f"{name} of SHA-256 {one.inputs[name]}" for one in (a, b))
        first = Difference(f"{a.task} document {a.doc_id}", left, right, a.question)
    return Check("pictures", compared, len(wrong), first, f"in one arm only: {', '.join(sorted(alone))}" * bool(alone))


def _metrics(left: Arm, right: Arm) -> Check:
    names = sorted(
        {(task, metric) for arm in (left, right) for task, values in arm.metrics.items() for metric in values}
    )
    wrong = [
        (task, metric)
        for task, metric in names
        if not _same_value(left.metrics.get(task, {}).get(metric), right.metrics.get(task, {}).get(metric))
    ]
    first = None
    if wrong:
        task, metric = wrong[0]
        shown = [repr(arm.metrics.get(task, {}).get(metric)) for arm in (left, right)]
        first = Difference(f"{task}: {metric}", shown[0], shown[1])
    return Check("metrics", len(names), len(wrong), first)


def _logits(logits: LogitsCheck | None) -> Check:
    if logits is None or logits.equal is None:
        return Check("logits", 0, 0, None, logits.detail if logits else "not compared")
    first = None if logits.equal else Difference("first batch", "torch.equal", logits.detail)
    return Check("logits", 1, int(not logits.equal), first, logits.detail)


def _same_value(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b):
        return True
    return bool(type(a) is type(b) and a == b)


def _same_score(a: tuple[float, bool], b: tuple[float, bool]) -> bool:
    return _same_value(a[0], b[0]) and a[1] == b[1]


def _shown(answer: Answer) -> str:
    return f"{answer.text!r}{f' (failed: {answer.error})' if answer.error else ''}"
