"""Answers to requests, whichever harness asks: chat as the model says it, masks where they were asked for.

All kinds go through one `GroundedLMM`. Chat is its plain ``generate()``; grounding is a separate pass. A failed sample
is answered with an error record (masks) or an empty text (chat), counted and shown; it ends neither a run nor a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

from loguru import logger
from PIL import Image

from flmm_plugin.adapters.answering import chat, given_text, grounded_chat
from flmm_plugin.adapters.answering.failures import FailureLog
from flmm_plugin.adapters.answering.needs import needs_heads
from flmm_plugin.adapters.answering.requests import Question, Request, picture_named, question_of
from flmm_plugin.adapters.answering.visual_cot import (
    VisualCotMode,
    answers_json,
    question_of_chat,
    question_of_doc,
)
from flmm_plugin.errors import UnknownArgument
from flmm_plugin.measured import Stopwatch
from flmm_plugin.passages import GivenText, Keyword
from flmm_plugin.records import ChatAnswer, GroundedAnswer, Groundings, error_json, masks_json
from flmm_plugin.visual_cot import CotQuestion, VisualCotAnswer, VisualCotOptions

T = TypeVar("T")

#: Documents of one picture that are answered together; a kill loses no more than these.
_OF_ONE_PICTURE = 32


class TextReply(NamedTuple):
    """An answer in words."""

    text: str
    tokens: int


#: Masks JSON, the empty text of a failed chat, or an answer.
Reply: TypeAlias = "str | TextReply"

#: Messages in transformers' form and their pictures, of a request and its document, with the model's image token.
ChatOf: TypeAlias = Callable[[Request, Any, str], "tuple[list[dict[str, Any]], list[Image.Image]]"]


class Model(Protocol):
    """The methods of a `GroundedLMM` that answers come from."""

    backbone: Any
    heads: Any

    def chat_batch(self, messages: list[Any], images: list[Any], **generate: Any) -> list[ChatAnswer]:
        """Continue chats."""

    def ground_many(self, images: list[Any], phrases: list[list[str]], *, batch_size: int) -> list[Groundings]:
        """Ground phrases in several pictures."""

    def ground_pieces(self, texts: Sequence[GivenText]) -> list[Groundings]:
        """Ground pieces of given texts."""

    def select_keywords(self, texts: Sequence[GivenText]) -> list[list[Keyword]]:
        """Choose words in given texts."""

    def grounded_chat(self, image: Image.Image, question: list[Any], **generate: Any) -> GroundedAnswer:
        """Answer, and ground what the answer names."""

    def ground_answer(self, image: Image.Image, question: list[Any], *, begin: str, **generate: Any) -> GroundedAnswer:
        """Answer, and ground the answer as a whole."""

    def visual_cot_batch(
        self, asked: list[CotQuestion], options: VisualCotOptions, **generate: Any
    ) -> list[VisualCotAnswer]:
        """Answer after a second look."""


class Answerer:
    """A loaded model that answers batches of requests.

    Args:
        lmm: A loaded `GroundedLMM`, with heads or without.
        visual_cot: Says which requests get a second look.
        grounds: Whether heads were asked for; without them the model only chats.
        take_heads: Loads the heads if they are not loaded yet; called before the first request that needs them.
        doc_of: Gives the document of a request.
        chat_of: Gives the chat of a request, in transformers' form.
    """

    def __init__(
        self,
        lmm: Model,
        *,
        visual_cot: VisualCotMode,
        grounds: bool,
        take_heads: Callable[[], None],
        doc_of: Callable[[Request], Any],
        chat_of: ChatOf,
    ) -> None:
        self.lmm, self.visual_cot = lmm, visual_cot
        self._grounds, self._take_heads = grounds, take_heads
        self._doc_of, self._chat_of = doc_of, chat_of
        self._strings: bool | None = None
        self.watch = Stopwatch()

    def answer(self, batch: Sequence[Request], failures: FailureLog) -> list[Reply]:
        """Answer a batch, in order: masks JSON where the task asked for masks, text elsewhere.

        Args:
            batch: Requests of one kind and one set of generation arguments.
            failures: Notes samples without an answer.
        """
        before = len(failures)
        with self.watch.lap() as lap:
            replies = self._kind(batch[0])(batch, failures)
            # A sample that fails takes no time that says anything about others.
            lap.tasks = [request.task for request in batch] if len(failures) == before else []
        return replies

    def batches(self, requests: Iterable[Request], size: int) -> Iterator[list[Request]]:
        """Split requests of one kind and one set of generation arguments into batches.

        Those that ask for one phrase each of the same picture make a batch of their own, whatever its size: prompt and
        picture are computed once for them. All others stay in order.

        Args:
            requests: Requests that `answer` may get together.
            size: Requests per batch, from 1 on.
        """
        groups: dict[Hashable, list[Request]] = {}
        for request in requests:
            picture = self._picture_of_one_phrase(request)
            groups.setdefault(request if picture is None else picture, []).append(request)
        rest: list[Request] = []
        for group in groups.values():
            if len(group) > 1:
                for start in range(0, len(group), _OF_ONE_PICTURE):
                    yield group[start : start + _OF_ONE_PICTURE]
                continue
            rest += group
            if len(rest) == size:
                yield rest
                rest = []
        if rest:
            yield rest

    def _picture_of_one_phrase(self, request: Request) -> Hashable:
        if not request.wants_masks:
            return None
        try:
            doc = self._doc_of(request)
            return picture_named(doc) if len(doc["expressions"]) == 1 else None
        except Exception:  # said when it is its turn
            return None

    def refuse_what_heads_lack(self, requests: Iterable[Request]) -> None:
        """Load heads if a request needs them, and refuse tasks that no sample could be answered for.

        All ranks find that out at the same moment.
        """
        needing = [request for request in requests if needs_heads(request.options, self.visual_cot)]
        if not needing:
            return
        if not self._grounds:
            raise UnknownArgument(
                "this model was loaded with heads=none and can only chat; give --model_args heads=auto or heads=<file>"
            )
        self._take_heads()
        heads = getattr(self.lmm, "heads", None)
        if heads is not None and heads.keyword_selector is None and any(one.wants_keywords for one in needing):
            raise UnknownArgument(
                "these heads have no keyword selector (released checkpoints have none) and a task asks for keywords; "
                "give --model_args heads=<file> of heads that were trained with one"
            )

    def _kind(self, request: Request) -> Callable[[Sequence[Request], FailureLog], list[Reply]]:
        """Return the method that answers requests of this kind; a batch holds one kind."""
        if request.wants_masks:
            return self._ground
        if request.gives_text:
            return self._given_text
        if self.visual_cot.wants(request) and not request.wants_grounded_chat:
            return self._visual_cot
        return self._grounded_chat if request.wants_grounded_chat else self._chat

    def _ground(self, batch: Sequence[Request], failures: FailureLog) -> list[Reply]:
        """Ground the phrases of each request; the reply is masks JSON."""
        opened: dict[Hashable, Image.Image] = {}  # the model reads a picture once that is the same object

        def read(request: Request) -> Question:
            doc = self._doc_of(request)
            return question_of(request, doc, opened)

        return self._answer(
            batch,
            read=read,
            ask=lambda asked: self.lmm.ground_many(
                [one.image for one in asked], [one.phrases for one in asked], batch_size=len(asked)
            ),
            write=lambda one, found: masks_json(found, size=(one.image.height, one.image.width)),
            fail=lambda request, error: self._no_masks(request, error, failures),
        )

    def _given_text(self, batch: Sequence[Request], failures: FailureLog) -> list[Reply]:
        """Ground pieces of texts that the documents give, or choose keywords in them."""
        return self._answer(
            batch,
            read=lambda request: given_text.text_of(request, self._doc_of(request)),
            ask=lambda asked: given_text.replies(self.lmm, batch[0], asked),
            write=lambda _, reply: reply,
            fail=lambda request, error: self._no_masks(request, error, failures),
        )

    def _chat(self, batch: Sequence[Request], failures: FailureLog) -> list[Reply]:
        """Continue chats; the requests of a batch share their generation arguments."""
        options = chat.generate_options(batch[0].options, self.lmm.backbone.tokenizer.eos_token_id)
        return self._answer(
            batch,
            read=self._messages,
            ask=lambda asked: self.lmm.chat_batch(
                [messages for messages, _ in asked], [pictures for _, pictures in asked], **options
            ),
            write=lambda _, answer: TextReply(answer.text, len(answer.token_ids)),
            fail=lambda request, error: self._no_answer(request, error, failures, in_json=False),
        )

    def _grounded_chat(self, batch: Sequence[Request], failures: FailureLog) -> list[Reply]:
        """Answer and ground; text and masks in one JSON for each request. Answers are read back one by one."""
        replies: list[Reply] = []
        for request in batch:
            try:
                messages, pictures = self._messages(request)
                replies.append(grounded_chat.reply(self.lmm, request, messages, pictures))
            except Exception as exc:
                replies.append(self._no_masks(request, exc, failures))
        return replies

    def _visual_cot(self, batch: Sequence[Request], failures: FailureLog) -> list[Reply]:
        """Answer after a second look; chats that are not about one picture are answered as ever."""
        in_json = answers_json(batch[0])
        how = self.visual_cot.options_of(batch[0])
        options = chat.generate_options(batch[0].options, self.lmm.backbone.tokenizer.eos_token_id)
        direct: list[Request] = []

        def read(request: Request) -> CotQuestion | None:
            doc = self._doc_of(request)
            if in_json:
                return question_of_doc(request, doc)
            token = self.lmm.backbone.image_token
            question = question_of_chat(*self._chat_of(request, doc, token), token)
            if question is None:
                direct.append(request)
            return question

        def write(one: CotQuestion, answer: VisualCotAnswer) -> Reply:
            if in_json:
                return answer.to_json((one.image.height, one.image.width))
            return TextReply(answer.text, len(answer.token_ids))

        replies = self._answer(
            batch,
            read=read,
            ask=lambda asked: self.lmm.visual_cot_batch(asked, how, **options),
            write=write,
            fail=lambda request, error: self._no_answer(request, error, failures, in_json),
        )
        if direct:
            logger.debug(f"flmm: {len(direct)} chats of {batch[0].task} are not about one picture; answered directly")
            places = [place for place, request in enumerate(batch) if request in direct]
            for place, reply in zip(places, self._chat(direct, failures), strict=True):
                replies[place] = reply
        return replies

    def _answer(
        self,
        batch: Sequence[Request],
        *,
        read: Callable[[Request], T | None],
        ask: Callable[[list[T]], list[Any]],
        write: Callable[[T, Any], Reply],
        fail: Callable[[Request, Exception], str],
    ) -> list[Reply]:
        """Answer the requests of a batch that can be read together, and each of them alone if that fails.

        Args:
            batch: Requests of one kind, with the same options.
            read: Makes of a request what the model is asked; None: it is left out, with an empty reply.
            ask: Asks the model for several at once.
            write: Makes a reply of a question and the model's answer to it.
            fail: Notes a failed request and makes its reply.
        """
        replies: list[Reply] = [""] * len(batch)
        asked: list[tuple[int, T]] = []
        for place, request in enumerate(batch):
            try:
                question = read(request)
            except Exception as exc:
                replies[place] = fail(request, exc)
                continue
            if question is not None:
                asked.append((place, question))
        answers = _together_or_apart(ask, [question for _, question in asked])
        for (place, question), answer in zip(asked, answers, strict=True):
            failed = isinstance(answer, Exception)
            replies[place] = fail(batch[place], answer) if failed else write(question, answer)
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
    """Ask for a batch; if that fails, for each item alone, with the exception in place of those that fail alone."""
    if not items:
        return []
    try:
        return list(ask(items))
    except Exception as exc:
        if len(items) == 1:
            return [exc]
        logger.warning(f"flmm: a batch of {len(items)} failed ({type(exc).__name__}: {exc}); asking one by one")
    return [result for item in items for result in _together_or_apart(ask, [item])]
