"""List the ten LMMs with released heads, with the settings that their checkpoints do not state.

A released file holds tensors alone. Which prompt was around the phrases, and how the decoder's logits were laid on the
picture, has to be known from elsewhere: it is written down here, once per LMM.

Source: F-LMM (arXiv 2406.05821), its released configurations, and the models' own published numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

from flmm_plugin.errors import UnknownArgument
from flmm_plugin.heads.manifest import BackboneFacts
from flmm_plugin.suggestions import did_you_mean

DATA = "PNG narratives (train2017), RefCOCO and RefCOCO+ (unc), RefCOCOg (umd)"

# No system sentence in any of them, although some models' own chat templates write one.
_VICUNA = "USER: {image}\n{prompt} ASSISTANT:"
_MISTRAL = "[INST] {image}\n{prompt} [/INST]"
_DEEPSEEK = "User: {image}{prompt}\n\nAssistant:"
_GEMMA = "<start_of_turn>user\n{image}\n{prompt}<end_of_turn>\n<start_of_turn>model\n"
_INTERNLM2 = "<|im_start|>user\n{image}\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
_LLAMA3 = (
    "<|start_header_id|>user<|end_header_id|>\n\n{image}\n{prompt}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)


@dataclass(frozen=True)
class ReleasedLMM:
    """One frozen LMM of the paper.

    Attributes:
        name: As the paper prints it.
        hub: Where its weights are, in the layout that this package loads.
        layers: Number m of decoder layers.
        heads: Attention heads per layer, c.
        hidden_size: Width d of a hidden state.
        maps_per_image: 2 where a coarse and a fine view are stacked.
        template: Text of the user's turn around ``{image}`` and ``{prompt}``, as the heads were trained.
        placement: How decoder logits are laid on the picture, as in `HeadsManifest`.
        aliases: Other last parts of names that mean it.
    """

    name: str
    hub: str
    layers: int
    heads: int
    hidden_size: int
    maps_per_image: int
    template: str
    placement: str = "cells"
    aliases: tuple[str, ...] = ()

    @property
    def facts(self) -> BackboneFacts:
        """The numbers that its heads fit."""
        return BackboneFacts(self.hub, self.layers, self.heads, self.hidden_size, self.maps_per_image)

    @property
    def names(self) -> tuple[str, ...]:
        """All names that `find_released` knows it by, in lower case."""
        return (self.name.lower(), _last_part(self.hub), *self.aliases)


RELEASED: tuple[ReleasedLMM, ...] = (
    ReleasedLMM("LLaVA-1.5-7B", "llava-hf/llava-1.5-7b-hf", 32, 32, 4096, 1, _VICUNA),
    ReleasedLMM(
        "LLaVA-Next-Vicuna-7B", "llava-hf/llava-v1.6-vicuna-7b-hf", 32, 32, 4096, 2, _VICUNA, "whole",
        ("llava-v1.6-vicuna-7b", "llava-1.6-7b"),
    ),
    ReleasedLMM(
        "LLaVA-Next-Mistral-7B", "llava-hf/llava-v1.6-mistral-7b-hf", 32, 32, 4096, 2, _MISTRAL, "whole",
        ("llava-v1.6-mistral-7b", "llava-1.6-m-7b"),
    ),
    ReleasedLMM(
        "DeepSeekVL-1.3B", "deepseek-community/deepseek-vl-1.3b-chat", 24, 16, 2048, 1, _DEEPSEEK,
        aliases=("deepseek-vl-1.3b",),
    ),
    ReleasedLMM(
        "DeepSeekVL-7B", "deepseek-community/deepseek-vl-7b-chat", 30, 32, 4096, 1, _DEEPSEEK,
        aliases=("deepseek-vl-7b",),
    ),
    ReleasedLMM("MGM-2B", "YanweiLi/MGM-2B", 18, 8, 2048, 1, _GEMMA),
    ReleasedLMM("MGM-7B", "YanweiLi/MGM-7B", 32, 32, 4096, 1, _VICUNA),
    ReleasedLMM("MGM-HD-7B", "YanweiLi/MGM-7B-HD", 32, 32, 4096, 2, _VICUNA),
    ReleasedLMM("HPT-Air", "HyperGAI/HPT", 32, 32, 4096, 1, _INTERNLM2, aliases=("hpt-air-6b",)),
    ReleasedLMM(
        "HPT-Air-1.5", "HyperGAI/HPT1_5-Air-Llama-3-8B-Instruct-multimodal", 32, 32, 4096, 1, _LLAMA3,
        aliases=("hpt-air-1.5-8b", "hpt-1.5-air"),
    ),
)  # fmt: skip


def find_released(name: str) -> ReleasedLMM | None:
    """Find the LMM that a name means: the paper's name, a hub id, or a folder called like it; None if there is none."""
    wanted = _last_part(name)
    return next((one for one in RELEASED if wanted in one.names), None)


def need_released(name: str) -> ReleasedLMM:
    """Find the LMM that a name means, or raise an error that lists all of them.

    Raises:
        UnknownArgument: No released heads for an LMM of this name.
    """
    found = find_released(name)
    if found is None:
        hint = did_you_mean(_last_part(name), [alias for one in RELEASED for alias in one.names]) or "."
        known = ", ".join(one.name for one in RELEASED)
        raise UnknownArgument(
            f"no heads were released for {name!r}{hint} Known: {known}; or give a folder with config.json"
        )
    return found


def of_shape(attention_maps: int, layers: int, hidden_size: int) -> tuple[ReleasedLMM, ...]:
    """Return the LMMs whose heads have these numbers; several share theirs, so only a mismatch proves anything."""
    return tuple(
        one
        for one in RELEASED
        if (one.facts.attention_maps, one.layers, one.hidden_size) == (attention_maps, layers, hidden_size)
    )


def _last_part(name: str) -> str:
    return name.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1].lower()
