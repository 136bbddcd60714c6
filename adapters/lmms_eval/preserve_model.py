"""An lmms-eval model that passes every request on to another one and keeps a record of what went in and came out.

It hands requests on a batch at a time, watches what the model was given and generated, writes each answer to disk
before the next is asked, and answers from disk what a killed run had answered already. Around a model of this package
it asks for a grounding after each batch of questions.
"""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TextIO

import torch
from lmms_eval.api.model import lmms
from tqdm import tqdm

from flmm_plugin import json_lines
from flmm_plugin.adapters.answering.requests import GROUND_FLAG
from flmm_plugin.adapters.lmms_eval.preserve_stock import StockUnusable
from flmm_plugin.adapters.preserving.record import ArmSpec, read_answers
from flmm_plugin.adapters.preserving.watch import GenerateWatch, Row, logits_of, model_of, phrases_of, weight_hashes
from flmm_plugin.errors import FrozenWeightsChanged, UnknownArgument
from flmm_plugin.records import parse_masks_json
from flmm_plugin.reports.preservation import Answer

_GROUND_TASK = "flmm_preserve"
_MARK = "flmm_"  # generation arguments of this name are how tasks ask this package's models for more than chat


class WatchedModel(lmms):
    """An lmms-eval model that passes every request on to another and keeps a record.

    Args:
        inner: The model that answers.
        spec: Of the arm.
        watch: Watching ``generate``.
        record: ``answers.jsonl``; what it holds already is not asked again, but for the first request, whose inputs
            the logits of one batch need.
        screen: Where the progress bar goes; None: no bar.
    """

    def __init__(
        self, inner: Any, spec: ArmSpec, watch: GenerateWatch, record: Path, screen: TextIO | None = None
    ) -> None:
        super().__init__()
        self.inner = inner
        self.spec, self.watch = spec, watch
        self.is_simple = inner.is_simple
        self.task_dict = inner.task_dict
        self.answers: dict[str, Answer] = {}
        self.grounded = {"asked": 0, "failed": 0}
        self.resumed = 0
        self.seal_broken = ""
        self.weights_after: dict[str, str] = {}
        self.logits: torch.Tensor | None = None
        self.no_logits = ""
        self._record, self._screen = record, screen
        self._known = {answer.key: answer for answer in read_answers(record)}
        self._batches = 0
        self._opened: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        # Only for what this class lacks: accelerator, device, tokenizer, and what else the evaluator asks a model for.
        if name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)

    def generate_until(self, requests: list[Any]) -> list[Any]:
        """Texts, through the inner model; grounding in between in the F-LMM arm."""
        return [answer.text for answer in self._ask("generate_until", requests)]

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """Scores, through the inner model."""
        scores = []
        for answer in self._ask("loglikelihood", requests):
            assert answer.score is not None, "a log-likelihood request is answered with a score"
            scores.append(answer.score)
        return scores

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        """Not compared."""
        raise UnknownArgument("multi-round tasks are not compared; leave them out of --tasks")

    def clean(self) -> None:
        """After the last request, before lmms-eval frees the model: logits of one batch, and the weights once more."""
        model = model_of(self.inner)
        self.logits, self.no_logits = logits_of(model, self.watch.first)
        self.weights_after = weight_hashes(model)
        try:
            self.inner.clean()
        except FrozenWeightsChanged as exc:
            self.seal_broken = str(exc)

    def _ask(self, kind: str, requests: Sequence[Any]) -> list[Answer]:
        times: Counter[tuple[str, int]] = Counter()
        keyed = []
        for request in requests:
            _, _, _, doc_id, task, _ = request.args
            keyed.append((f"{kind}/{task}/{doc_id}/{times[task, doc_id]}", request))
            times[task, doc_id] += 1
            if marks := _marks(_options(request.args)):
                raise UnknownArgument(
                    f"{task} asks for what no stock adapter gives ({marks[0]}); leave it out of --tasks: there is no "
                    "chat in it to compare"
                )
        with self._bar(len(keyed)) as bar:
            for batch in self._cut(kind, keyed):
                self._one_batch(kind, batch)
                bar.update(len(batch))
        return [self.answers[key] for key, _ in keyed]

    def _cut(self, kind: str, keyed: Sequence[tuple[str, Any]]) -> Iterator[list[tuple[str, Any]]]:
        """Batches in order, of one task and one set of options each; the first of a kind has one request in all arms.

        It is what the logits are compared on, and what shows whether the stock adapter works at all.
        """
        batch: list[tuple[str, Any]] = []
        sort: Any = None
        for key, request in keyed:
            here = (request.args[4], repr(sorted(_options(request.args).items(), key=lambda item: item[0])))
            full = len(batch) >= (self.spec.batch_size if kind in self._opened else 1)
            if batch and (full or here != sort):
                yield batch
                batch = []
            batch.append((key, request))
            sort = here
        if batch:
            yield batch

    def _one_batch(self, kind: str, batch: list[tuple[str, Any]]) -> None:
        first = kind not in self._opened
        self._opened.add(kind)
        self._batches += 1
        if not first and all(key in self._known and self._fits(self._known[key], one) for key, one in batch):
            self.answers.update({key: self._known[key] for key, _ in batch})
            self.resumed += len(batch)
            return
        self.watch.clear()
        torch.manual_seed(self.spec.seed + self._batches)
        try:
            replies = getattr(self.inner, kind)([request for _, request in batch])
        except Exception as exc:
            if first and self.spec.stock:
                raise StockUnusable(f"{kind}: {type(exc).__name__}: {exc}") from exc
            raise
        if first and self.spec.stock and self.watch.error:
            raise StockUnusable(f"{kind}: {self.watch.error}")
        rows = self.watch.rows
        for number, ((key, request), reply) in enumerate(zip(batch, replies, strict=True)):
            self.answers[key] = self._answer(kind, key, request, reply, rows, number, len(batch))
        json_lines.append(self._record, *(self.answers[key].as_json() for key, _ in batch))
        if self.spec.ground_every and self._batches % self.spec.ground_every == 0:
            self._ground(batch[-1][1])

    def _answer(
        self, kind: str, key: str, request: Any, reply: Any, rows: Sequence[Row], number: int, size: int
    ) -> Answer:
        context, _, _, doc_id, task, _ = request.args
        said = Answer(key=key, task=task, doc_id=int(doc_id), question=str(context), error=self.watch.error)
        if kind == "loglikelihood":
            return dataclasses.replace(said, score=(float(reply[0]), bool(reply[1])))
        said = dataclasses.replace(said, text=str(getattr(reply, "text", reply)))
        if size == 1 and rows:
            ids = tuple(token for row in rows for token in row.ids)
            prompt = "+".join(row.prompt for row in rows)
            return dataclasses.replace(
                said, ids=ids, prompt=prompt, inputs=dict(rows[-1].inputs), asked=self._asked(rows[-1])
            )
        if size > 1 and len(rows) == size:
            row = rows[number]
            return dataclasses.replace(
                said, ids=row.ids, prompt=row.prompt, inputs=dict(row.inputs), asked=self._asked(row)
            )
        return said

    def _asked(self, row: Row) -> str:
        """The prompt as the model's tokenizer reads it back; as ids where it cannot."""
        try:
            return str(self.inner.tokenizer.decode(list(row.asked)))
        except Exception:  # tokenizers of remote code fail in their own ways, and this is for readers only
            return str(list(row.asked))

    def _fits(self, known: Answer, request: Any) -> bool:
        """Whether a recorded answer is to this very question, and no failure."""
        return known.question == str(request.args[0]) and not known.error

    def _ground(self, request: Any) -> None:
        """One grounding request about the picture just asked about; without heads, its attention is read."""
        lmm = getattr(self.inner, "lmm", None)
        if lmm is None:
            return
        context, second, third, doc_id, task, split = request.args
        doc = self.task_dict[task][split][doc_id]
        # Chat form: messages, options; plain form: options, pictures; a log-likelihood: continuation, pictures.
        pictures = _pictures((second if isinstance(third, Mapping) else third)(doc))
        if not pictures:
            return
        phrases = phrases_of(str(context))
        self.grounded["asked"] += 1
        try:
            if lmm.heads is None:
                for phrase in phrases:
                    lmm.attention_maps(pictures[0], phrase)
                return
            self.task_dict[_GROUND_TASK] = {"between": [{"image_path": pictures[0], "expressions": phrases}]}
            arguments = ("", {GROUND_FLAG: True}, None, 0, _GROUND_TASK, "between")
            (reply,) = self.inner.generate_until([SimpleNamespace(args=arguments, metadata={})])
            self.grounded["failed"] += parse_masks_json(str(getattr(reply, "text", reply))).error is not None
        except Exception as exc:
            self.grounded["failed"] += 1
            print(f"flmm preserve: grounding between questions failed: {type(exc).__name__}: {exc}", file=sys.stderr)

    def _bar(self, total: int) -> Any:
        return tqdm(
            total=total, desc=self.spec.role, file=self._screen, disable=self._screen is None, dynamic_ncols=True
        )


def _options(arguments: Sequence[Any]) -> Mapping[str, Any]:
    """Generation arguments of a request of either form; a log-likelihood has none."""
    return next((one for one in arguments[1:3] if isinstance(one, Mapping)), {})


def _marks(options: Mapping[str, Any]) -> list[str]:
    """Markers of requests that are no plain chat; a marker of ``none`` asks for nothing.

    >>> _marks({"flmm_ground": True, "flmm_visual_cot": "none", "max_new_tokens": 4})
    ['flmm_ground']
    """
    return [name for name, value in options.items() if name.startswith(_MARK) and str(value).lower() != "none"]


def _pictures(shown: Any) -> list[Any]:
    """Pictures of what a task's ``doc_to_visual`` or ``doc_to_messages`` gives."""
    found = []
    for one in shown or []:
        if isinstance(one, Mapping) and "content" in one:
            parts = one["content"] if isinstance(one["content"], list) else []
            found += [part["url"] for part in parts if part.get("type") == "image"]
        else:
            found.append(one)
    return found
