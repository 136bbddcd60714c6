"""Read a benchmark's official files into an lmms-eval task, instead of a data set of the hub.

A benchmark names in its YAML how replies are prompted and scored. The module of its prompt (``doc_to_text``) says how a
split is read: ``read_documents(split, settings)`` and ``SETTINGS``, the names that ``dataset_kwargs`` may have. A
benchmark that needs more derives a class. Everything else is lmms-eval's own.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lmms_eval.api.task import ConfigurableTask
from loguru import logger

from flmm_plugin.datasets.problems import summed_up
from flmm_plugin.errors import ToolNotFound, UnknownArgument
from flmm_plugin.tasks.documents import Documents
from flmm_plugin.tasks.metrics.totals import is_complete, total
from flmm_plugin.tasks.sample_log import DocumentScores
from flmm_plugin.tasks.standalone import score_document

Sample = Mapping[str, Any]


class FileTask(ConfigurableTask):
    """One split of a benchmark, whose annotations are read when the task is built and pictures one by one.

    A split without documents is skipped with a notice and has no result; so is a document whose target cannot be read.
    A metric whose tool is missing is not available (N/A), and the others print. ``complete`` says aloud if it is 0.

    Config: ``test_split`` is the split; ``dataset_kwargs`` may have the reader's ``SETTINGS``.

    Raises:
        UnknownArgument: ``dataset_kwargs`` has another key, or lacks ``name`` where the reader needs it.
        DataNotFound, UnsafePickle, BadAnnotation: From the reader.
    """

    def __init__(self, config: dict[str, Any] | None = None) -> None:
        settings = dict(config or {})
        # lmms-eval hands over the YAML whole; its own task config knows no `class`.
        settings.pop("class", None)
        self.docs: Documents
        super().__init__(config=settings)
        # Now and not later: lmms-eval copies the metadata before it asks for requests.
        self.config.metadata = {
            **(self.config.metadata or {}),
            "annotations": f"sha256:{self.docs.digest}",
            "problems": [str(problem) for problem in self.docs.problems],
            **self.docs.facts,
            **self.facts(),
        }

    def facts(self) -> dict[str, Any]:
        """Return what else changes the numbers, for the task's metadata in the results."""
        return {}

    def download(self, dataset_kwargs: dict[str, Any] | None = None) -> None:
        """Read the annotation files. lmms-eval calls this while the task is built."""
        reader = importlib.import_module(self.config.doc_to_text.__module__)
        settings = dict(dataset_kwargs or {})
        unknown = sorted(set(settings) - set(reader.SETTINGS))
        missing = {"name"} & set(reader.SETTINGS) - set(settings)
        if unknown or missing:
            raise UnknownArgument(
                f"dataset_kwargs of {self.config.task} may have {', '.join(reader.SETTINGS)}"
                f"{' and need `name`' if missing else ''}; got {', '.join(unknown or settings)}"
            )
        split = str(self.config.test_split)
        self.docs = reader.read_documents(split, settings)
        # No picture is part of a document, so the view without media is the same one.
        self.dataset = self.dataset_no_image = {split: self.docs}

    def build_all_requests(self, **options: Any) -> None:
        """Make one request per document; none, with a notice, for a split that the present data lacks."""
        docs = self.docs
        if len(docs) == 0:
            logger.warning(
                f"{self.config.task}: {docs.source} has nothing of split {self.config.test_split}"
                f"{f' (it has: {docs.present})' if docs.present else ''}; the task is skipped and has no result"
            )
            self._instances: list[Any] = []
            return
        if docs.problems:
            logger.warning(
                f"{self.config.task}: {len(docs)} documents with {docs.items} {docs.unit}; in {docs.source}: "
                f"{summed_up(docs.problems)}. All are listed under `problems` in the task's metadata in the results"
            )
        super().build_all_requests(**options)

    def process_results(self, doc: Mapping[str, Any], results: list[Any], full_docs: Any = None) -> dict[str, Any]:
        """Return the scores of one document. lmms-eval calls this from several threads."""
        if self.config.process_results is None:  # --predict_only
            found: dict[str, Any] = super().process_results(doc, results, full_docs)
            return found
        return DocumentScores(score_document(str(self.config.task), self.config.process_results, doc, results))

    def aggregation(self) -> dict[str, Any]:
        """Return the template's aggregations; a missing tool makes its metric N/A."""
        listed: dict[str, Any] = {name: _or_none(name, found) for name, found in super().aggregation().items()}
        return {**listed, "complete": self._complete} if "complete" in listed else listed

    def _complete(self, samples: Sequence[Sample]) -> int:
        complete = is_complete(samples)
        if not complete:
            official = next((one["expected"] for one in samples if one["expected"]), "an unknown number of")
            logger.warning(
                f"{self.config.task}: PARTIAL RESULT over {total(samples)} of {official} official {self.docs.unit} "
                f"({self.docs.items} in {self.docs.source}); do not set it beside published numbers"
            )
        return complete


def _or_none(name: str, aggregate: Callable[[Any], Any]) -> Callable[[Any], Any]:
    @functools.wraps(aggregate)
    def guarded(samples: Any) -> Any:
        try:
            return aggregate(samples)
        except ToolNotFound as exc:
            logger.warning(f"flmm: {name} is not available: {exc}")
            return None

    return guarded
