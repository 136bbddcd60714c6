"""Chat requests: lmms-eval's generation arguments and likelihoods, as its ``llava_hf`` reads them.

The aim is the same answer as the stock adapter's for every sample, so its defaults and its silences are kept: 1024 new
tokens where a task names no limit, greedy unless a temperature above 0 is given, and ``until`` not applied. What
somebody gave by hand (``--gen_kwargs``) counts: it reaches ``generate()`` or is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from flmm_plugin.adapters.answering.requests import split_at_placeholders, with_placeholders
from flmm_plugin.errors import BackboneUnsupported, UnknownArgument
from flmm_plugin.options import none_if_said
from flmm_plugin.suggestions import did_you_mean

_DEFAULT_NEW_TOKENS = 1024

#: Generation arguments that ``llava_hf`` reads, whoever gives them.
READ = ("temperature", "top_p", "num_beams", "max_new_tokens")

#: Generation argument that names those which somebody gave by hand and `READ` does not hold, joined by ``+``.
GIVEN = "flmm_given"


def given_by_hand(options: Mapping[str, Any]) -> str:
    """Name the generation arguments that go to ``generate()`` because somebody gave them by hand.

    >>> given_by_hand({"temperature": 0.2, "top_k": 5, "repetition_penalty": 1.1})
    'top_k+repetition_penalty'

    Args:
        options: What was given, by name.

    Returns:
        The value of `GIVEN`, "" where there is none.

    Raises:
        UnknownArgument: One that would be ignored.
    """
    from transformers import GenerationConfig

    known = vars(GenerationConfig())
    passed = []
    for name in options:
        if name in READ or name.startswith("flmm_"):
            continue
        if name == "until":
            raise UnknownArgument("until is not applied by this model, as in lmms-eval's llava_hf: give max_new_tokens")
        if name == "max_length":
            raise UnknownArgument("max_length counts the prompt and its pictures too: give max_new_tokens")
        if name not in known or name.startswith("_"):
            hint = did_you_mean(name, [*READ, *known])
            raise UnknownArgument(f"there is no generation argument {name!r}{hint or ' in transformers'}")
        passed.append(name)
    return "+".join(passed)


def generate_options(options: Mapping[str, Any], end_token: int) -> dict[str, Any]:
    r"""Return the arguments of ``generate()`` for a task's generation arguments.

    >>> generate_options({"temperature": 0, "until": ["\n\n"], "max_new_tokens": 16}, end_token=2)["do_sample"]
    False
    """
    temperature = options.get("temperature", 0)
    sampled = temperature is not None and temperature > 0
    by_hand = filter(None, str(options.get(GIVEN, "")).split("+"))
    return {
        "do_sample": sampled,
        "temperature": temperature if sampled else None,
        "top_p": options.get("top_p"),
        "num_beams": options.get("num_beams", 1),
        "max_new_tokens": options.get("max_new_tokens", _DEFAULT_NEW_TOKENS),
        "use_cache": True,
        "pad_token_id": end_token,
        "eos_token_id": end_token,
        **{name: none_if_said(options.get(name)) for name in by_hand},
    }


def takes_strings(render: Callable[..., str]) -> bool:
    """Tell whether a chat template writes a turn whose content is a plain string; many expect a list of parts."""
    probe = "probe of a plain string"
    try:
        return probe in render([{"role": "user", "content": probe}])
    except Exception:  # templates fail in their own ways: a template error, a TypeError, an IndexError
        return False


def as_the_template_likes(messages: list[dict[str, Any]], strings: bool, image_token: str) -> list[dict[str, Any]]:
    """Return `messages` with string contents as parts, where the template does not take strings."""
    if strings:
        return messages
    return [
        {**turn, "content": split_at_placeholders(turn["content"], image_token)}
        if isinstance(turn["content"], str)
        else turn
        for turn in messages
    ]


@torch.inference_mode()
def loglikelihood(backbone: Any, context: str, continuation: str, pictures: list[Any]) -> tuple[float, bool]:
    """Compute the mean loss of a continuation after a context, and whether greedy decoding would write it.

    lmms-eval calls the first number a log-likelihood and takes the smallest: it is a loss in all of its adapters.

    Raises:
        BackboneUnsupported: The loss is no number.
    """
    token = backbone.image_token
    strings = takes_strings(backbone.render)
    prompt = {"role": "user", "content": with_placeholders(context, len(pictures), token)}
    answer = {"role": "assistant", "content": continuation if strings else [{"type": "text", "text": continuation}]}
    chat = [*as_the_template_likes([prompt], strings, token), answer]
    whole = backbone.encode([chat], [pictures], add_generation_prompt=False).inputs
    start = backbone.encode([chat[:-1]], [pictures]).inputs["input_ids"].shape[1]
    labels = whole["input_ids"].clone()
    labels[:, :start] = -100
    outputs = backbone.model(**whole, labels=labels)
    # As llava_hf compares them: position by position, not shifted by one, so that both adapters report the same.
    greedy = outputs.logits.argmax(dim=-1)[:, start:]
    loss = float(outputs.loss)
    if not math.isfinite(loss):  # numpy takes nan for the smallest: the choice would be chosen
        raise BackboneUnsupported(f"the loss of {continuation!r} is {loss}; give --model_args dtype=float32")
    return loss, bool((greedy == whole["input_ids"][:, start:]).all())
