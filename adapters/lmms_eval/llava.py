"""``--model flmm_llava``: any checkpoint of transformers' LLaVA, with heads that were trained for it."""

from __future__ import annotations

from typing import ClassVar

from flmm_plugin.adapters.answering.defaults import DEFAULTS, Defaults
from flmm_plugin.adapters.lmms_eval.model import FlmmModel, simple_form


class FlmmLlava(FlmmModel):
    """LLaVA-1.5 and models of its class. Without ``heads`` it only chats: none are shipped for it."""

    defaults: ClassVar[Defaults] = DEFAULTS["flmm_llava"]


FlmmLlavaSimple = simple_form(FlmmLlava)
