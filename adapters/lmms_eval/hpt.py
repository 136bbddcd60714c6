"""``--model flmm_hpt``: HPT-Air from its published repositories, with heads that were trained for it."""

from __future__ import annotations

from typing import ClassVar

from flmm_plugin.adapters.answering.defaults import DEFAULTS, Defaults
from flmm_plugin.adapters.lmms_eval.model import FlmmModel, simple_form


class FlmmHPT(FlmmModel):
    """HPT-Air (default), or ``pretrained=HyperGAI/HPT1_5-Air-Llama-3-8B-Instruct-multimodal``.

    Its projector is code of its repository: it needs ``trust_remote_code=True`` and ``revision=`` the commit that was
    read. Without ``heads`` it only chats: none are shipped for it.
    """

    defaults: ClassVar[Defaults] = DEFAULTS["flmm_hpt"]


FlmmHPTSimple = simple_form(FlmmHPT)
