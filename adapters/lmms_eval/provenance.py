"""Write how numbers were made into lmms-eval's result file: the record ``flmm`` in ``*_results.json``.

lmms-eval offers models no place for such a record, and keeps no versions of torch or transformers, no kernel and no
dtype itself. So the method that writes the file is wrapped once (`EvaluationTracker.save_results_aggregated`): the
file's content gets one key more, nothing else changes. Where that method is missing, one warning says that the record
is left out; the run itself goes on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from loguru import logger

from flmm_plugin.adapters.answering.provenance import record_of
from flmm_plugin.adapters.patching import wrap_once

#: Key of the record in ``*_results.json``.
KEY = "flmm"

#: The record of the model that was made last, with the module and class that lmms-eval names in the same file.
_latest: tuple[str, dict[str, Any]] | None = None


def remember(model: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Note how a model was loaded, and have the next result file of its class carry the record.

    Args:
        model: A `FlmmModel` whose LMM is loaded.
        arguments: Values of ``--model_args`` by name.

    Returns:
        The record; JSON-able.
    """
    global _latest
    record = record_of(model, arguments)
    _latest = (f"{type(model).__module__}.{type(model).__name__}", record)
    _wrap_tracker()
    return record


def _wrap_tracker() -> None:
    """Have `EvaluationTracker.save_results_aggregated` write the record."""
    try:
        from lmms_eval.loggers.evaluation_tracker import EvaluationTracker

        wrap_once(EvaluationTracker, "save_results_aggregated", _save)
    except (ImportError, AttributeError) as exc:
        _warn_once(f"{type(exc).__name__}: {exc}")


def _save(original: Callable[..., Any], self: Any, results: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    return original(self, with_record(results), *args, **kwargs)


def with_record(results: dict[str, Any]) -> dict[str, Any]:
    """Add the record of the latest model to results, in place, if they are of that model."""
    backend = str(results.get("config", {}).get("model_backend", ""))
    if _latest is not None and backend.split(" ")[0] == _latest[0]:
        results[KEY] = _latest[1]
    return results


@functools.cache
def _warn_once(reason: str) -> None:
    logger.warning(f"flmm: this lmms-eval does not take the plugin's provenance record into its result file ({reason})")
