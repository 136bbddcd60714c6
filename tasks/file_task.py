"""A task of lmms-eval that reads a benchmark's official files instead of a hub.

A benchmark derives a class, says how a split is read (`FileTask.read`) and names in its YAML how replies are prompted
and scored. Everything else is lmms-eval's own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from lmms_eval.api.task import ConfigurableTask
from loguru import logger

from flmm_plugin.errors import ToolNotFound, UnknownArgument
from flmm_plugin.tasks.metrics.totals import is_complete, total
from flmm_plugin.tasks.picture_docs import PictureDocs

Sample = Mapping[str, Any]


class FileTask(ConfigurableTask):
    """One split of a benchmark, whose annotations are read when the task is built and pictures one by one.

    Config: ``test_split`` is the split, ``dataset_kwargs`` may have `data_keys`. A split without documents is skipped
    with a notice and has no result; a metric whose tool is missing is not available (N/A), and the others print.

    Raises:
        UnknownArgument: ``dataset_kwargs`` has another key.
        DataNotFound, BadAnnotation: From the reader.
    """

    data_keys: ClassVar[tuple[str, ...]] = ("root",)

    def __init__(self, config: dict[str, Any] | None = None) -> None:
        settings = dict(config or {})
        # lmms-eval hands over the YAML whole; its own task config knows no `class`.
        settings.pop("class", None)
        self.docs: PictureDocs
        super().__init__(config=settings)
        self.config.metadata = {
            **(self.config.metadata or {}),
            "annotations": f"sha256:{self.docs.digest}",
            "problems": list(self.docs.problems),
            **self.facts(),
        }

    def read(self, split: str, settings: Mapping[str, Any]) -> PictureDocs:
        """The documents of a split; `settings` are the ``dataset_kwargs``."""
        raise NotImplementedError(f"{type(self).__name__} does not say how its files are read; override `read`")

    def facts(self) -> dict[str, Any]:
        """What else changes the numbers; kept in the results as the task's metadata."""
        return {}

    def download(self, dataset_kwargs: dict[str, Any] | None = None) -> None:
        """Read the annotation files. lmms-eval calls this while the task is built."""
        settings = dict(dataset_kwargs or {})
        unknown = sorted(set(settings) - set(self.data_keys))
        if unknown:
            raise UnknownArgument(
                f"dataset_kwargs of {self.config.task} may have {', '.join(self.data_keys)}; got {', '.join(unknown)}"
            )
        split = str(self.config.test_split)
        self.docs = self.read(split, settings)
        # No picture is part of a document, so the view without media is the same one.
        self.dataset = self.dataset_no_image = {split: self.docs}

    def build_all_requests(self, **options: Any) -> None:
        """One request per document; none, with a notice, for a split that the present data lacks."""
        if len(self.docs) == 0:
            logger.warning(
                f"{self.config.task}: {self.docs.source} has nothing of split {self.config.test_split}; the task is "
                "skipped and has no result"
            )
            self._instances: list[Any] = []
            return
        if self.docs.problems:
            logger.warning(
                f"{self.config.task}: {len(self.docs.problems)} problems of {self.docs.source}, the first: "
                f"{self.docs.problems[0]}. All are listed under `problems` in the task's metadata in the results file"
            )
        super().build_all_requests(**options)

    def aggregation(self) -> dict[str, Any]:
        """The template's aggregations; a missing tool makes its metric N/A, ``complete`` says aloud if it is 0."""
        listed: dict[str, Any] = {name: _or_none(name, found) for name, found in super().aggregation().items()}
        return {**listed, "complete": self._complete} if "complete" in listed else listed

    def _complete(self, samples: Sequence[Sample]) -> int:
        complete, scored = is_complete(samples), total(samples)
        official = next((one["expected"] for one in samples if one["expected"]), "an unknown number of")
        if not complete:
            logger.warning(
                f"{self.config.task}: PARTIAL RESULT over {scored} of {official} official items "
                f"({len(self.docs)} in {self.docs.source}); do not set it beside published numbers"
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
