"""Run a mask task of this package without a harness: its documents, prompts, scores and printed numbers.

Everything comes from the task's YAML and from the functions that it names, so another harness prints the same numbers
for the same replies. Importing this costs no harness, and neither does using it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from loguru import logger

from flmm_plugin.errors import BadAnnotation, ToolNotFound, UnknownArgument
from flmm_plugin.tasks.documents import Documents
from flmm_plugin.tasks.task_files import aggregations, dotted, module_of, task_config

Record = Mapping[str, Any]


class StandaloneTask:
    """One task by its name.

    Attributes:
        name: Name of the task, as in its YAML.
        docs: The documents of its split, in the task's order.
        generation_kwargs: What the model is asked for, markers included.
        annotations: Hash of the annotation files.
        target: Function from a document to what stands as its target in sample logs.

    Raises:
        UnknownArgument: No such task, or one whose documents a harness has to fetch.
        DataNotFound, BadAnnotation, UnsafePickle: From the reader.
    """

    def __init__(self, name: str) -> None:
        config = task_config(name)
        reader = module_of(config.get("doc_to_text"))
        if reader is None or not hasattr(reader, "read_documents"):
            raise UnknownArgument(f"{name} does not read its documents from files; it needs its harness")
        self.name = name
        self.generation_kwargs: dict[str, Any] = dict(config.get("generation_kwargs", {}))
        self.docs: Documents = reader.read_documents(str(config["test_split"]), config.get("dataset_kwargs", {}))
        self.annotations = f"sha256:{self.docs.digest}"
        self.target: Callable[[Mapping[str, Any]], str] = dotted(config["doc_to_target"])
        self._prompt: Callable[..., str] = dotted(config["doc_to_text"])
        self._prompt_settings: Mapping[str, Any] = config.get("lmms_eval_specific_kwargs", {}).get("default", {})
        self._score: Callable[..., dict[str, Any]] = dotted(config["process_results"])
        self._aggregations = aggregations(name)

    def prompt(self, doc: Mapping[str, Any]) -> str:
        """Return what is asked about a document, in words."""
        if len(inspect.signature(self._prompt).parameters) > 1:
            return self._prompt(doc, self._prompt_settings)
        return self._prompt(doc)

    def score(self, doc: Mapping[str, Any], reply: Any) -> Record:
        """Return what a reply contributes to each metric."""
        return score_document(self.name, self._score, doc, reply)

    def numbers(self, records: Sequence[Record]) -> dict[str, float | int]:
        """Return the printed numbers of all documents' records, in the task's order.

        Plain Python numbers. A metric whose tool is missing is left out, and that is logged.
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


def score_document(
    task: str, score_reply: Callable[..., dict[str, Any]], doc: Mapping[str, Any], reply: Any
) -> dict[str, Any]:
    """Score one reply; a document whose target cannot be read is logged and counted as skipped.

    Args:
        task: Name of the task, for the message.
        score_reply: Of a task's module ``scoring``; its neighbour ``skipped``, if there is one, stands in.
        doc: The document that the reply is about.
        reply: The model's, as a text or as lmms-eval nests it.

    Raises:
        BadAnnotation: The target cannot be read and the task has no `skipped`.
    """
    try:
        return score_reply(doc, reply)
    except BadAnnotation as exc:
        skipped = getattr(inspect.getmodule(score_reply), "skipped", None)
        if skipped is None:
            raise
        logger.error(f"{task}: a document is skipped and has no score: {exc}")
        found: dict[str, Any] = skipped(doc)
        return found
