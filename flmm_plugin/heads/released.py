"""List the ten LMMs with released heads: where each file is, and the settings that it does not state.

A released file holds tensors alone. Which prompt was around the phrases, and how the decoder's logits were laid on the
picture, has to be known from elsewhere: it is written down here, once per LMM.

Source: F-LMM (arXiv 2406.05821), its released configurations, and the models' own published numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

from flmm_plugin.errors import UnknownArgument
from flmm_plugin.heads.manifest import BackboneFacts, last_part
from flmm_plugin.suggestions import did_you_mean

#: Terms of the released files; shown before one is fetched.
LICENCE = "NTU S-Lab License 1.0 (non-commercial use only)"

#: The folder of all of them, for a person with a browser.
FOLDER = "https://drive.google.com/drive/folders/1bvrDqm9m4MvcocuwvvkGf_qYRBfvr0K7"

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
        configuration: Name of the released configuration; the file has the same name.
        file_id: Id of the file on Google Drive.
        placement: How decoder logits are laid on the picture, as in `HeadsManifest`.
        aliases: Other last parts of names that mean it.
        sam: Name of the SAM that the heads refine with.
    """

    name: str
    hub: str
    layers: int
    heads: int
    hidden_size: int
    maps_per_image: int
    template: str
    configuration: str
    file_id: str
    placement: str = "cells"
    aliases: tuple[str, ...] = ()
    sam: str = "vit_l"

    @property
    def facts(self) -> BackboneFacts:
        """The numbers that its heads fit."""
        return BackboneFacts(self.hub, self.layers, self.heads, self.hidden_size, self.maps_per_image)

    @property
    def file(self) -> str:
        """Name of the released file."""
        return f"{self.configuration}.pth"

    @property
    def address(self) -> str:
        """Address of the released file."""
        return f"https://drive.google.com/uc?id={self.file_id}"

    @property
    def names(self) -> tuple[str, ...]:
        """All names that `find_released` knows it by, in lower case."""
        return (self.name.lower(), last_part(self.hub), *self.aliases)


RELEASED: tuple[ReleasedLMM, ...] = (
    ReleasedLMM(
        "LLaVA-1.5-7B", "llava-hf/llava-1.5-7b-hf", 32, 32, 4096, 1, _VICUNA,
        "frozen_llava_1_5_vicuna_7b_unet_sam_l_refcoco_png", "1opjFe15B5L5JJ78gE_FsXvDnwSlwSHhh",
    ),
    ReleasedLMM(
        "LLaVA-Next-Vicuna-7B", "llava-hf/llava-v1.6-vicuna-7b-hf", 32, 32, 4096, 2, _VICUNA,
        "frozen_llava_next_vicuna_7b_unet_sam_l_refcoco_png", "1N-olLqhZdPEySt8Asu2cvLJBaL1VHTqa",
        "whole", ("llava-v1.6-vicuna-7b", "llava-1.6-7b"),
    ),
    ReleasedLMM(
        "LLaVA-Next-Mistral-7B", "llava-hf/llava-v1.6-mistral-7b-hf", 32, 32, 4096, 2, _MISTRAL,
        "frozen_llava_next_mistral_7b_unet_sam_l_refcoco_png", "13rHaEZ62Q-VX5iKhOQnlm4yH1TMOBalH",
        "whole", ("llava-v1.6-mistral-7b", "llava-1.6-m-7b"),
    ),
    ReleasedLMM(
        "DeepSeekVL-1.3B", "deepseek-community/deepseek-vl-1.3b-chat", 24, 16, 2048, 1, _DEEPSEEK,
        "frozen_deepseek_vl_1_3b_chat_unet_sam_l_refcoco_png", "1UXcjJrrpTm1bNphvPNjvol9gUfvzNbjA",
        aliases=("deepseek-vl-1.3b",),
    ),
    ReleasedLMM(
        "DeepSeekVL-7B", "deepseek-community/deepseek-vl-7b-chat", 30, 32, 4096, 1, _DEEPSEEK,
        "frozen_deepseek_vl_7b_chat_unet_sam_l_refcoco_png", "1LOwIAYVyR51e34ksV9jz-GGiFfmkZLj_",
        aliases=("deepseek-vl-7b",),
    ),
    ReleasedLMM(
        "MGM-2B", "YanweiLi/MGM-2B", 18, 8, 2048, 1, _GEMMA,
        "frozen_mgm_gemma_2b_unet_sam_l_refcoco_png", "13wHk-dHa4in1rfIRzKCf-xEHwhaCz_6Y",
        aliases=("minigemini-2b",),
    ),
    ReleasedLMM(
        "MGM-7B", "YanweiLi/MGM-7B", 32, 32, 4096, 1, _VICUNA,
        "frozen_mgm_vicuna_7b_unet_sam_l_refcoco_png", "1Gg57bLJfx2zvYQyyE7Fjfw3hCq9ucVyN",
        aliases=("minigemini-7b",),
    ),
    ReleasedLMM(
        "MGM-HD-7B", "YanweiLi/MGM-7B-HD", 32, 32, 4096, 2, _VICUNA,
        "frozen_mgm_vicuna_7b_hd_unet_sam_l_refcoco_png", "1CDRI1l0FdTra7EZH_NNEha_QfA2cdbYb",
        aliases=("minigemini-hd-7b",),
    ),
    ReleasedLMM(
        "HPT-Air", "HyperGAI/HPT", 32, 32, 4096, 1, _INTERNLM2,
        "frozen_hpt_air_unet_sam_l_refcoco_png", "1_gU4olEjsYvBvcq6yWGklSxNAv-Yz44T",
        aliases=("hpt-air-6b",),
    ),
    ReleasedLMM(
        "HPT-Air-1.5", "HyperGAI/HPT1_5-Air-Llama-3-8B-Instruct-multimodal", 32, 32, 4096, 1, _LLAMA3,
        "frozen_hpt_air_1_5_unet_sam_l_refcoco_png", "1Q-asMx7C3onXnmxqEZzecMHHCccqkzaP",
        aliases=("hpt-air-1.5-8b", "hpt-1.5-air"),
    ),
)  # fmt: skip


def find_released(name: str) -> ReleasedLMM | None:
    """Find the LMM that a name means: the paper's name, a hub id, or a folder called like it; None if there is none."""
    wanted = last_part(name)
    return next((one for one in RELEASED if wanted in one.names), None)


def need_released(name: str) -> ReleasedLMM:
    """Find the LMM that a name means, or raise an error that lists all of them.

    Raises:
        UnknownArgument: No released heads for an LMM of this name.
    """
    found = find_released(name)
    if found is None:
        hint = did_you_mean(last_part(name), [alias for one in RELEASED for alias in one.names]) or "."
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
