"""Judge free answers through lmms-eval's own judge layer; what it said is kept and never asked twice.

Which judge: lmms-eval's variables ``API_TYPE`` (openai, azure, local, ...), ``MODEL_VERSION`` and the provider's own
(``OPENAI_API_KEY``, ``OPENAI_API_URL``, ...). The judge of the published numbers, gpt-3.5-turbo-1106, is retired: a
number says which model gave it, under which version of the instructions, and when.

Verdicts are appended to ``FLMM_JUDGE_CACHE`` (default ``$FLMM_CACHE/judge``, ``~/.cache/flmm/judge``), one JSON line
each, as they arrive: a run that was killed goes on where it stopped, and two models that give the same answer get the
same verdict. A verdict is found again by all that was asked, and of whom: every word of the messages, the temperature,
the model and the address of its provider. What failed, or said nothing, is no verdict.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import threading
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from loguru import logger

from flmm_plugin import files, json_lines
from flmm_plugin.errors import OutputFailed
from flmm_plugin.tasks.metrics.viscot import judge_score

#: Changes whenever a word of the instructions does.
PROMPT_VERSION = "flmm-viscot-1"

CACHE_VARIABLE = "FLMM_JUDGE_CACHE"
DEFAULT_MODEL = "gpt-4o-mini-2024-07-18"

_INSTRUCTIONS = (
    "You proofread answers to questions about pictures. You are given a question, the standard answer and the answer "
    "of a model. Judge by meaning: wording, order and punctuation do not matter, a different fact does. The full score "
    "is 1 and the lowest is 0; an answer that is right in part gets a number between. Reply with one line of the form "
    '"score: <number>" and nothing else.'
)
_TEMPERATURE = 0.2
_REPLY_TOKENS = 100
_FAILURES_UNTIL_GIVING_UP = 3


@dataclass(frozen=True)
class Verdict:
    """Verdict of a judge on one answer.

    Attributes:
        score: 0 to 1; None if the reply has no score that can be read, which counts 0.
        reply: The judge's own words, unchanged.
        model: As the provider names it.
        prompt: Version of the instructions, as `PROMPT_VERSION`.
        date: Time of the verdict, ISO 8601, UTC.
    """

    score: float | None
    reply: str
    model: str
    prompt: str
    date: str


class Judge:
    """Asks a provider of lmms-eval, and remembers.

    Args:
        server: Provider of lmms-eval, a `lmms_eval.llm_judge.ServerInterface`.
        model: Name of the model to ask for.
        cache: Folder that the verdicts are kept in.

    Raises:
        OutputFailed: The folder takes no files.
    """

    def __init__(self, server: Any, model: str, cache: Path) -> None:
        self.model = model
        self._server = server
        safe = "".join(letter if letter.isalnum() or letter in "-._" else "_" for letter in model)
        self.path = files.make_folder(cache) / f"viscot_{safe}.jsonl"
        self._known = _read(self.path)
        self._lock = threading.Lock()
        self._failures = 0
        # Providers that wait on an event loop must be asked from one thread at a time.
        self._one_at_a_time = threading.Lock() if hasattr(server, "evaluate_async") else None

    def verdict(self, question: str, reference: str, answer: str) -> Verdict | None:
        """Return the verdict on an answer, from memory or from the provider; None if the provider failed."""
        messages = _messages(question, reference, answer)
        key = self._key(messages)
        with self._lock:
            if key in self._known:
                return self._known[key]
            if self._failures >= _FAILURES_UNTIL_GIVING_UP:
                return None
        try:
            response = self._ask(messages, question, reference, answer)
            reply = _said(response)
        except Exception as exc:
            self._note_failure(exc)
            return None
        date = datetime.now(UTC).isoformat(timespec="seconds")
        found = Verdict(judge_score(reply), reply, str(response.model_used or self.model), PROMPT_VERSION, date)
        with self._lock:
            self._failures = 0
            self._known[key] = found
            asked = {"question": question, "answer": answer, "reference": reference}
            try:
                json_lines.append(self.path, {"key": key, **asdict(found), **asked})  # several ranks share the file
            except (OSError, OutputFailed) as exc:  # the verdict is right; the next run pays for it once more
                logger.error(f"viscot: a verdict of {self.model} could not be kept: {exc}")
        return found

    def _key(self, messages: list[dict[str, str]]) -> str:
        asked = [PROMPT_VERSION, address_of(self._server), self.model, _TEMPERATURE, _REPLY_TOKENS, messages]
        return hashlib.sha256(json.dumps(asked).encode("utf-8")).hexdigest()

    def _ask(self, messages: list[dict[str, str]], question: str, reference: str, answer: str) -> Any:
        from lmms_eval.llm_judge import Request

        request = Request(messages=messages, question=question, answer=reference, prediction=answer)
        if self._one_at_a_time is None:
            return self._server.evaluate(request)
        with self._one_at_a_time:
            return self._server.evaluate(request)

    def _note_failure(self, error: Exception) -> None:
        with self._lock:
            self._failures += 1
            failures = self._failures
        if failures <= _FAILURES_UNTIL_GIVING_UP:
            logger.error(f"viscot: the judge {self.model} failed ({type(error).__name__}: {error})")
        if failures == _FAILURES_UNTIL_GIVING_UP:
            logger.error(
                f"viscot: {failures} failures in a row, the judge is not asked again in this run. What it said is kept "
                f"in {self.path}: run the same command again (with lmms-eval's --use_cache to keep the answers too)"
            )


def judge_from_environment() -> Judge | None:
    """Return the judge that the environment describes; None, with a notice that names the fix, if there is none.

    All tasks of a run share it.
    """
    names = ("API_TYPE", "MODEL_VERSION", "OPENAI_API_KEY", "OPENAI_API_URL", CACHE_VARIABLE, "FLMM_CACHE")
    return _judge_for(tuple(os.environ.get(name) for name in names))


@functools.lru_cache(maxsize=1)
def _judge_for(environment: tuple[str | None, ...]) -> Judge | None:
    kind, model, key = environment[0] or "openai", environment[1] or DEFAULT_MODEL, environment[2]
    server: Any = None
    # lmms-eval also reads a .env file; without one the answer is known before its providers are imported.
    if kind in ("openai", "async_openai") and not key and not Path(".env").is_file():
        reason = "OPENAI_API_KEY is not set"
    else:
        try:
            from lmms_eval.llm_judge import ProviderFactory, ServerConfig

            config = ServerConfig(model_name=model, temperature=_TEMPERATURE, max_tokens=_REPLY_TOKENS, num_retries=3)
            server = ProviderFactory.create_provider(config=config)
            reason = "" if server.is_available() else "its provider has no key"
        except Exception as exc:  # each provider complains of a missing key in its own way
            reason = f"{type(exc).__name__}: {exc}"
    if reason:
        logger.warning(
            f"viscot: no judge ({reason}); only the judge-free scores (exact, anls) are printed. For a judged score "
            "set OPENAI_API_KEY, or API_TYPE and the variables of another provider of lmms-eval, and MODEL_VERSION"
        )
        return None
    return Judge(server, model, cache_folder())


def cache_folder() -> Path:
    """Return the folder that verdicts are kept in."""
    given = os.environ.get(CACHE_VARIABLE)
    return Path(given) if given else files.cache_folder() / "judge"


def address_of(server: Any) -> list[str]:
    """Name a provider of lmms-eval: its class, and where it asks."""
    where = [getattr(server, name, None) for name in ("base_url", "api_url", "api_endpoint", "api_version")]
    return [type(server).__name__, *(str(one) for one in where if one)]


def _messages(question: str, reference: str, answer: str) -> list[dict[str, str]]:
    told = f"Question: {question}\nStandard answer: {reference}\nModel's answer: {answer}"
    return [{"role": "system", "content": _INSTRUCTIONS}, {"role": "user", "content": told}]


def _said(response: Any) -> str:
    """Return the words of a reply.

    Raises:
        ValueError: There are none, or the provider says that it failed.
    """
    if not getattr(response, "success", True):
        raise ValueError(getattr(response, "error_message", None) or "the provider says that it failed")
    reply = str(response.content or "")
    if not reply.strip():
        raise ValueError("the reply is empty")
    return reply


def _read(path: Path) -> dict[str, Verdict]:
    """Verdicts of earlier runs; a line that a killed run left half written is not there."""
    found: dict[str, Verdict] = {}
    for record in json_lines.read(path):
        try:
            verdict = Verdict(*(record[name] for name in ("score", "reply", "model", "prompt", "date")))
            if verdict.score is not None and not (math.isfinite(verdict.score) and 0 <= verdict.score <= 1):
                raise ValueError(verdict.score)
            found[record["key"]] = verdict
        except (KeyError, TypeError, ValueError):
            logger.warning(f"viscot: a line of {path} is damaged and is not used")
    return found
