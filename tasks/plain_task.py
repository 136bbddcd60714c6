"""A mask task of this package without a harness: its documents, what is asked, how replies are scored and printed.

Everything comes from the task's YAML and from the functions that it names, so another harness prints the same numbers
for the same replies. Importing this costs no harness, and neither does using it.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from loguru import logger

from flmm_plugin.errors import ToolNotFound, UnknownArgument
from flmm_plugin.tasks.task_files import aggregations, dotted, task_config

Record = Mapping[str, Any]


class PlainTask:
    """One task by its name.

    Attributes:
        name: As in its YAML.
        docs: The documents of its split, in the task's order.
        generation_kwargs: What the model is asked for, markers included.
        annotations: Hash of the annotation files, "" where the reader gives none.
        target: What stands as a document's target in sample logs.

    Raises:
        UnknownArgument: No such task, or one whose documents a harness has to fetch.
        DataNotFound, BadAnnotation, UnsafePickle: From the reader.
    """

    def __init__(self, name: str) -> None:
        config = task_config(name)
        package = str(config.get("doc_to_text", "")).rpartition(".")[0].rpartition(".")[0]
        reader = importlib.import_module(f"{package}.docs") if package.startswith("flmm_plugin.tasks.") else None
        if reader is None or not hasattr(reader, "read_docs"):
            raise UnknownArgument(f"{name} does not read its documents from files; it needs its harness")
        self.name = name
        self.generation_kwargs: dict[str, Any] = dict(config.get("generation_kwargs", {}))
        self.docs: Sequence[Mapping[str, Any]] = reader.read_docs(
            str(config["test_split"]), config.get("dataset_kwargs", {})
        )
        digest = getattr(self.docs, "digest", "")
        self.annotations = f"sha256:{digest}" if digest else ""
        self._scoring = importlib.import_module(f"{package}.scoring")
        self._prompt: Callable[..., str] = dotted(config["doc_to_text"])
        self.target: Callable[[Mapping[str, Any]], str] = dotted(config["doc_to_target"])
        self._words: Mapping[str, Any] = config.get("lmms_eval_specific_kwargs", {}).get("default", {})
        self._aggregations = aggregations(name)

    def prompt(self, doc: Mapping[str, Any]) -> str:
        """What is asked about a document, in words."""
        if len(inspect.signature(self._prompt).parameters) > 1:
            return self._prompt(doc, self._words)
        return self._prompt(doc)

    def score(self, doc: Mapping[str, Any], reply: Any) -> Record:
        """What a reply contributes to each metric; a target that cannot be read is said and counted as skipped."""
        if hasattr(self._scoring, "try_score"):
            record, problem = self._scoring.try_score(doc, reply)
            if problem is not None:
                logger.error(f"{self.name}: a document is skipped and has no score: {problem}")
        else:
            record = self._scoring.score_reply(doc, reply)
        found: Record = record
        return found

    def numbers(self, records: Sequence[Record]) -> dict[str, float | int]:
        """The printed numbers of all documents' records; a metric whose tool is missing is left out, and that is said.

        Plain Python numbers, in the task's order.
        """
        printed: dict[str, float | int] = {}
        for metric, aggregate in self._aggregations.items():
            samples = [record[metric] for record in records if metric in record]
            if not samples:
                continue
            try:
                value = aggregate(samples)
            except ToolNotFound as exc:
                logger.warning(f"{self.name}: {metric} is not available: {exc}")
                continue
            if isinstance(value, int | float):
                printed[metric] = int(value) if isinstance(value, int) else float(value)
        return printed
