"""Score replies to phrases of one's own data: as gRefCOCO's, but a mask of any size says that something is there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flmm_plugin.tasks.phrases import logged_document, score_phrases

__all__ = ["logged_document", "score_reply"]


def score_reply(doc: Mapping[str, Any], reply: Any) -> dict[str, dict[str, Any]]:
    """Return the counts of one document, keyed by metric; see `flmm_plugin.tasks.phrases.score_phrases`."""
    return score_phrases(doc, reply)
