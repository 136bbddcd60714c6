"""``--model flmm_internvl``: InternVL in transformers' form (``-hf``), with heads that were trained for it."""

from __future__ import annotations

from typing import ClassVar

from flmm_plugin.adapters.lmms_eval.base import FlmmModel, simple_form


class FlmmInternVL(FlmmModel):
    """InternVL3 8B, or any other ``-hf`` checkpoint. Without ``heads`` it only chats: none are shipped for it."""

    default_pretrained = "OpenGVLab/InternVL3-8B-hf"
    default_heads = None
    families: ClassVar[tuple[str, ...]] = ("internvl",)


FlmmInternVLSimple = simple_form(FlmmInternVL)
