"""Options of ``generate``: which reach the model, which are refused, and what they amount to beside its own."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from flmm_plugin.errors import UnknownArgument
from flmm_plugin.options import refuse_unknown

#: New tokens of an answer where nobody says how many.
NEW_TOKENS = 64

# What `generate` could hand out beside the answer; `Backbone.generate` hands on ids alone.
_EXTRAS = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")

# Arguments of `generate` that are the chat itself.
_CHAT = ("self", "inputs", "kwargs")


def answer_options(model: Any, given: Mapping[str, Any]) -> Any:
    """Put options of generation together, the model's own filled in as `generate` does.

    Args:
        model: A transformers model with a ``generation_config``.
        given: Keyword arguments for its `generate`, ``generation_config`` among them.

    Returns:
        A ``GenerationConfig``.

    Raises:
        UnknownArgument: No option of generation, or one that asks for more than one answer in words per chat.
    """
    from transformers import GenerationConfig

    config = given.get("generation_config")
    if config is not None and not isinstance(config, GenerationConfig):
        raise UnknownArgument(f"generation_config is a {type(config).__name__}; give a transformers GenerationConfig")
    merged = GenerationConfig() if config is None else copy.deepcopy(config)
    for key, value in model.generation_config.to_dict().items():
        if getattr(merged, key, None) is None:
            setattr(merged, key, value)
    known = {
        *vars(GenerationConfig()),
        *inspect.signature(model.generate).parameters,
        "tokenizer",
        "assistant_tokenizer",
    }
    options = sorted(name for name in known - set(_CHAT) if not name.startswith("_"))
    refuse_unknown("generate", [name for name in given if name not in options], options)
    for key, value in given.items():
        if hasattr(merged, key):
            setattr(merged, key, value)
    if (merged.num_return_sequences or 1) > 1:
        raise UnknownArgument("num_return_sequences is not supported: a chat has one answer; call once per answer")
    asked = {key: value for source in (vars(config) if config else {}, given) for key, value in source.items()}
    for key in _EXTRAS:
        if asked.get(key):
            raise UnknownArgument(f"{key} is not supported: a chat gives text and ids; call backbone.model.generate")
    return merged


def with_length(given: Mapping[str, Any]) -> dict[str, Any]:
    """Add `NEW_TOKENS` to options of generation where neither they nor their ``generation_config`` say a length."""
    options = {key: value for key, value in given.items() if key != "max_new_tokens" or value is not None}
    config = options.get("generation_config")
    said = [
        place for key in ("max_new_tokens", "max_length") for place in (options.get(key), getattr(config, key, None))
    ]
    return options if any(length is not None for length in said) else {"max_new_tokens": NEW_TOKENS, **options}


def answer_length(answer: list[int], ends: int | Sequence[int] | Tensor | None, pad: int | None) -> int:
    """Count tokens up to the first end token; without one, up to the padding of a sequence that something else ended.

    Args:
        answer: Generated token ids of one chat, ``[n]``.
        ends: Token ids at which generation stops.
        pad: What fills up shorter answers of a batch; None: nothing was filled up.
    """
    if isinstance(ends, Tensor):
        ends = ends.flatten().tolist()
    stop = {ends} if isinstance(ends, int) else set(ends or ())
    for index, token in enumerate(answer):
        if token in stop:
            return index + 1
    length = len(answer)
    while length and answer[length - 1] == pad:
        length -= 1
    return length
