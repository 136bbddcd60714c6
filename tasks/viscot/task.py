"""The lmms-eval task: a Visual-CoT set from its official file, no hub; answers, boxes, and a judge if there is one."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from lmms_eval.api.task import ConfigurableTask
from loguru import logger

from flmm_plugin.errors import UnknownArgument
from flmm_plugin.tasks.sample_scores import SampleScores, reply_of
from flmm_plugin.tasks.viscot import scoring
from flmm_plugin.tasks.viscot.docs import VisCotDoc, VisCotDocs, read_docs
from flmm_plugin.tasks.viscot.judge import PROMPT_VERSION, Judge, judge_from_environment

_DATA_KEYS = ("name", "root", "boxes")


class VisCot(ConfigurableTask):
    """Questions of one set, answered with or without a second look.

    Config: ``dataset_kwargs`` has ``name`` (a set), optionally ``root`` and ``boxes`` (false where none is asked for);
    what is asked of an ``flmm_*`` model is in ``generation_kwargs``.

    Raises:
        DataNotFound, BadAnnotation: From the reader, when the task is built.
    """

    def __init__(self, config: dict[str, Any] | None = None) -> None:
        settings = dict(config or {})
        # lmms-eval hands over the YAML whole; its own task config knows no `class`.
        settings.pop("class", None)
        self.docs: VisCotDocs
        super().__init__(config=settings)
        # Found now: lmms-eval copies the metadata into its results before the first answer.
        self._judge: Judge | None = judge_from_environment()
        self.config.metadata = {
            **(self.config.metadata or {}),
            "annotations": f"sha256:{self.docs.digest}",
            "judge": self._judge.model if self._judge is not None else "none",
            "judge_prompt": PROMPT_VERSION,
            "boxes": self.docs.boxes_from,
            "judge_date": datetime.now(UTC).date().isoformat(),
        }

    def download(self, dataset_kwargs: dict[str, Any] | None = None) -> None:
        """Read the annotation file; pictures are opened one by one when they are asked for."""
        settings = dict(dataset_kwargs or {})
        unknown = sorted(set(settings) - set(_DATA_KEYS))
        if unknown or "name" not in settings:
            raise UnknownArgument(
                f"dataset_kwargs of {self.config.task} need `name` and may have {', '.join(_DATA_KEYS[1:])}; "
                f"got {unknown or settings}"
            )
        self.docs = read_docs(str(self.config.test_split), settings)
        if self.docs.reversed_boxes and settings.get("boxes", True):
            listed = ", ".join(map(str, self.docs.reversed_boxes))
            logger.info(
                f"{self.config.task}: the true box of question {listed} in {self.docs.path} is reversed; as in the "
                "benchmark's own code, no prediction can meet it"
            )
        cut = self.docs.boxes_from.get("benchmark", 0)
        if cut and settings.get("boxes", True):
            logger.warning(
                f"{self.config.task}: {cut} of {len(self.docs)} true boxes are the whole numbers of {self.docs.path}; "
                "the benchmark's evaluator reads those with fractions in benchmark_det, which are not here: get them "
                "with flmm data download viscot"
            )
        # No picture is part of a document, so the view without media is the same one.
        self.dataset = self.dataset_no_image = {str(self.config.test_split): self.docs}

    def process_results(self, doc: VisCotDoc, results: list[Any], full_docs: Any = None) -> dict[str, Any]:
        """Scores of one document, the judge's among them. lmms-eval calls this from several threads."""
        sample = score(doc, results)
        if self._judge is None:
            return sample
        answer = scoring.read_reply(reply_of(results)).text.strip()
        if not answer:  # nothing that anybody could judge
            return SampleScores({**sample, "judge_items": {"count": 1}, "judged": {"score": 0.0, "unreadable": False}})
        verdict = self._judge.verdict(doc["question"], doc["answer"], answer)
        sample["judge_items"] = {"count": int(verdict is not None)}
        if verdict is not None:
            points = 0.0 if verdict.score is None else verdict.score
            sample["judged"] = {**vars(verdict), "score": points, "unreadable": verdict.score is None}
        return sample

    def aggregation(self) -> dict[str, Any]:
        """The template's aggregations; the one of ``complete`` also says aloud that a result is partial."""
        listed: dict[str, Any] = super().aggregation()
        return {**listed, "complete": self._complete, "judge_items": self._judge_items}

    def _complete(self, samples: list[scoring.Sample]) -> int:
        complete = scoring.complete(samples)
        if not complete:
            logger.warning(
                f"{self.config.task}: PARTIAL RESULT over {scoring.total(samples)} of {self.docs.expected_items} "
                "official items; do not set it beside published numbers"
            )
        return complete

    def _judge_items(self, samples: list[scoring.Sample]) -> int:
        judged = scoring.total(samples)
        if judged < len(samples):
            logger.warning(
                f"{self.config.task}: the judge gave {judged} of {len(samples)} verdicts; `judged` is the mean of "
                "those. Run again to ask for the others"
            )
        return judged


def score(doc: VisCotDoc, results: list[Any]) -> dict[str, Any]:
    """Scores of one document without a judge; `results` holds the model's one reply."""
    return SampleScores(scoring.score_reply(doc, reply_of(results).strip()))


def image_of(doc: VisCotDoc) -> list[Any]:
    """The picture of a document as PIL RGB."""
    return [doc["image"]]
