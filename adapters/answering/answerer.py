"""Answers to requests, whichever harness asks: chat as the model says it, masks where they were asked for.

All kinds go through one `GroundedLMM`. Chat is its plain ``generate()``; grounding is a separate pass. A failed sample
is answered with an error record (masks) or an empty text (chat), counted and shown; it ends neither a run nor a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

from loguru import logger
from PIL import Image

from flmm_plugin.adapters.answering import chat, given_text, grounded_chat
from flmm_plugin.adapters.answering.failures import FailureLog
from flmm_plugin.adapters.answering.requests import Request, question_of
from flmm_plugin.adapters.answering.visual_cot import (
    VisualCotMode,
    answers_json,
    question_of_chat,
    question_of_doc,
)
from flmm_plugin.errors import UnknownArgument
from flmm_plugin.records import error_json, masks_json
from flmm_plugin.visual_cot import CotQuestion

T = TypeVar("T")


class TextReply(NamedTuple):
    """An answer in words."""

    text: str
    tokens: int


#: Masks JSON, the empty text of a failed chat, or an answer.
Reply: TypeAlias = "str | TextReply"

#: Messages in transformers' form and their pictures, of a request and its document, with the model's image token.
ChatOf: TypeAlias = Callable[[Request, Any, str], "tuple[list[dict[str, Any]], list[Image.Image]]"]


class Answerer:
    """A loaded model that answers batches of requests.

    Args:
        lmm: The `GroundedLMM`.
        visual_cot: Which requests get a second look.
        grounds: Whether it was loaded with heads.
        doc_of: The document of a request.
        chat_of: The chat of a request.
    """

    def __init__(
        self,
        lmm: Any,
        *,
        visual_cot: VisualCotMode,
        grounds: bool,
        doc_of: Callable[[Request], Any],
        chat_of: ChatOf,
    ) -> None:
        self.lmm, self.visual_cot = lmm, visual_cot
        self._grounds = grounds
        heads = getattr(lmm, "heads", None)
        self._selects = heads is None or heads.keyword_selector is not None
        self._doc_of, self._chat_of = doc_of, chat_of
        self._strings: bool | None = None

    def answer(self, batch: Sequence[Request], failures: FailureLog) -> list[Reply]:
        """The replies to a batch, in order: masks JSON where the task asked for masks, text elsewhere.

        Args:
            batch: Of one kind and one set of generation arguments.
            failures: Where samples without an answer are noted.
        """
        return self._kind(batch[0])(batch, failures)

    def refuse_what_heads_lack(self, requests: Iterable[Request]) -> None:
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

    def _kind(self, request: Request) -> Callable[[Sequence[Request], FailureLog], list[Reply]]:
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
                questions.append(question_of(request, self._doc_of(request)))
                readable.append(place)
            except Exception as exc:
                replies[place] = self._no_masks(request, exc, failures)
        found = _together_or_apart(
            lambda some: self.lmm.ground_many([q.image for q in some], [q.phrases for q in some], batch_size=len(some)),
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
                texts.append(given_text.text_of(request, self._doc_of(request)))
                readable.append(place)
            except Exception as exc:
                replies[place] = self._no_masks(request, exc, failures)
        answers = _together_or_apart(lambda some: given_text.replies(self.lmm, batch[0], some), texts)
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
        options = chat.generate_options(batch[0].options, self.lmm.backbone.tokenizer.eos_token_id)
        answers = _together_or_apart(
            lambda some: self.lmm.chat_batch([c[0] for c in some], [c[1] for c in some], **options), chats
        )
        for place, answer in zip(readable, answers, strict=True):
            if isinstance(answer, Exception):
                failures.add(batch[place].task, batch[place].doc_id, answer)
            else:
                replies[place] = TextReply(answer.text, len(answer.token_ids))
        return replies

    def _grounded_chat(self, batch: Sequence[Request], failures: FailureLog) -> list[Reply]:
        """Text and masks in one JSON for each request; answers are read back one by one."""
        replies: list[Reply] = []
        for request in batch:
            try:
                messages, pictures = self._messages(request)
                replies.append(grounded_chat.reply(self.lmm, request, messages, pictures))
            except Exception as exc:
                replies.append(self._no_masks(request, exc, failures))
        return replies

    def _visual_cot(self, batch: Sequence[Request], failures: FailureLog) -> list[Reply]:
        """Answers after a second look; chats that are not about one picture are answered as ever."""
        replies: list[Reply] = [""] * len(batch)
        token, in_json = self.lmm.backbone.image_token, answers_json(batch[0])
        asked: list[tuple[int, Any]] = []
        plain: list[int] = []
        for place, request in enumerate(batch):
            try:
                doc = self._doc_of(request)
                one: CotQuestion | None
                if in_json:
                    one = question_of_doc(request, doc)
                else:
                    one = question_of_chat(*self._chat_of(request, doc, token), token)
                if one is None:
                    plain.append(place)
                else:
                    asked.append((place, one))
            except Exception as exc:
                replies[place] = self._no_answer(request, exc, failures, in_json)
        how = self.visual_cot.options_of(batch[0])
        options = chat.generate_options(batch[0].options, self.lmm.backbone.tokenizer.eos_token_id)
        answers = _together_or_apart(
            lambda some: self.lmm.visual_cot_batch([one for _, one in some], how, **options), asked
        )
        for (place, one), answer in zip(asked, answers, strict=True):
            if isinstance(answer, Exception):
                replies[place] = self._no_answer(batch[place], answer, failures, in_json)
            elif in_json:
                replies[place] = answer.to_json((one.image.height, one.image.width))
            else:
                replies[place] = TextReply(answer.text, len(answer.token_ids))
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
        backbone = self.lmm.backbone
        if self._strings is None:
            self._strings = chat.takes_strings(backbone.render)
        token = backbone.image_token
        messages, pictures = self._chat_of(request, self._doc_of(request), token)
        return chat.as_the_template_likes(messages, self._strings, token), pictures

    def _no_masks(self, request: Request, error: Exception, failures: FailureLog) -> str:
        failures.add(request.task, request.doc_id, error)
        # lmms-eval's response cache keeps whatever is not empty, unless the request was sampled: a picture that is
        # repaired must be asked again, so the failed request is marked as one that cannot be repeated.
        request.options["do_sample"] = f"failed: {type(error).__name__}"
        return error_json(error)


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
