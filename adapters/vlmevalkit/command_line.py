"""Check and complete a command line of the kit's run.py before anything is loaded."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flmm_plugin import files
from flmm_plugin.adapters.answering.arguments import MODEL_ARGUMENTS
from flmm_plugin.adapters.answering.defaults import DEFAULTS
from flmm_plugin.adapters.vlmevalkit.benchmarks import BENCHMARKS
from flmm_plugin.errors import UnknownArgument
from flmm_plugin.options import refuse_unknown
from flmm_plugin.suggestions import did_you_mean

FORMATS = ("tsv", "xlsx", "json")
#: Classes of a ``--config`` file that are this package's.
_MODEL, _BENCHMARK = "FLMM", "FlmmBenchmark"
#: Any of these set: a judge can be asked.
_JUDGE_KEYS = ("OPENAI_API_KEY", "LOCAL_LLM", "AZURE_OPENAI_API_KEY")


class Requested(NamedTuple):
    """Names on a command line, in their order.

    Attributes:
        models: Values of ``--model``, or keys of a ``--config`` file.
        data: Values of ``--data``, or keys of a ``--config`` file.
        free: Whether the names may be any, being explained in a file or somewhere on the network.
        ours: Models of this package among them: keys of `DEFAULTS`, each with the arguments of a ``--config`` file.
    """

    models: Sequence[str]
    data: Sequence[str]
    free: bool
    ours: Sequence[tuple[str, Mapping[str, Any]]] = ()


def checked(words: Sequence[str]) -> Requested:
    """Read and check a command line, as far as this can be done without the kit.

    Args:
        words: Arguments of the kit's run.py.

    Raises:
        UnknownArgument: Something is missing, contradicts itself, or is of this package and not there.
        OutputFailed: The work folder cannot be written.
    """
    parser = argparse.ArgumentParser(prog="flmm-vlmeval", add_help=False, allow_abbrev=False)
    for name in ("--data", "--model"):
        parser.add_argument(name, nargs="*")
    for name in ("--config", "--base-url", "--data-config"):
        parser.add_argument(name)
    parser.add_argument("--work-dir", default="./outputs")
    parser.add_argument("--limit", default="1")
    parser.add_argument("--api-mode", action="store_true")
    given, _ = parser.parse_known_args(list(words))
    if not given.limit.isdigit() or int(given.limit) < 1:
        raise UnknownArgument(f"--limit is {given.limit!r}; give a whole number of samples, at least 1")
    if given.config is not None:
        if given.data or given.model:
            raise UnknownArgument("--config names the models and the data; leave --model and --data out")
        content = _configuration(Path(given.config))
        entries = [entry for entry in content["model"].values() if entry.get("class") == _MODEL]
        ours = [(str(entry.get("name", "flmm_auto")), _arguments(entry)) for entry in entries]
        found = Requested(list(content["model"]), list(content["data"]), True, ours)
    else:
        for name, listed in (("--data", given.data), ("--model", given.model)):
            if not listed:
                raise UnknownArgument(f"{name} is missing; flmm-vlmeval list shows what this package has")
        free = bool(given.base_url or given.api_mode or given.data_config)
        ours = [(model, {}) for model in given.model if model in DEFAULTS]
        found = Requested(given.model, given.data, free, ours)
    for model in found.models:
        if not found.free and model.startswith("flmm_") and model not in DEFAULTS:
            raise UnknownArgument(unknown("model", model, DEFAULTS))
        if given.api_mode and model in DEFAULTS:
            raise UnknownArgument(f"{model} answers in this process, not over a network; leave --api-mode out")
    refuse_format(found.data)
    files.make_folder(Path(os.environ.get("MMEVAL_ROOT", given.work_dir)))
    return found


def refuse_format(data: Iterable[str]) -> None:
    """Refuse a format of result files that cannot hold what is asked for.

    Args:
        data: Names of data sets, of this package or of the kit.

    Raises:
        UnknownArgument: ``PRED_FORMAT`` is none of the kit's, or one that cuts masks or cannot be continued.
    """
    chosen = os.environ.get("PRED_FORMAT", "").lower() or "tsv"  # what `register` sets
    if chosen not in FORMATS:
        raise UnknownArgument(f"PRED_FORMAT is {chosen!r}; give one of {', '.join(FORMATS)}, best tsv")
    masks = [name for name in data if name in BENCHMARKS]
    if masks and chosen != "tsv":
        why = "the kit cannot go on from .json" if chosen == "json" else "a cell of .xlsx ends at 32,767 characters"
        raise UnknownArgument(
            f"PRED_FORMAT is {chosen}, and the answers to {masks[0]} are masks: {why}; set PRED_FORMAT=tsv"
        )


def unknown(kind: str, name: str, known: Collection[str]) -> str:
    """Write the sentence about a name that is not there.

    >>> unknown("model", "flmm_tny", ["flmm_tiny", "flmm_llava"])
    "there is no model 'flmm_tny'; did you mean 'flmm_tiny'?"
    """
    listed = f"; flmm-vlmeval list and vlmutil {kind[0]}list all name them."
    return f"there is no {kind} {name!r}" + (did_you_mean(name, known, 0.6) or listed)


def judge_default(words: Sequence[str]) -> list[str]:
    """Return the arguments to add: no judge, where none is named and none could be asked."""
    flags = {word.partition("=")[0] for word in words}
    if {"--judge", "--judge-base-url", "--judge-key"} & flags or any(map(os.environ.get, _JUDGE_KEYS)):
        return []
    print("flmm: no judge and no key: answers are matched exactly (--judge NAME asks one)", file=sys.stderr)
    return ["--judge", "exact_matching"]


def _arguments(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name not in ("class", "name")}


def _configuration(path: Path) -> Mapping[str, Mapping[str, Any]]:
    """Read a ``--config`` file, and check the entries that are of this package's classes."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        parts = {kind: {name: dict(entry) for name, entry in dict(content[kind]).items()} for kind in ("model", "data")}
    except (OSError, ValueError, TypeError, KeyError) as exc:
        raise UnknownArgument(
            f"{path} is no configuration of the kit's: an object with model and data, each an object of objects by "
            f"name ({type(exc).__name__}: {exc})"
        ) from exc
    for name, entry in parts["model"].items():
        if entry.get("class") == _MODEL:
            model = str(entry.get("name", "flmm_auto"))
            if model not in DEFAULTS:
                raise UnknownArgument(unknown("model", model, DEFAULTS))
            refuse_unknown(f"{path}: {name}", set(entry) - {"class", "name"}, MODEL_ARGUMENTS)
    for name, entry in parts["data"].items():
        if entry.get("class") == _BENCHMARK:
            data = str(entry.get("dataset", ""))
            if data not in BENCHMARKS:
                raise UnknownArgument(unknown("data set", data, BENCHMARKS))
            if data != name:
                raise UnknownArgument(f"{path}: the key {name!r} must be {data!r}, under which results are looked for")
    return parts
