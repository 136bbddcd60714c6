"""The lmms-eval task: GranD-f's official files in, caption and mask metrics out, no hub."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from loguru import logger

from flmm_plugin.datasets.grandf import GranDfDataset
from flmm_plugin.tasks.file_task import FileTask
from flmm_plugin.tasks.gcg import encoders, scoring
from flmm_plugin.tasks.gcg.docs import gcg_docs
from flmm_plugin.tasks.picture_docs import PictureDoc, PictureDocs
from flmm_plugin.tasks.sample_scores import SampleScores, reply_of


class GroundedConversation(FileTask):
    """Grounded conversation generation on one split.

    Config: ``dataset_kwargs`` may have ``root`` and ``sentence_encoder`` (see `flmm_plugin.tasks.gcg.encoders`);
    ``test_split`` is val or test; ``lmms_eval_specific_kwargs.default.prompt`` is what is asked.
    """

    data_keys: ClassVar[tuple[str, ...]] = ("root", "sentence_encoder")

    def read(self, split: str, settings: Mapping[str, Any]) -> PictureDocs:
        """Documents of a split; what is odd in the files is said once."""
        dataset = GranDfDataset(settings.get("root"), split)
        self.encoder = encoders.chosen(settings.get("sentence_encoder"))
        if dataset.problems:
            logger.warning(
                f"{self.config.task}: {len(dataset.problems)} pictures are odd and are scored as they are: "
                + "; ".join(map(str, dataset.problems[:5]))
                + ("; ..." if len(dataset.problems) > 5 else "")
            )
        return gcg_docs(dataset, self.encoder)

    def facts(self) -> dict[str, Any]:
        """The sentence encoder, on which mask recall depends."""
        return {"sentence_encoder": self.encoder}


def score(doc: PictureDoc, results: list[Any]) -> dict[str, Any]:
    """What one document contributes, by metric; `results` holds the model's one reply."""
    return SampleScores(scoring.score_reply(doc, reply_of(results)))


def image_of(doc: PictureDoc) -> list[Any]:
    """The picture of a document as PIL RGB."""
    return [doc["image"]]
