"""lmms-eval's response cache (``--use_cache``), filled while this package's models answer.

lmms-eval 0.7 puts answers into its cache when a model has returned all of them, so a run that is killed after hours has
kept none. The models of this package can hand over answers one by one (`FlmmModel.answers`); here the cache is given
that stream. It stores what it always stores, by its own keys and rules; other models are left to it as they are.

The second half is lmms-eval's own: a run looks into what an unfinished one kept if both have the same
``LMMS_CACHE_RUN_ID``, which `flmm reproduce` sees to.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

from loguru import logger

#: Set it to one value for all runs of one process that share a cache folder, and a killed run is gone on with.
RUN_ID = "LMMS_CACHE_RUN_ID"

_MARK = "_flmm_as_answers_come"


class _Streaming:
    """A model whose answers come one by one."""

    def __init__(self, stream: Callable[[list[Any]], Iterable[Any]]) -> None:
        self.generate_until = stream


def fill_as_answers_come() -> None:
    """Wrap `ResponseCache.execute`, once in a process; with an lmms-eval that has none, say so and change nothing."""
    try:
        from lmms_eval.caching.response_cache import ResponseCache

        original: Any = ResponseCache.execute
    except (ImportError, AttributeError) as exc:
        logger.warning(f"flmm: this lmms-eval keeps answers at the end of a run only ({type(exc).__name__}: {exc})")
        return
    if getattr(original, _MARK, False):
        return

    @functools.wraps(original)
    def execute(self: Any, lm: Any, reqtype: str, requests: list[Any]) -> list[Any]:
        # Asked of the class: a model that only passes requests on to one of ours must see them.
        streams = reqtype == "generate_until" and getattr(type(lm), "answers_with_masks", False)
        answers: list[Any] = original(self, _Streaming(lm.answers) if streams else lm, reqtype, requests)
        return answers

    setattr(execute, _MARK, True)
    wrapped: Any = ResponseCache
    wrapped.execute = execute
