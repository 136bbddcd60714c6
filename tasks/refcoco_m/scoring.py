"""Score replies to RefCOCO-M as replies to RefCOCO: one expression, one object, one mask."""

from __future__ import annotations

from flmm_plugin.tasks.refcoco.scoring import logged_document, score_reply

__all__ = ["logged_document", "score_reply"]
