"""The documents of keyword selection: those of PNG, with another prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flmm_plugin.tasks.png.docs import read_docs as read_docs
from flmm_plugin.tasks.png.docs import target_of as target_of


def prompt_of(doc: Mapping[str, Any]) -> str:
    """Ask in words, for models that read a prompt; ``flmm_*`` models are fed the narrative itself."""
    return (
        "Which words of this description name things that can be seen in the image? Answer with masks JSON whose "
        f"phrases have their spans in it: {doc['text'].strip()}"
    )
