"""``--model flmm_deepseekvl``: DeepSeek-VL in transformers' form, with heads that were trained for it."""

from __future__ import annotations

from typing import ClassVar

from flmm_plugin.adapters.answering.defaults import DEFAULTS, Defaults
from flmm_plugin.adapters.lmms_eval.model import FlmmModel, simple_form


class FlmmDeepseekVL(FlmmModel):
    """DeepSeek-VL 1.3B (default) or 7B (``pretrained=deepseek-community/deepseek-vl-7b-chat``).

    Without ``heads`` it only chats: none are shipped for it.
    """

    defaults: ClassVar[Defaults] = DEFAULTS["flmm_deepseekvl"]


FlmmDeepseekVLSimple = simple_form(FlmmDeepseekVL)
