"""Run keyword selection in lmms-eval, beside noun chunks of the same texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loguru import logger

from flmm_plugin.errors import ToolNotFound
from flmm_plugin.tasks.file_task import FileTask
from flmm_plugin.tasks.keywords import scoring
from flmm_plugin.tasks.keywords.noun_chunks import NounChunks, load_noun_chunks
from flmm_plugin.tasks.sample_log import DocumentScores


class KeywordSelection(FileTask):
    """Precision, recall and F1 of what is picked in each narrative.

    Without spaCy the task runs, says so, and leaves its six metrics out.
    """

    def facts(self) -> dict[str, Any]:
        """Return which noun chunks stand beside; spaCy is looked for now."""
        self._chunks: NounChunks | None = None
        self._missing = ""
        try:
            self._chunks = load_noun_chunks()
        except ToolNotFound as exc:
            self._missing = str(exc)
        return {"noun_chunks": "none" if self._chunks is None else self._chunks.name}

    def build_all_requests(self, **options: Any) -> None:
        """Make one request per narrative, after a word on a missing spaCy."""
        if self._missing:
            logger.warning(
                f"{self.config.task}: the noun chunks that table 6 compares with are left out: {self._missing}"
            )
        super().build_all_requests(**options)

    def process_results(self, doc: Mapping[str, Any], results: list[Any], full_docs: Any = None) -> dict[str, Any]:
        """Return the counts of one narrative, noun chunks beside it where spaCy is."""
        chunks = {} if self._chunks is None else {"noun_chunks": self._chunks.spans(doc["text"])}
        return DocumentScores(scoring.score_reply({**doc, **chunks}, results))
