"""The lmms-eval task: ReasonSeg's official files in, mask metrics out, no hub."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flmm_plugin.tasks.file_task import FileTask
from flmm_plugin.tasks.picture_docs import PictureDoc, PictureDocs
from flmm_plugin.tasks.reasonseg import scoring
from flmm_plugin.tasks.reasonseg.docs import read_docs
from flmm_plugin.tasks.sample_scores import SampleScores, reply_of


class ReasoningSegmentation(FileTask):
    """Reasoning segmentation on one split.

    Config: ``dataset_kwargs`` may have ``root``; ``test_split`` is val, test or train;
    ``lmms_eval_specific_kwargs.default`` has the prompts ``short`` (phrases) and ``long`` (sentences), with ``{query}``
    where the query stands.
    """

    def read(self, split: str, settings: Mapping[str, Any]) -> PictureDocs:
        """Documents of a split."""
        return read_docs(split, settings)


def score(doc: PictureDoc, results: list[Any]) -> dict[str, Any]:
    """Counts of one document, by metric; `results` holds the model's one reply."""
    return SampleScores(scoring.score_reply(doc, reply_of(results)))


def image_of(doc: PictureDoc) -> list[Any]:
    """The picture of a document as PIL RGB."""
    return [doc["image"]]
