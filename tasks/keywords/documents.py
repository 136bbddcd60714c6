"""Read the documents of keyword selection: those of PNG, with another prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flmm_plugin.tasks.documents import Documents
from flmm_plugin.tasks.png import benchmark
from flmm_plugin.tasks.png.benchmark import SETTINGS as SETTINGS
from flmm_plugin.tasks.png.benchmark import target_of as target_of


def read_documents(split: str, settings: Mapping[str, Any]) -> Documents:
    """Read the documents of a split, as for PNG; what is counted are narratives."""
    return benchmark.read_documents(split, settings, unit="narratives")


def prompt_of(doc: Mapping[str, Any]) -> str:
    """Return what is asked, for models that read a prompt; ``flmm_*`` models are fed the narrative itself."""
    return (
        "Which words of this description name things that can be seen in the image? Answer with masks JSON whose "
        f"phrases have their spans in it: {doc['text'].strip()}"
    )
