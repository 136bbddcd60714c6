"""``--model flmm_llava``: any checkpoint of transformers' LLaVA, with heads that were trained for it."""

from __future__ import annotations

from typing import ClassVar

from flmm_plugin.adapters.lmms_eval.base import FlmmModel, simple_form


class FlmmLlava(FlmmModel):
    """LLaVA-1.5 and models of its class. Without ``heads`` it only chats: none are shipped for it."""

    default_pretrained = "llava-hf/llava-1.5-7b-hf"
    default_heads = None
    families: ClassVar[tuple[str, ...]] = ("llava",)


FlmmLlavaSimple = simple_form(FlmmLlava)
