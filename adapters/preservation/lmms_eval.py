"""Carry out a run in lmms-eval: its own evaluator around a model object that passes every request on and records it.

Requests are handed on a batch at a time. Each answer is on disk before the next is asked, and what a killed run had
answered already is not asked again. Around a model of this package a grounding follows each batch of questions.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TextIO

from lmms_eval.api.model import lmms
from tqdm import tqdm

from flmm_plugin.adapters.answering.defaults import DEFAULTS
from flmm_plugin.adapters.answering.requests import GROUND_FLAG
from flmm_plugin.adapters.lmms_eval.preflight import Asked, check, check_model
from flmm_plugin.adapters.preservation.faults import FAULTS
from flmm_plugin.adapters.preservation.judge import JudgeMemo
from flmm_plugin.adapters.preservation.record import PLAIN_TRANSFORMERS, RunSpec, StockUnusable
from flmm_plugin.adapters.preservation.stock import PLAIN, adapter_for, stock_arguments
from flmm_plugin.adapters.preservation.verdict import Answer
from flmm_plugin.adapters.preservation.watch import Recorder
from flmm_plugin.bundled import is_model
from flmm_plugin.errors import UnknownArgument
from flmm_plugin.records import parse_masks_json

_GROUND_TASK = "flmm_preserve"
_MARK = "flmm_"  # generation arguments of this name are how tasks ask this package's models for more than chat


def make_model(spec: RunSpec) -> tuple[str, Any]:
    """Load the model of a run.

    Returns:
        Its name, or for plain transformers that with the reason; and lmms-eval's model object.

    Raises:
        StockUnusable: The adapter of lmms-eval that was asked for by name does not load.
    """
    from lmms_eval.models import get_model

    ours = get_model(spec.model, spec.force_simple)
    if not spec.stock:
        options = {"device": spec.device, **spec.model_args, "batch_size": spec.batch_size}
        if options.get("device_map"):
            options.pop("device")
        model = ours(**options)
        if spec.plant:
            FAULTS[spec.plant](model)
        return spec.model, model
    arguments = {**stock_arguments(spec.model_args, DEFAULTS[spec.model].pretrained), **spec.stock_args}
    arguments = {"device": spec.device, "batch_size": spec.batch_size, **arguments}
    name, reason = adapter_for(arguments) if spec.stock == "auto" else (spec.stock, "asked for")
    if name != PLAIN:
        try:
            return name, get_model(name, spec.force_simple)(**{"device_map": spec.device, **arguments})
        except Exception as exc:  # adapters fail in their own ways: missing packages, arguments of older transformers
            words = f"{type(exc).__name__}: {' '.join(str(exc).split())}"
            if spec.stock != "auto":
                raise StockUnusable(words) from exc
            reason = f"lmms-eval's {name} does not load here ({words})"
    from flmm_plugin.adapters.preservation.plain_lmms_eval import PlainTransformers, PlainTransformersSimple

    plain = PlainTransformersSimple if spec.force_simple else PlainTransformers
    return f"{PLAIN_TRANSFORMERS}: {reason}", plain(**arguments)


def evaluate(
    adapter: str, recorder: Recorder, folder: Path, screen: TextIO | None, task_manager: Any = None
) -> tuple[dict[str, dict[str, Any]], dict[str, int]]:
    """Ask everything through lmms-eval's evaluator.

    Args:
        adapter: Name of the model, as `make_model` returned it.
        recorder: Record of this run, with its model.
        folder: Folder for files that tasks write beside their scores.
        screen: Stream of the progress bar; None: no bar.
        task_manager: lmms-eval's index of tasks, if the caller has one for this model's name.

    Returns:
        Metrics by task, and counts of judge answers.
    """
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    spec, memo = recorder.spec, JudgeMemo(Path(recorder.spec.judge))
    name = None if adapter.startswith(PLAIN_TRANSFORMERS) else adapter
    index = task_manager or TaskManager(model_name=name, include_path=spec.include_path)
    asked = Asked(spec.model, spec.model_args, spec.tasks, index, device=spec.device, batch_size=spec.batch_size)
    if is_model(check_model(asked).pretrained):
        index.flmm_changes = check(asked)  # data that is not here is read from the embedded model's synthetic scenes
    # What lmms-eval hands to tasks that write submission files beside their scores.
    options = argparse.Namespace(output_path=str(folder), process_with_media=False)
    with memo.active():
        result = simple_evaluate(
            model=WatchedModel(recorder, screen), tasks=list(spec.tasks), limit=spec.limit, task_manager=index,
            bootstrap_iters=0, log_samples=False, cli_args=options, process_docs_parallel=1,
        )  # fmt: skip
    metrics = {
        task: {key: _as_json(value) for key, value in values.items() if "," in key and "_stderr" not in key}
        for task, values in result["results"].items()
    }
    return metrics, memo.counts


class WatchedModel(lmms):
    """An lmms-eval model that passes every request on to another one and keeps a record.

    Args:
        recorder: Record of this run, with the model that answers.
        screen: Stream of the progress bar; None: no bar.
    """

    def __init__(self, recorder: Recorder, screen: TextIO | None = None) -> None:
        super().__init__()
        self.inner = recorder.model
        self.recorder = recorder
        self.is_simple = self.inner.is_simple
        self.task_dict = self.inner.task_dict
        self._screen = screen
        self._opened: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        # Only for what this class lacks: accelerator, device, tokenizer, and what else the evaluator asks a model for.
        if name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)

    def generate_until(self, requests: list[Any]) -> list[Any]:
        """Return texts of the inner model; in the F-LMM run, ground in between."""
        return [answer.text for answer in self._ask("generate_until", requests)]

    def loglikelihood(self, requests: list[Any]) -> list[Any]:
        """Return scores of the inner model."""
        return [answer.score for answer in self._ask("loglikelihood", requests)]

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        """Refuse: not compared."""
        raise UnknownArgument("multi-round tasks are not compared; leave them out of --tasks")

    def clean(self) -> None:
        """Close the record after the last request, before lmms-eval frees the model."""
        self.recorder.close(self.inner.clean)

    def _ask(self, kind: str, requests: Sequence[Any]) -> list[Answer]:
        times: Counter[tuple[str, int]] = Counter()
        keyed = []
        for request in requests:
            _, _, _, doc_id, task, _ = request.args
            keyed.append((f"{kind}/{task}/{doc_id}/{times[task, doc_id]}", request))
            times[task, doc_id] += 1
            if marks := marks_of(_options(request.args)):
                raise UnknownArgument(
                    f"{task} asks for what no stock adapter gives ({marks[0]}); leave it out of --tasks: there is no "
                    "chat in it to compare"
                )
        role = self.recorder.spec.role
        with tqdm(
            total=len(keyed), desc=role, file=self._screen, disable=self._screen is None, dynamic_ncols=True
        ) as bar:
            for batch in self._batches(kind, keyed):
                self._one_batch(kind, batch)
                bar.update(len(batch))
        return [self.recorder.answers[key] for key, _ in keyed]

    def _batches(self, kind: str, keyed: Sequence[tuple[str, Any]]) -> Iterator[dict[str, Any]]:
        """Make batches in order, of one task and one set of options each; the first of a kind is of one request.

        The logits are compared on its inputs, and it shows whether the stock adapter works at all.
        """
        batch: dict[str, Any] = {}
        sort: Any = None
        for key, request in keyed:
            here = (request.args[4], repr(sorted(_options(request.args).items(), key=lambda item: item[0])))
            full = len(batch) >= (self.recorder.spec.batch_size if kind in self._opened else 1)
            if batch and (full or here != sort):
                yield batch
                batch = {}
            batch[key] = request
            sort = here
        if batch:
            yield batch

    def _one_batch(self, kind: str, batch: Mapping[str, Any]) -> None:
        recorder, first = self.recorder, kind not in self._opened
        self._opened.add(kind)
        if not recorder.begin({key: str(request.args[0]) for key, request in batch.items()}, first=first):
            return
        may_be_unusable = first and bool(recorder.spec.stock)
        try:
            replies = getattr(self.inner, kind)(list(batch.values()))
        except Exception as exc:
            if may_be_unusable:
                raise StockUnusable(f"{kind}: {type(exc).__name__}: {exc}") from exc
            raise
        if may_be_unusable and recorder.watch.error:
            raise StockUnusable(f"{kind}: {recorder.watch.error}")
        answers = []
        for number, ((key, request), reply) in enumerate(zip(batch.items(), replies, strict=True)):
            context, _, _, doc_id, task, _ = request.args
            answer = Answer(key, task, int(doc_id), str(context), text=str(getattr(reply, "text", reply)))
            if kind == "loglikelihood":
                answer = Answer(key, task, int(doc_id), str(context), score=(float(reply[0]), bool(reply[1])))
            answers.append(recorder.answer(answer, number, len(batch)))
        if recorder.keep(answers):
            self._ground(request)

    def _ground(self, request: Any) -> None:
        """Ask for one grounding about the picture just asked about."""
        if getattr(self.inner, "lmm", None) is None:
            return
        context, second, third, doc_id, task, split = request.args
        doc = self.task_dict[task][split][doc_id]
        # Chat form: messages, options; plain form: options, pictures; a log-likelihood: continuation, pictures.
        pictures = _pictures((second if isinstance(third, Mapping) else third)(doc))
        if pictures:
            self.recorder.ground(str(context), pictures[0], self._masks)

    def _masks(self, picture: Any, phrases: list[str]) -> bool:
        """Ground phrases through the same request loop as the questions; return False if that failed."""
        self.task_dict[_GROUND_TASK] = {"between": [{"image_path": picture, "expressions": phrases}]}
        arguments = ("", {GROUND_FLAG: True}, None, 0, _GROUND_TASK, "between")
        (reply,) = self.inner.generate_until([SimpleNamespace(args=arguments, metadata={})])
        return parse_masks_json(str(getattr(reply, "text", reply))).error is None


def marks_of(options: Mapping[str, Any]) -> list[str]:
    """List the marks by which a request asks for more than chat; a mark of ``none`` asks for nothing.

    >>> marks_of({"flmm_ground": True, "flmm_visual_cot": "none", "max_new_tokens": 4})
    ['flmm_ground']
    """
    return [name for name, value in options.items() if name.startswith(_MARK) and str(value).lower() != "none"]


def _options(arguments: Sequence[Any]) -> Mapping[str, Any]:
    """Return the generation arguments of a request of either form; a log-likelihood has none."""
    return next((one for one in arguments[1:3] if isinstance(one, Mapping)), {})


def _pictures(shown: Any) -> list[Any]:
    """List the pictures in what a task's ``doc_to_visual`` or ``doc_to_messages`` returned."""
    found = []
    for one in shown or []:
        if isinstance(one, Mapping) and "content" in one:
            parts = one["content"] if isinstance(one["content"], list) else []
            found += [part["url"] for part in parts if part.get("type") == "image"]
        else:
            found.append(one)
    return found


def _as_json(value: Any) -> Any:
    """Convert a metric to what a file holds: a run that was read must be equal to the one that was written."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else str(value)
