"""The lmms-eval tasks on panoptic narratives: official files in, no hub.

`NarrativeTask` reads the narratives and says what could not be used; `PanopticNarrativeGrounding` scores masks.
`flmm_plugin.tasks.keywords` has the other task on the same documents.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from lmms_eval.api.task import ConfigurableTask
from loguru import logger

from flmm_plugin.datasets.png import PngDataset
from flmm_plugin.datasets.problems import summed_up
from flmm_plugin.errors import UnknownArgument
from flmm_plugin.tasks.metrics.totals import is_complete, total
from flmm_plugin.tasks.png import curve, scoring
from flmm_plugin.tasks.png.docs import OFFICIAL_NARRATIVES, PngDoc, PngDocs, docs_of
from flmm_plugin.tasks.sample_scores import SampleScores, reply_of

_DATA_KEYS = ("root", "kinds", "question")


class NarrativeTask(ConfigurableTask):
    """A task whose documents are the narratives of a split.

    Config: ``dataset_kwargs`` may have ``root``, ``kinds`` (flmm, bcv) and ``question``; ``test_split`` is the split.

    Raises:
        DataNotFound, BadAnnotation: From the reader, when the task is built.
    """

    #: What is counted as complete.
    unit: ClassVar[str] = "phrases"

    def __init__(self, config: dict[str, Any] | None = None) -> None:
        settings = dict(config or {})
        # lmms-eval hands over the YAML whole; its own task config knows no `class`.
        settings.pop("class", None)
        self.narratives: PngDataset
        self.docs: PngDocs
        super().__init__(config=settings)
        facts = {
            "annotations": f"sha256:{self.narratives.digest}",
            "problems": [str(problem) for problem in self.narratives.problems],
        }
        self.config.metadata = {**(self.config.metadata or {}), **facts}

    def download(self, dataset_kwargs: dict[str, Any] | None = None) -> None:
        """Read the annotation files; pictures and panoptic maps are opened one by one when they are needed."""
        settings = dict(dataset_kwargs or {})
        unknown = sorted(set(settings) - set(_DATA_KEYS))
        if unknown:
            raise UnknownArgument(
                f"dataset_kwargs of {self.config.task} may have {', '.join(_DATA_KEYS)}; not {unknown}"
            )
        split = str(self.config.test_split)
        self.narratives = PngDataset(settings.get("root"), split)
        self.docs = docs_of(self.narratives, settings)
        # No picture is part of a document, so the view without media is the same one.
        self.dataset = self.dataset_no_image = {split: self.docs}

    def build_all_requests(self, **options: Any) -> None:
        """One request per narrative, after a word on what the files hold that is not asked."""
        problems = self.narratives.problems
        if problems:
            logger.warning(
                f"{self.config.task}: {len(self.docs)} of {self.narratives.in_file} narratives are asked, with "
                f"{self.docs.items} phrases. In {self.narratives.narratives_path}: {summed_up(problems)}. All "
                "are listed under `problems` in the task's metadata in the results file"
            )
        super().build_all_requests(**options)

    def aggregation(self) -> dict[str, Any]:
        """The template's aggregations; the one of ``complete`` also says aloud that a result is partial."""
        listed: dict[str, Any] = super().aggregation()
        return {**listed, "complete": self._complete} if "complete" in listed else listed

    def _complete(self, samples: list[scoring.Sample]) -> int:
        whole = is_complete(samples)
        if not whole:
            official = OFFICIAL_NARRATIVES[str(self.config.test_split)]
            all_here = len(self.docs) if self.unit == "narratives" else self.docs.items
            logger.warning(
                f"{self.config.task}: PARTIAL RESULT over {total(samples)} of {all_here} {self.unit}; the file has "
                f"{self.narratives.in_file} narratives, officially {official}; not comparable with published numbers"
            )
        return whole


class PanopticNarrativeGrounding(NarrativeTask):
    """Masks for the phrases of each narrative, which is fed as the model's answer."""

    def aggregation(self) -> dict[str, Any]:
        """The template's aggregations, with the one that draws."""
        listed = super().aggregation()
        return {**listed, "recall_curve": self._recall_curve} if "recall_curve" in listed else listed

    def _recall_curve(self, samples: list[scoring.Sample], args: Any = None) -> str:
        """Where the picture is, relative to ``--output_path``; "" without one."""
        folder = getattr(args, "output_path", None)
        if not folder:
            logger.info(f"{self.config.task}: give --output_path to get the recall curve as a picture")
            return ""
        path = curve.draw(
            scoring.curves(samples), Path(folder) / f"{self.config.task}_recall_curve.png", str(self.config.task)
        )
        logger.info(f"{self.config.task}: recall curve in {path}")
        return path.name


def score(doc: PngDoc, results: list[Any]) -> dict[str, Any]:
    """Counts of one document; a damaged panoptic map costs that document alone."""
    sample, problem = scoring.try_score(doc, reply_of(results))
    if problem is not None:
        logger.error(f"narrative {doc['narrative']} is skipped and has no score: {problem}")
    return SampleScores(sample)


def image_of(doc: PngDoc) -> list[Any]:
    """The picture of a document as PIL RGB, for models that ask the task for it."""
    return [doc["image"]]
