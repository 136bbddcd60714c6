"""``--model flmm_llava_next``: LLaVA 1.6 on Vicuna or Mistral, with heads that were trained for it."""

from __future__ import annotations

from typing import ClassVar

from flmm_plugin.adapters.answering.defaults import DEFAULTS, Defaults
from flmm_plugin.adapters.lmms_eval.model import FlmmModel, simple_form


class FlmmLlavaNext(FlmmModel):
    """LLaVA-NeXT on Vicuna (default) or Mistral (``pretrained=llava-hf/llava-v1.6-mistral-7b-hf``).

    Without ``heads`` it only chats: none are shipped for it.
    """

    defaults: ClassVar[Defaults] = DEFAULTS["flmm_llava_next"]


FlmmLlavaNextSimple = simple_form(FlmmLlavaNext)
