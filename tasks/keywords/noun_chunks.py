"""The offline tool that the paper's table 6 compares with: all noun chunks of a text, by spaCy.

spaCy and its English pipeline are optional. Nothing is filtered: pronouns and words such as "image" are noun chunks
too.
"""

from __future__ import annotations

import importlib
import threading
from typing import Any

from flmm_plugin.errors import ToolNotFound

Span = tuple[int, int]

PIPELINE = "en_core_web_sm"


class NounChunks:
    """Noun chunks of texts, by a loaded spaCy pipeline.

    Args:
        nlp: The pipeline, or anything that makes of a text something with ``noun_chunks``, which have ``start_char``
            and ``end_char``.
        name: Pipeline and versions, as recorded with a result.
    """

    def __init__(self, nlp: Any, name: str) -> None:
        self._nlp = nlp
        self._lock = threading.Lock()  # lmms-eval scores documents from several threads
        self.name = name

    def spans(self, text: str) -> list[Span]:
        """Characters ``[start, end)`` of every noun chunk, in order."""
        with self._lock:
            return [(int(chunk.start_char), int(chunk.end_char)) for chunk in self._nlp(text).noun_chunks]


def load_noun_chunks() -> NounChunks:
    """Load spaCy's pipeline.

    Raises:
        ToolNotFound: spaCy or the pipeline is not installed, or does not work; the message says how to get it.
    """
    try:
        spacy: Any = importlib.import_module("spacy")
    except ImportError as exc:
        raise ToolNotFound(
            f"noun chunks need spaCy, which is not installed ({exc}): pip install spacy && python -m spacy download "
            f"{PIPELINE}"
        ) from exc
    try:
        nlp = spacy.load(PIPELINE)
        # A pipeline without a parser loads, and fails at the first text: find out now, not after hours of answers.
        list(nlp("A dog.").noun_chunks)
    except (OSError, ValueError) as exc:
        raise ToolNotFound(
            f"spaCy {spacy.__version__} has no pipeline {PIPELINE} that finds noun chunks ({exc}): python -m spacy "
            f"download {PIPELINE}"
        ) from exc
    return NounChunks(nlp, f"spacy {spacy.__version__} {PIPELINE} {nlp.meta.get('version', '?')}")
