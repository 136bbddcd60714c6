"""lmms-eval's response cache (``--use_cache``) for this package's models: right answers only, and none of them lost.

The cache stays lmms-eval's: its files, its rules, other models untouched. For models of this package three things are
added to what it does with their requests:

- **Names by content.** lmms-eval names an answer by the model's arguments and the document's number. Here what made it
  (`answer_identity`) and what was asked (text, options, the picture itself) come first among the texts that its key is
  made of, so weights, heads or data that were replaced under their old names are asked again.
- **Answers one by one.** lmms-eval keeps answers when a model has returned all of them; these models hand them over one
  by one. What killed runs wrote into ``<cache>/runs/*`` is taken over by the next run, whatever their ids and ranks.
- **Failures are no answers.** A failed request and a request that only pads a rank leave nothing that could be taken
  for an answer; a run whose seal is broken leaves nothing at all.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from loguru import logger
from tqdm import tqdm

from flmm_plugin import files, json_lines
from flmm_plugin.adapters.answering.identity import answer_identity, asked_digest
from flmm_plugin.adapters.answering.needs import needs_heads
from flmm_plugin.adapters.answering.requests import SHOWN
from flmm_plugin.adapters.answering.visual_cot import answers_json
from flmm_plugin.adapters.lmms_eval.requests import chat_of, unpack
from flmm_plugin.adapters.patching import wrap_once
from flmm_plugin.errors import OutputFailed

_MERGED = ".merged"  # lmms-eval's mark of a run whose answers are in the cache's main file

# Kind of request -> method that hands over its answers one by one.
_STREAMS = {"generate_until": "answers", "loglikelihood": "losses"}


class _Named:
    """A request of lmms-eval's with a name in front of its texts, of which lmms-eval makes its key."""

    def __init__(self, instance: Any, name: str) -> None:
        self.instance, self.name = instance, name
        self.no_answer: Any = None

    @property
    def args(self) -> tuple[Any, ...]:
        return (self.name, *self.instance.args)

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self.instance, attribute)


class _Asking:
    """The model as lmms-eval's cache asks it: for named requests, and with None where there is no answer to keep."""

    def __init__(self, lm: Any) -> None:
        self._lm = lm

    def generate_until(self, named: list[_Named]) -> Iterator[Any]:
        return self._answers("generate_until", named)

    def loglikelihood(self, named: list[_Named]) -> Iterator[Any]:
        return self._answers("loglikelihood", named)

    def _answers(self, kind: str, named: list[_Named]) -> Iterator[Any]:
        # Asked of the class: a model that only passes requests on to one of ours must see them.
        ours = getattr(type(self._lm), "answers_with_masks", False)
        ask: Callable[[list[Any]], Iterable[Any]] = getattr(self._lm, _STREAMS[kind] if ours else kind)
        for one, reply in zip(named, ask([one.instance for one in named]), strict=False):
            if is_answer(reply) and not (one.instance.metadata or {}).get("__padding_only__"):
                yield reply
            else:
                one.no_answer = reply
                yield None


def keep_answers_one_by_one() -> None:
    """Wrap `ResponseCache`, once in a process; with an lmms-eval that has none, say so and change nothing."""
    try:
        from lmms_eval.caching.response_cache import ResponseCache

        wrap_once(ResponseCache, "execute", _execute)
        wrap_once(ResponseCache, "finalize", _finalize)
    except (ImportError, AttributeError) as exc:
        logger.warning(f"flmm: this lmms-eval keeps answers at the end of a run only ({type(exc).__name__}: {exc})")


def _execute(original: Callable[..., list[Any]], self: Any, lm: Any, reqtype: str, requests: list[Any]) -> list[Any]:
    if reqtype not in _STREAMS or not getattr(lm, "answers_with_masks", False):
        return original(self, lm, reqtype, requests)
    with _naming(self):
        if not hasattr(self, "_flmm_model"):
            self._flmm_model = lm
            self._flmm_taken = _take_over(self)
        if reqtype == "generate_until":
            lm.get_ready(unpack(requests))  # its heads have a part in the names of answers with masks
        named = [_Named(one, name) for one, name in zip(requests, _names(lm, reqtype, requests), strict=True)]
        found = original(self, _Asking(lm), reqtype, named)
    return [_as_given(one, answer) for one, answer in zip(named, found, strict=True)]


def _finalize(original: Callable[..., None], self: Any, *, success: bool, **options: Any) -> None:
    original(self, success=success, **options)
    model = getattr(self, "_flmm_model", None)
    if model is None:
        return
    if getattr(model, "seal_broken", False):
        _forget(self)
    elif success and self._global_rank == 0:
        _mark_merged(self._flmm_taken)


def _as_given(one: _Named, answer: Any) -> Any:
    """The reply as the model gave it: JSON has made lists of pairs, and None stands for what is no answer."""
    if answer is None:
        return one.no_answer
    return tuple(answer) if isinstance(answer, list) else answer


