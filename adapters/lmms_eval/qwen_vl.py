"""``--model flmm_qwen2_5_vl`` and ``flmm_qwen3_vl``, with heads that were trained for them."""

from __future__ import annotations

from typing import ClassVar

from flmm_plugin.adapters.answering.defaults import DEFAULTS, Defaults
from flmm_plugin.adapters.lmms_eval.model import FlmmModel, simple_form


class FlmmQwen25VL(FlmmModel):
    """Qwen2.5-VL 3B (default) or 7B (``pretrained=Qwen/Qwen2.5-VL-7B-Instruct``); Qwen2-VL too.

    Without ``heads`` it only chats: none are shipped for it.
    """

    defaults: ClassVar[Defaults] = DEFAULTS["flmm_qwen2_5_vl"]


class FlmmQwen3VL(FlmmModel):
    """Qwen3-VL 4B (default) or 8B (``pretrained=Qwen/Qwen3-VL-8B-Instruct``).

    Without ``heads`` it only chats: none are shipped for it.
    """

    defaults: ClassVar[Defaults] = DEFAULTS["flmm_qwen3_vl"]


FlmmQwen25VLSimple = simple_form(FlmmQwen25VL)
FlmmQwen3VLSimple = simple_form(FlmmQwen3VL)
