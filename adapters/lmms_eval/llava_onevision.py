"""``--model flmm_llava_onevision``: LLaVA-OneVision, with heads that were trained for it."""

from __future__ import annotations

from typing import ClassVar

from flmm_plugin.adapters.answering.defaults import DEFAULTS, Defaults
from flmm_plugin.adapters.lmms_eval.model import FlmmModel, simple_form


class FlmmLlavaOnevision(FlmmModel):
    """LLaVA-OneVision 7B. Without ``heads`` it only chats: none are shipped for it."""

    defaults: ClassVar[Defaults] = DEFAULTS["flmm_llava_onevision"]


FlmmLlavaOnevisionSimple = simple_form(FlmmLlavaOnevision)
