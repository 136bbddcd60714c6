"""``--model flmm_llava_onevision``: LLaVA-OneVision, with heads that were trained for it."""

from __future__ import annotations

from typing import ClassVar

from flmm_plugin.adapters.lmms_eval.base import FlmmModel, simple_form


class FlmmLlavaOnevision(FlmmModel):
    """LLaVA-OneVision 7B. Without ``heads`` it only chats: none are shipped for it."""

    default_pretrained = "llava-hf/llava-onevision-qwen2-7b-ov-hf"
    default_heads = None
    families: ClassVar[tuple[str, ...]] = ("llava_onevision",)


FlmmLlavaOnevisionSimple = simple_form(FlmmLlavaOnevision)
