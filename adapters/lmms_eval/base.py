"""The request loop: one lmms-eval model that chats as the stock adapter does and grounds where a task asks for masks.

Both kinds go through one `GroundedLMM`. Chat is its plain ``generate()``; grounding is a separate pass. A failed
sample is answered with an error record (masks) or an empty text (chat), counted and shown; it ends neither the run
nor a batch. At the end of a run the seal on the frozen weights is checked: if one weight changed, there is no result.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypeAlias, TypeVar

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, TokenCounts
from lmms_eval.api.model import lmms
from loguru import logger
from tqdm import tqdm

from flmm_plugin.adapters.lmms_eval import chat, given_text, grounded_chat, provenance
from flmm_plugin.adapters.lmms_eval.arguments import as_switch, checked_batch_size, none_if_said, refuse_unknown
from flmm_plugin.adapters.lmms_eval.failures import FailureLog
from flmm_plugin.adapters.lmms_eval.models import model_for
from flmm_plugin.adapters.lmms_eval.requests import Request, chat_of, question_of, unpack
from flmm_plugin.adapters.lmms_eval.visual_cot import VisualCotMode, answers_json, question_of_chat, question_of_doc
from flmm_plugin.errors import FrozenWeightsChanged, UnknownArgument
from flmm_plugin.records import error_json, masks_json

T = TypeVar("T")
Reply: TypeAlias = "str | GenerationResult"


class FlmmModel(lmms):
    """A grounded LMM as an lmms-eval model, in chat form.

    Subclasses name their default checkpoint; `simple_form` makes the class for ``--force_simple``.

    Args:
        pretrained: Folder or hub id of the LMM.
        heads: Grounding heads: a file, ``auto`` (those that belong to the LMM), ``none`` for chat alone.
        batch_size: Requests per forward pass.
        device: Where to run; the default is a GPU per process if there is one.
        **options: `flmm_plugin.adapters.lmms_eval.arguments` lists them all; an unknown one is refused.
    """

    is_simple = False
    #: Tells `flmm_plugin.adapters.lmms_eval.seam` what this is when a model object is evaluated, not a name.
    answers_with_masks: ClassVar[bool] = True
    default_pretrained: ClassVar[str] = ""
    default_heads: ClassVar[str | None] = "auto"
    #: Model types (config.json) that it is for; empty: any.
    families: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        pretrained: str | None = None,
        heads: str | None = "",
        batch_size: int | str = 1,
        device: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        refuse_unknown(options, type(self).__name__)
        options.pop("max_batch_size", None)
        self._batch_size = checked_batch_size(batch_size)
        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        settings = {name: none_if_said(value) for name, value in options.items()}
        settings["device"] = None if settings.get("device_map") else self._place(none_if_said(device))
        settings = {name: value for name, value in settings.items() if value is not None}
        self.visual_cot = VisualCotMode.taken_from(settings)
        chosen_heads = self.default_heads if heads == "" else none_if_said(heads)
        if self.visual_cot.always and chosen_heads is None:
            raise UnknownArgument("visual_cot needs heads to find what to look at; give --model_args heads=<file>")
        for name in ("load_in_4bit", "load_in_8bit", "trust_remote_code"):
            if name in settings:
                settings[name] = as_switch(name, settings[name])
        if "sam" in options:
            settings["sam"] = str(options["sam"])  # where `none` is a choice, not an absence
        if not (pretrained or self.default_pretrained):
            raise UnknownArgument(
                f"{type(self).__name__} has no model of its own: --model_args pretrained=<folder or hub id>"
            )
        self.lmm = self.load(pretrained or self.default_pretrained, heads=chosen_heads, **settings)
        self._grounds = chosen_heads is not None
        heads_used = getattr(self.lmm, "heads", None)
        self._selects = heads_used is None or heads_used.keyword_selector is not None
        # Taken now: the seal is made when it is first asked for, and must know the weights before the first answer.
        self._seal = self.lmm.seal
        self._strings: bool | None = None
        asked = {**options, "pretrained": pretrained, "heads": heads or None, "device": device}
        self.provenance = provenance.remember(self, asked)

    def load(self, pretrained: str, *, heads: str | None, **settings: Any) -> Any:
        """The `GroundedLMM` that answers. Imported here: naming this class must not cost torch models."""
        from flmm_plugin.backbones import family_of
        from flmm_plugin.grounded_lmm import GroundedLMM

        if self.families:
            family = family_of(pretrained, revision=settings.get("revision"))
            if family not in self.families:
                raise UnknownArgument(
                    f"{type(self).__name__} is for {' and '.join(self.families)} models, {pretrained} is a {family!r} "
                    f"model: use --model {model_for(family)}"
                )
        return GroundedLMM.from_pretrained(pretrained, heads=heads, **settings)

    @property
    def batch_size(self) -> int:
        """Requests per forward pass."""
        return self._batch_size

    @property
    def device(self) -> torch.device:
        """Where lmms-eval puts the small tensors that ranks exchange."""
        return self.accelerator.device if self.world_size > 1 else torch.device(self._model().backbone.device)

    @property
    def tokenizer(self) -> Any:
        """The LMM's tokenizer."""
        return self._model().backbone.tokenizer

    def generate_until(self, requests: list[Any]) -> list[Reply]:
        """Answer every request, in order: masks JSON where the task asked for masks, text elsewhere."""
        unpacked = list(unpack(requests))
        asked = [request for request in unpacked if not request.padding]
        # Of all requests, padding too: a rank with nothing else must raise with the others, not wait for them.
        self._refuse_masks_without_heads(unpacked)
        replies: list[Reply] = [""] * len(unpacked)
        failures = FailureLog(self.rank)
        for batch in self._batches(asked, "flmm"):
            answer = self._answerer(batch[0])
            for request, reply in zip(batch, answer(batch, failures), strict=True):
                replies[request.index] = reply
        failures.report(len(asked))
        return replies

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """Mean loss of each continuation, and whether it is what greedy decoding writes; one request at a time."""
        failures = FailureLog(self.rank)
        scores = []
        for instance in tqdm(requests, desc="flmm", disable=self.rank != 0):
            context, target, doc_to_visual, doc_id, task, split = instance.args
            if (instance.metadata or {}).get("__padding_only__"):
                scores.append((0.0, False))
                continue
            try:
                doc = self.task_dict[task][split][doc_id]
                continuation = target if isinstance(target, str) else target(doc)
                pictures = list(doc_to_visual(doc) or [])
                scores.append(chat.loglikelihood(self._model().backbone, context, continuation, pictures))
            except Exception as exc:
                failures.add(task, doc_id, exc)
                # The worst loss: the choice that could not be read is never the chosen one.
                scores.append((float("inf"), False))
        failures.report(len(requests))
        return scores

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
            self.lmm = self._seal = None
            super().clean()
            if problem is not None:
                raise problem
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

    def _answerer(self, request: Request) -> Callable[[Sequence[Request], FailureLog], list[Reply]]:
        """What answers requests of this kind; a batch holds one kind."""
        if request.wants_masks:
            return self._ground
        if request.gives_text:
            return self._given_text
        if self.visual_cot.wants(request) and not request.wants_grounded_chat:
            return self._visual_cot
        return self._grounded_chat if request.wants_grounded_chat else self._chat

    def _ground(self, batch: Sequence[Request], failures: FailureLog) -> list[Reply]:
        """Masks JSON for each request; the pictures that can be opened go through the model together."""
        replies: list[Reply] = [""] * len(batch)
        readable: list[int] = []
        questions = []
        for place, request in enumerate(batch):
            try:
                questions.append(question_of(request, self._doc(request)))
                readable.append(place)
            except Exception as exc:
                replies[place] = self._no_masks(request, exc, failures)
        found = _together_or_apart(
            lambda some: self._model().ground_many(
                [q.image for q in some], [q.phrases for q in some], batch_size=len(some)
            ),
            questions,
        )
        for place, question, result in zip(readable, questions, found, strict=True):
            if isinstance(result, Exception):
                replies[place] = self._no_masks(batch[place], result, failures)
            else:
                replies[place] = masks_json(result, size=(question.image.height, question.image.width))
        return replies

    def _given_text(self, batch: Sequence[Request], failures: FailureLog) -> list[Reply]:
        """Masks or keywords of texts that the documents give; those that can be read go through the model together."""
        replies: list[Reply] = [""] * len(batch)
        readable: list[int] = []
        texts = []
        for place, request in enumerate(batch):
            try:
                texts.append(given_text.text_of(request, self._doc(request)))
                readable.append(place)
            except Exception as exc:
                replies[place] = self._no_masks(request, exc, failures)
        answers = _together_or_apart(lambda some: given_text.replies(self._model(), batch[0], some), texts)
        for place, answer in zip(readable, answers, strict=True):
            failed = isinstance(answer, Exception)
            replies[place] = self._no_masks(batch[place], answer, failures) if failed else answer
        return replies

    def _chat(self, batch: Sequence[Request], failures: FailureLog) -> list[Reply]:
        """Texts; the requests of a batch share their generation arguments."""
        replies: list[Reply] = [""] * len(batch)
        readable: list[int] = []
        chats: list[tuple[list[dict[str, Any]], list[Any]]] = []
        for place, request in enumerate(batch):
            try:
                chats.append(self._messages(request))
                readable.append(place)
            except Exception as exc:
                failures.add(request.task, request.doc_id, exc)
        options = chat.generate_options(batch[0].options, self.tokenizer.eos_token_id)
        answers = _together_or_apart(
            lambda some: self._model().chat_batch([c[0] for c in some], [c[1] for c in some], **options), chats
        )
        for place, answer in zip(readable, answers, strict=True):
            if isinstance(answer, Exception):
                failures.add(batch[place].task, batch[place].doc_id, answer)
            else:
                replies[place] = GenerationResult(answer.text, TokenCounts(output_tokens=len(answer.token_ids)))
        return replies

    def _grounded_chat(self, batch: Sequence[Request], failures: FailureLog) -> list[Reply]:
        """Text and masks in one JSON for each request; answers are read back one by one."""
        replies: list[Reply] = []
        for request in batch:
            try:
                messages, pictures = self._messages(request)
                replies.append(grounded_chat.reply(self._model(), request, messages, pictures))
            except Exception as exc:
                replies.append(self._no_masks(request, exc, failures))
        return replies

    def _visual_cot(self, batch: Sequence[Request], failures: FailureLog) -> list[Reply]:
        """Answers after a second look; chats that are not about one picture are answered as ever."""
        replies: list[Reply] = [""] * len(batch)
        token, in_json = self._model().backbone.processor.image_token, answers_json(batch[0])
        asked: list[tuple[int, Any]] = []
        plain: list[int] = []
        for place, request in enumerate(batch):
            try:
                doc = self._doc(request)
                one = (
                    question_of_doc(request, doc) if in_json else question_of_chat(*chat_of(request, doc, token), token)
                )
                if one is None:
                    plain.append(place)
                else:
                    asked.append((place, one))
            except Exception as exc:
                replies[place] = self._no_answer(request, exc, failures, in_json)
        how = self.visual_cot.options_of(batch[0])
        options = chat.generate_options(batch[0].options, self.tokenizer.eos_token_id)
        answers = _together_or_apart(
            lambda some: self._model().visual_cot_batch([one for _, one in some], how, **options), asked
        )
        for (place, one), answer in zip(asked, answers, strict=True):
            if isinstance(answer, Exception):
                replies[place] = self._no_answer(batch[place], answer, failures, in_json)
            elif in_json:
                replies[place] = answer.to_json((one.image.height, one.image.width))
            else:
                replies[place] = GenerationResult(answer.text, TokenCounts(output_tokens=len(answer.token_ids)))
        if plain:
            logger.debug(f"flmm: {len(plain)} chats of {batch[0].task} are not about one picture; answered directly")
            for place, reply in zip(plain, self._chat([batch[place] for place in plain], failures), strict=True):
                replies[place] = reply
        return replies

    def _no_answer(self, request: Request, error: Exception, failures: FailureLog, in_json: bool) -> str:
        if in_json:
            return self._no_masks(request, error, failures)
        failures.add(request.task, request.doc_id, error)
        return ""

    def _messages(self, request: Request) -> tuple[list[dict[str, Any]], list[Any]]:
        backbone = self._model().backbone
        if self._strings is None:
            self._strings = chat.takes_strings(backbone.render)
        token = backbone.processor.image_token
        messages, pictures = chat_of(request, self._doc(request), token)
        return chat.as_the_template_likes(messages, self._strings, token), pictures

    def _no_masks(self, request: Request, error: Exception, failures: FailureLog) -> str:
        failures.add(request.task, request.doc_id, error)
        # lmms-eval's response cache keeps whatever is not empty, unless the request was sampled: a picture that is
        # repaired must be asked again, so the failed request is marked as one that cannot be repeated.
        request.options["do_sample"] = f"failed: {type(error).__name__}"
        return error_json(error)

    def _batches(self, requests: Iterable[Request], name: str) -> Iterator[list[Request]]:
        """Batches in the order of the requests, each of one kind and one set of generation arguments."""
        groups: dict[Hashable, list[Request]] = {}
        for request in requests:
            groups.setdefault(_frozen(request.options), []).append(request)
        with tqdm(total=sum(map(len, groups.values())), desc=name, disable=self.rank != 0) as bar:
            for group in groups.values():
                for start in range(0, len(group), self.batch_size):
                    batch = group[start : start + self.batch_size]
                    yield batch
                    bar.update(len(batch))

    def _refuse_masks_without_heads(self, requests: Iterable[Request]) -> None:
        """The one trouble that every sample would have, and that all ranks find out at the same moment."""
        if not self._grounds and any(self._needs_heads(request) for request in requests):
            raise UnknownArgument(
                "this model was loaded with heads=none and can only chat; give --model_args heads=<file>"
            )
        if not self._selects and any(request.wants_keywords for request in requests):
            raise UnknownArgument(
                "these heads have no keyword selector (released checkpoints have none) and a task asks for keywords; "
                "give --model_args heads=<file> of heads that were trained with one"
            )

    def _needs_heads(self, request: Request) -> bool:
        return (
            request.wants_masks or request.gives_text or request.wants_grounded_chat or self.visual_cot.wants(request)
        )

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


def simple_form(chat_class: type[FlmmModel]) -> type[FlmmModel]:
    """The class for ``--force_simple``: the same model, asked with lmms-eval's plain prompts."""
    namespace = {
        "is_simple": True,
        "__module__": chat_class.__module__,
        "__doc__": f"`{chat_class.__name__}`, simple form.",
    }
    return type(f"{chat_class.__name__}Simple", (chat_class,), namespace)


def _together_or_apart(ask: Callable[[list[T]], list[Any]], items: list[T]) -> list[Any]:
    """Results of a batch; if it fails, of each item alone, with the exception in place of those that fail alone."""
    if not items:
        return []
    try:
        return list(ask(items))
    except Exception as exc:
        if len(items) == 1:
            return [exc]
        logger.warning(f"flmm: a batch of {len(items)} failed ({type(exc).__name__}: {exc}); asking one by one")
    return [result for item in items for result in _together_or_apart(ask, [item])]


def _frozen(options: Mapping[str, Any]) -> Hashable:
    """Generation arguments as a key; lists and the like by what they say."""
    return tuple(sorted((name, repr(value)) for name, value in options.items()))
