"""The lmms-eval task: the keyword selector reads the narratives, beside noun chunks of the same texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from loguru import logger

from flmm_plugin.errors import ToolNotFound
from flmm_plugin.tasks.keywords import scoring
from flmm_plugin.tasks.keywords.noun_chunks import NounChunks, load_noun_chunks
from flmm_plugin.tasks.png.docs import PngDoc
from flmm_plugin.tasks.png.task import NarrativeTask
from flmm_plugin.tasks.sample_scores import SampleScores, reply_of


class KeywordSelection(NarrativeTask):
    """Precision, recall and F1 of what is picked in each narrative.

    Config: as for `NarrativeTask`. Without spaCy the task runs, says so, and leaves its six metrics out.
    """

    unit: ClassVar[str] = "narratives"

    def __init__(self, config: dict[str, Any] | None = None) -> None:
        super().__init__(config)
        self._chunks: NounChunks | None = None
        self._missing = ""
        try:
            self._chunks = load_noun_chunks()
        except ToolNotFound as exc:
            self._missing = str(exc)
        # Now and not later: lmms-eval copies the metadata before it asks for requests.
        said = "none" if self._chunks is None else self._chunks.name
        self.config.metadata = {**(self.config.metadata or {}), "noun_chunks": said}

    def build_all_requests(self, **options: Any) -> None:
        """One request per narrative, after a word on a missing spaCy."""
        if self._missing:
            logger.warning(
                f"{self.config.task}: the noun chunks that table 6 compares with are left out: {self._missing}"
            )
        super().build_all_requests(**options)

    def process_results(self, doc: PngDoc, results: list[Any], full_docs: Any = None) -> dict[str, Any]:
        """Counts of one narrative, noun chunks beside it where spaCy is."""
        chunks = {} if self._chunks is None else {"noun_chunks": self._chunks.spans(doc["text"])}
        return score({**doc, **chunks}, results)


def score(doc: Mapping[str, Any], results: list[Any]) -> dict[str, Any]:
    """Counts of one narrative, with its ``noun_chunks`` if it has some."""
    return SampleScores(scoring.score_reply(doc, reply_of(results)))
