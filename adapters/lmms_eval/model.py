"""The request loop: one lmms-eval model that chats as the stock adapter does and grounds where a task asks for masks.

Both kinds go through one `GroundedLMM`. Chat is its plain ``generate()``; grounding is a separate pass. A failed
sample is answered with an error record (masks) or an empty text (chat), counted and shown; it ends neither the run
nor a batch. At the end of a run the seal on the frozen weights is checked: if one weight changed, there is no result.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, TypeAlias

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from lmms_eval.api.instance import GenerationResult, TokenCounts
from lmms_eval.api.model import lmms
from loguru import logger
from tqdm import tqdm

from flmm_plugin.adapters.answering import chat
from flmm_plugin.adapters.answering.answerer import Answerer, TextReply
from flmm_plugin.adapters.answering.arguments import ModelArguments, checked_batch_size
from flmm_plugin.adapters.answering.defaults import AUTO, Defaults
from flmm_plugin.adapters.answering.failures import UNANSWERED, FailureLog
from flmm_plugin.adapters.answering.provenance import record_of
from flmm_plugin.adapters.answering.requests import Request
from flmm_plugin.adapters.lmms_eval import exit_status, provenance
from flmm_plugin.adapters.lmms_eval.answer_cache import keep_answers_one_by_one
from flmm_plugin.adapters.lmms_eval.requests import chat_of, unpack
from flmm_plugin.adapters.lmms_eval.unanswered import NoAnswer, earn_nothing
from flmm_plugin.errors import FrozenWeightsChanged
from flmm_plugin.measured import remember_model

Reply: TypeAlias = "str | GenerationResult"


class FlmmModel(lmms):
    """A grounded LMM as an lmms-eval model, in chat form; `classes` makes one class per name.

    Args:
        **given: Model arguments by name (`flmm_plugin.adapters.answering.arguments.MODEL_ARGUMENTS`): ``pretrained``,
            ``heads``, ``batch_size``, ``device``, ...; an unknown one is refused.
    """

    is_simple = False
    #: Tells `flmm_plugin.adapters.lmms_eval.task_folder` what this is when a model object is evaluated, not a name.
    answers_with_masks: ClassVar[bool] = True
    #: The name for ``--model``, and what it stands for.
    defaults: ClassVar[Defaults] = AUTO
    #: Whether a weight was found changed at the end of a run; its answers are not kept then.
    seal_broken = False

    def __init__(self, **given: Any) -> None:
        super().__init__()
        arguments = ModelArguments.read(self.defaults, given)
        self._batch_size = checked_batch_size(given.get("batch_size", 1))
        keep_answers_one_by_one()
        earn_nothing()
        UNANSWERED.clear()
        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        self.visual_cot = arguments.visual_cot
        self.arguments = arguments
        self.lmm = self.load(arguments, self._place(arguments.device))
        self._answerer: Any = Answerer(
            self.lmm,
            visual_cot=self.visual_cot,
            grounds=arguments.heads is not None,
            take_heads=self._take_heads,
            doc_of=self._doc,
            chat_of=chat_of,
        )
        # Taken now: the seal is made when it is first asked for, and must know the weights before the first answer.
        self._seal = self.lmm.seal
        self._said = {name: value for name, value in given.items() if name != "batch_size" and value != ""}
        self.provenance = provenance.remember(self, self._said)

    def load(self, arguments: ModelArguments, device: str) -> Any:
        """Load the `GroundedLMM` that answers."""
        return arguments.load(device)

    def get_ready(self, requests: Iterable[Request]) -> None:
        """Load the heads if a request needs them, and refuse what no sample could be answered for."""
        self._model()
        self._answerer.refuse_what_heads_lack(requests)

    def _take_heads(self) -> None:
        if self.arguments.take_heads(self._model()):
            self.provenance.update(record_of(self, self._said))

    @property
    def batch_size(self) -> int:
        """Requests per forward pass."""
        return self._batch_size

    @property
    def device(self) -> torch.device:
        """Device on which lmms-eval puts the small tensors that ranks exchange."""
        return self.accelerator.device if self.world_size > 1 else torch.device(self._model().backbone.device)

    @property
    def tokenizer(self) -> Any:
        """The LMM's tokenizer."""
        return self._model().backbone.tokenizer

    def generate_until(self, requests: list[Any]) -> list[Reply]:
        """Answer every request, in order: masks JSON where the task asked for masks, text elsewhere."""
        return list(self.answers(requests))

    def answers(self, requests: list[Any]) -> Iterator[Reply]:
        """The same one by one, each as soon as it and all before it are there: what is handed over can be kept."""
        unpacked = list(unpack(requests))
        asked = [request for request in unpacked if not request.padding]
        # Of all requests, padding too: a rank with nothing else must raise with the others, not wait for them.
        self.get_ready(unpacked)
        replies: dict[int, Reply] = {request.index: "" for request in unpacked if request.padding}
        failures = FailureLog(self.rank)
        given = 0
        for batch in self._batches(asked, "flmm"):
            for request, reply in zip(batch, self._answerer.answer(batch, failures), strict=True):
                replies[request.index] = _as_lmms_eval_has_it(reply)
            while given in replies and given < len(unpacked) - 1:
                yield replies.pop(given)
                given += 1
        # Before the last one, behind which nobody has to come back.
        failures.report(len(asked))
        if self.rank == 0:
            remember_model(self._answerer.watch, self.lmm.backbone, self.batch_size)
        yield from (replies[index] for index in range(given, len(unpacked)))

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """Mean loss of each continuation, and whether it is what greedy decoding writes; one request at a time."""
        return list(self.losses(requests))

    def losses(self, requests: list[Any]) -> Iterator[tuple[float, bool]]:
        """The same one by one: what is handed over can be kept."""
        failures = FailureLog(self.rank)
        for number, instance in enumerate(tqdm(requests, desc="flmm", disable=self.rank != 0), start=1):
            loss = self._loss(instance, failures)
            if number == len(requests):  # nobody has to come back behind the last one
                failures.report(number)
            yield loss

    def _loss(self, instance: Any, failures: FailureLog) -> tuple[float, bool]:
        context, target, doc_to_visual, doc_id, task, split = instance.args
        if (instance.metadata or {}).get("__padding_only__"):
            return 0.0, False
        try:
            doc = self.task_dict[task][split][doc_id]
            continuation = target if isinstance(target, str) else target(doc)
            pictures = list(doc_to_visual(doc) or [])
            return chat.loglikelihood(self._model().backbone, context, continuation, pictures)
        except Exception as exc:
            failures.add(task, doc_id, exc)
            # The worst loss: the choice that could not be read is never the chosen one.
            return float("inf"), False

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        """Not offered, as in lmms-eval's ``llava_hf``."""
        raise NotImplementedError("flmm models answer single rounds; leave multi-round tasks out of --tasks")

    def clean(self) -> None:
        """Called once, after the last request: check the seal on the frozen weights, then free the model.

        Raises:
            FrozenWeightsChanged: On every rank, if on any rank a weight is not what it was when it was loaded.
        """
        if self.lmm is not None:
            problem = self._seal_problem()
            self.seal_broken = problem is not None
            self.lmm = self._seal = self._answerer = None
            super().clean()
            if problem is not None:
                raise problem
            self.provenance["failed"] = exit_status.run.unanswered = self._unanswered()
            if self.rank == 0:
                logger.info("flmm: the seal holds, no weight of the LMM changed during this run")

    def _seal_problem(self) -> Exception | None:
        problem: Exception | None = None
        try:
            self._seal.verify()
        except Exception as exc:
            problem = exc
        if self.world_size > 1:
            # All ranks decide together: one that raised alone would leave the others waiting at the next barrier.
            broken = self.accelerator.gather(torch.tensor([problem is not None], device=self.accelerator.device))
            if problem is None and bool(broken.any()):
                problem = FrozenWeightsChanged("a weight of the LMM changed on another rank; its log names the tensor")
        return problem

    def _unanswered(self) -> dict[str, int]:
        """Count the documents of each task that got no answer, over all ranks."""
        mine = [{task: sorted(ids) for task, ids in UNANSWERED.items()}]
        gathered: list[dict[str, list[int]]] = gather_object(mine) if self.world_size > 1 else mine
        tasks = sorted({task for one in gathered for task in one})
        return {task: len({doc_id for one in gathered for doc_id in one.get(task, ())}) for task in tasks}

    def _batches(self, requests: Iterable[Request], name: str) -> Iterator[list[Request]]:
        """Batches, each of one kind and one set of generation arguments, and a picture's sentences together."""
        groups: dict[Hashable, list[Request]] = {}
        for request in requests:
            groups.setdefault(_frozen(request.options), []).append(request)
        with tqdm(total=sum(map(len, groups.values())), desc=name, disable=self.rank != 0) as bar:
            for group in groups.values():
                for batch in self._answerer.batches(group, self.batch_size):
                    yield batch
                    bar.update(len(batch))

    def _doc(self, request: Request) -> Any:
        return self.task_dict[request.task][request.split][request.doc_id]

    def _model(self) -> Any:
        if self.lmm is None:
            raise RuntimeError("lmms-eval freed this model at the end of its run; make a new one")
        return self.lmm

    def _place(self, device: str | None) -> str:
        """A GPU of its own for each process that accelerate gives one, unless the user named a device."""
        if device in (None, "cuda") and self.accelerator.device.type == "cuda":
            return f"cuda:{self.accelerator.local_process_index}"
        return device or "cpu"


def _as_lmms_eval_has_it(reply: str | TextReply) -> Reply:
    if not reply:
        return NoAnswer()
    if isinstance(reply, TextReply):
        return GenerationResult(reply.text, TokenCounts(output_tokens=reply.tokens))
    return reply


def _frozen(options: Mapping[str, Any]) -> Hashable:
    """Generation arguments as a key; lists and the like by what they say."""
    return tuple(sorted((name, repr(value)) for name, value in options.items()))
