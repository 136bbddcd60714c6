"""Refuse texts that are longer than what a model reads at once, before the model runs.

A model that was given more would compute for minutes, and answer from places that it was never trained on.
"""

from __future__ import annotations

from flmm_plugin.backbones.base import Backbone, EncodedChat
from flmm_plugin.errors import BadText


def context_limit(backbone: Backbone) -> int | None:
    """Return the language model's limit of tokens (``max_position_embeddings``); None where it states none."""
    limit = getattr(backbone.decoder.config, "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def check_characters(backbone: Backbone, text: str) -> None:
    """Refuse a text that no way of tokenising would make short enough, before time is spent on tokenising it.

    Raises:
        BadText: Even if each token had as many characters as the longest one has, there would be too many tokens.
    """
    limit = context_limit(backbone)
    if limit is None or len(text) <= limit:
        return
    longest = max(map(len, backbone.tokenizer.get_vocab()))
    if len(text) > limit * longest:
        raise BadText(f"a text of {len(text)} characters is too long: {_limit(backbone)}")


def check_tokens(backbone: Backbone, count: int) -> None:
    """Refuse more tokens than the model reads.

    Args:
        backbone: Model whose ``max_position_embeddings`` is the limit.
        count: Tokens of one sequence, those of its pictures included.

    Raises:
        BadText: There are too many.
    """
    limit = context_limit(backbone)
    if limit is not None and count > limit:
        raise BadText(f"{count} tokens of text and picture are too many: {_limit(backbone)}")


def check_encoded(backbone: Backbone, encoded: EncodedChat) -> None:
    """Refuse more tokens than the model reads in the longest of several encoded chats, padding not counted."""
    check_tokens(backbone, int(encoded.inputs["attention_mask"].sum(dim=1).max()))


def _limit(backbone: Backbone) -> str:
    return (
        f"{backbone.name} reads at most {context_limit(backbone)} tokens (max_position_embeddings), those of the "
        "picture included; shorten the text"
    )