def is_answer(reply: Any) -> bool:
    """Tell an answer from an empty text, an error record and a loss that is no finite number."""
    if isinstance(reply, list | tuple):
        return math.isfinite(reply[0])
    text = str(getattr(reply, "text", reply)).strip()
    if text.startswith("{") and '"error"' in text:
        try:
            content = json.loads(text)
        except ValueError:
            return True
        return not (isinstance(content, dict) and content.get("error"))
    return bool(text)


def _names(lm: Any, kind: str, requests: list[Any]) -> Iterator[str]:
    """Name each request by who answers and what is asked; by a name of its own where that cannot be known."""
    identity = functools.cache(lambda grounds: answer_identity(lm, grounds=grounds))
    for instance in tqdm(requests, desc="flmm: what is asked", disable=getattr(lm, "rank", 0) != 0, leave=False):
        try:
            grounds = kind == "generate_until" and needs_heads(next(iter(unpack([instance]))).options, lm.visual_cot)
            yield f"{identity(grounds)} {_asked(lm, kind, instance)}"
        except Exception as exc:  # the same trouble is met, and said, when the model is asked
            logger.debug(f"flmm: a request cannot be named ({type(exc).__name__}: {exc}); it is asked anew every time")
            yield uuid.uuid4().hex


def _asked(lm: Any, kind: str, instance: Any) -> str:
    """The content of a request: its texts, options and pictures as the model gets them."""
    context, second, third, doc_id, task, split = instance.args
    doc = lm.task_dict[task][split][doc_id]
    if kind == "loglikelihood":
        return asked_digest([context, second if isinstance(second, str) else second(doc)], third(doc) or ())
    (request,) = unpack([instance])
    if request.wants_masks or request.gives_text or answers_json(request):
        shown = {name: doc[name] for name in SHOWN if name in doc and name != "image_path"}
        return asked_digest([context, request.options, shown], [doc["image_path"]])
    messages, pictures = chat_of(request, doc, lm.lmm.backbone.image_token)
    return asked_digest([request.options, messages], pictures)


@contextlib.contextmanager
def _naming(cache: Any) -> Iterator[None]:
    """Turn what a disk or SQLite says into an `OutputFailed` that names the cache."""
    place = Path(cache._cache_root or cache.db_path)
    with files.naming(place):
        try:
            yield
        except sqlite3.Error as exc:
            raise OutputFailed(
                f"cannot keep answers in {place} ({exc}): make room there or give --use_cache another "
                "folder; the same line then goes on with what was kept"
            ) from exc


def _take_over(cache: Any) -> dict[Path, float]:
    """Put what earlier runs wrote, and the cache's main file does not have, into this process's part of the cache.

    Every rank reads the logs of all ranks of all runs, so neither ids nor numbers of processes matter.

    Returns:
        The folders of other runs, with the time at which they were read.
    """
    if cache._cache_root is None:  # made by hand, of one file
        return {}
    homes = {Path(cache._cache_root, "runs"), Path(cache.audit_path).parent.parent}
    logs = sorted(log for home in homes for log in home.glob("*/rank_*.audit.jsonl"))
    taken: dict[Path, float] = {}
    count = 0
    for log in logs:
        mark, now = log.with_name(_MERGED), time.time()
        if mark.exists() and mark.stat().st_mtime >= log.stat().st_mtime:
            continue
        for record in json_lines.read(log):
            count += _take(cache, record)
        if log.parent not in (Path(cache._run_dir), Path(cache.audit_path).parent):  # lmms-eval marks its own
            taken[log.parent] = min(now, taken.get(log.parent, now))
    if count:
        logger.info(f"flmm: {count} answers of earlier runs that did not finish are taken over")
    return taken


def _take(cache: Any, record: Any) -> bool:
    """Store one line of a log, if it holds an answer that is not there yet."""
    try:
        key, answer = record["cache_key"], json.loads(record["response"])
        if not key or answer is None or not record["deterministic"] or cache._lookup(key) is not None:
            return False
        options = json.loads(record["gen_kwargs"])
        place = (record["request_type"], record["task_name"], record["doc_id"], record["idx"])
    except (KeyError, TypeError, ValueError):
        return False
    cache._store(key, *place, options, answer)
    return True


def _mark_merged(runs: dict[Path, float]) -> None:
    """Note that all that these runs had written by then is in the cache's main file; a living run writes more."""
    for run, moment in runs.items():
        if run.is_dir():
            mark = run / _MERGED
            mark.touch()
            os.utime(mark, (moment, moment))


def _forget(cache: Any) -> None:
    """Remove what this process kept: no one knows from when on the weights were others."""
    kept = (cache.db_path, cache.audit_path, cache._remote_rank_db, cache._remote_rank_audit)
    for path in filter(None, kept):
        for one in (path, f"{path}-wal", f"{path}-shm"):
            Path(one).unlink(missing_ok=True)
