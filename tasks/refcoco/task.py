"""The lmms-eval task: RefCOCO's official files in, mask metrics out, no hub.

A task is the template beside this file plus three lines (data set, split, unit). The class replaces what a configured
task would fetch from a hub (`download`) and how a reply is scored (`process_results`); everything else is lmms-eval's
own.
"""

from __future__ import annotations

from typing import Any

from lmms_eval.api.task import ConfigurableTask
from loguru import logger

from flmm_plugin.datasets.problems import summed_up
from flmm_plugin.errors import UnknownArgument
from flmm_plugin.tasks.refcoco import scoring
from flmm_plugin.tasks.refcoco.docs import ReferDoc, ReferDocs, read_docs
from flmm_plugin.tasks.sample_scores import SampleScores, reply_of

_DATA_KEYS = ("name", "by", "unit", "root")


class ReferSegmentation(ConfigurableTask):
    """Referring segmentation of one split.

    Config: ``dataset_kwargs`` has ``name`` (refcoco, refcoco+, refcocog), ``unit`` (picture, per_sentence), optionally
    ``by`` and ``root``; ``test_split`` is the split.

    A split of which the present data has nothing is kept, says so, and yields no number: in a group the other splits
    go on.

    Raises:
        DataNotFound, UnsafePickle, BadAnnotation: From the reader, when the task is built.
    """

    def __init__(self, config: dict[str, Any] | None = None) -> None:
        settings = dict(config or {})
        # lmms-eval hands over the YAML whole; its own task config knows no `class`.
        settings.pop("class", None)
        self.docs: ReferDocs
        super().__init__(config=settings)
        facts = {
            "annotations": f"sha256:{self.docs.digest}",
            "problems": [str(problem) for problem in self.docs.problems],
        }
        self.config.metadata = {**(self.config.metadata or {}), **facts}

    def download(self, dataset_kwargs: dict[str, Any] | None = None) -> None:
        """Read the annotation files; pictures are opened one by one when they are asked for."""
        settings = dict(dataset_kwargs or {})
        unknown = sorted(set(settings) - set(_DATA_KEYS))
        if unknown or "name" not in settings:
            raise UnknownArgument(
                f"dataset_kwargs of {self.config.task} need `name` and may have {', '.join(_DATA_KEYS[1:])}; "
                f"got {unknown or settings}"
            )
        split = str(self.config.test_split)
        self.docs = read_docs(split, settings)
        # No picture is part of a document, so the view without media is the same one.
        self.dataset = self.dataset_no_image = {split: self.docs}

    def build_all_requests(self, **options: Any) -> None:
        """One request per document; none, with a notice, for a split that the present data lacks."""
        if len(self.docs) == 0:
            present = ", ".join(f"{split} {count}" for split, count in sorted(self.docs.split_counts.items()))
            logger.warning(
                f"{self.config.task}: {self.docs.refs_path} has no ref of split {self.config.test_split} "
                f"(it has: {present}); the task is skipped and has no result"
            )
            self._instances: list[Any] = []
            return
        if self.docs.problems:
            logger.warning(
                f"{self.config.task}: in {self.docs.refs_path.parent}: {summed_up(self.docs.problems)}. All are listed "
                "under `problems` in the task's metadata in the results file"
            )
        super().build_all_requests(**options)

    def aggregation(self) -> dict[str, Any]:
        """The template's aggregations; the one of ``complete`` also says aloud that a result is partial."""
        listed: dict[str, Any] = super().aggregation()
        return {**listed, "complete": self._complete} if "complete" in listed else listed

    def _complete(self, samples: list[scoring.Sample]) -> int:
        complete = scoring.complete(samples)
        if not complete:
            scored, official = scoring.total(samples), self.docs.expected_items or "an unknown number of"
            logger.warning(
                f"{self.config.task}: PARTIAL RESULT over {scored} of {official} official items "
                f"({self.docs.items} in {self.docs.refs_path}); do not set it beside published numbers"
            )
        return complete


def score(doc: ReferDoc, results: list[Any]) -> dict[str, Any]:
    """Counts of one document, by metric; `results` holds the model's one reply."""
    return SampleScores(scoring.score_reply(doc, reply_of(results)))


def image_of(doc: ReferDoc) -> list[Any]:
    """The picture of a document as PIL RGB, for models that ask the task for it."""
    return [doc["image"]]
