"""Keep judge answers, so that equal texts get equal scores in every run of a proof.

A judged benchmark sends each answer to another model, which does not say the same twice. Two runs with equal texts
would get different scores, and chat would look changed. So the first run's judge answers are kept on disk, keyed by
everything that was asked; a run that asks the same, for the same time, gets the same. Only equal texts make equal
questions: an answer that differs is judged anew.

Judges are reached through lmms-eval's judge layer (``lmms_eval.llm_judge``). MMBench's stock task posts to a server by
itself; here it asks through the layer too, so that one set of environment variables serves all.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flmm_plugin import json_lines
from flmm_plugin.adapters.answering.identity import picture_digest
from flmm_plugin.tasks.viscot.judge import address_of

_FIELDS = {"key", "content", "model"}  # of a line of the record
_NO_ANSWER = "Failed to obtain answer via API"  # MMBench's own words, by which it knows that it has no answer


class JudgeMemo:
    """A record of judge answers in one file, shared by the runs of a proof.

    Args:
        path: File of JSON lines; read now, appended to with every new answer.

    Attributes:
        counts: Judge answers that were ``asked`` for, ``reused`` from the record, and ``failed``.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        # What a kill cut off is not there; that judge is asked again.
        whole = (kept for kept in json_lines.read(path) if isinstance(kept, dict) and kept.keys() >= _FIELDS)
        self._known: dict[str, dict[str, str]] = {str(kept["key"]): kept for kept in whole}
        self._times: Counter[str] = Counter()
        self.counts = {"asked": 0, "reused": 0, "failed": 0}

    @contextmanager
    def active(self) -> Iterator[JudgeMemo]:
        """Make every judge that lmms-eval creates inside the block use this record, also after the block."""
        from lmms_eval.llm_judge import ProviderFactory
        from lmms_eval.tasks.mmbench.mmbench_evals import MMBench_Evaluator

        make = ProviderFactory.create_provider
        post = MMBench_Evaluator.get_chat_response

        def create(api_type: Any = None, config: Any = None) -> Any:
            return self.remembering(make(api_type=api_type, config=config))

        def ask(evaluator: Any, prompt: str, *args: Any, **kwargs: Any) -> str:
            return _mmbench_through_the_layer(evaluator, prompt)

        ProviderFactory.create_provider = create
        MMBench_Evaluator.get_chat_response = ask
        try:
            yield self
        finally:
            ProviderFactory.create_provider = make
            MMBench_Evaluator.get_chat_response = post

    def remembering(self, judge: Any) -> Any:
        """Make a judge's ``evaluate`` ask only what the record does not hold; returns the judge."""
        from lmms_eval.llm_judge import Response

        ask = judge.evaluate

        @functools.wraps(ask)
        def evaluate(request: Any) -> Any:
            self.counts["asked"] += 1
            key = self._key(judge, request)
            if key in self._known:
                self.counts["reused"] += 1
                return Response(content=self._known[key]["content"], model_used=self._known[key]["model"])
            try:
                response = ask(request)
            except Exception:
                self.counts["failed"] += 1
                raise
            if response.success and response.content:
                self._keep(key, str(response.content), str(response.model_used))
            else:
                self.counts["failed"] += 1
            return response

        judge.evaluate = evaluate
        return judge

    def _key(self, judge: Any, request: Any) -> str:
        """Name a question by its content, its judge and its repetition: a judge asked again is really asked."""
        config = request.config or judge.config
        asked = json.dumps(
            [
                address_of(judge), config.model_name, config.temperature, config.max_tokens, config.top_p,
                config.response_format, config.system_prompt, request.messages,
                [_content(one) for one in request.images or ()],
            ],
            sort_keys=True, default=repr,
        )  # fmt: skip
        key = hashlib.sha256(asked.encode()).hexdigest()
        self._times[key] += 1
        return f"{key}/{self._times[key]}"

    def _keep(self, key: str, content: str, model: str) -> None:
        self._known[key] = {"key": key, "content": content, "model": model}
        json_lines.append(self._path, self._known[key])


def _content(picture: Any) -> str:
    """Name a picture by its content; return an address, or text that holds a picture, as it is."""
    if isinstance(picture, bytes):
        return hashlib.sha256(picture).hexdigest()
    try:
        return picture_digest(picture)
    except (OSError, ValueError):
        return str(picture)


def _mmbench_through_the_layer(evaluator: Any, prompt: str) -> str:
    from lmms_eval.llm_judge import Request, ServerConfig, get_server

    judge = getattr(evaluator, "_flmm_judge", None)
    if judge is None:
        config = ServerConfig(model_name=evaluator.model_version, temperature=0.0, max_tokens=256)
        judge = evaluator._flmm_judge = get_server(evaluator.API_TYPE, config)
    try:
        answer = judge.evaluate(Request(messages=[{"role": "user", "content": prompt}], config=judge.config))
    except Exception as exc:  # the layer has retried already; MMBench goes on without an answer
        from loguru import logger

        logger.warning(f"flmm: MMBench's judge gave no answer: {type(exc).__name__}: {exc}")
        return _NO_ANSWER
    return str(answer.content).strip() or _NO_ANSWER
