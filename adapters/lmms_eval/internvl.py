"""``--model flmm_internvl``: InternVL in transformers' form (``-hf``), with heads that were trained for it."""

from __future__ import annotations

from typing import ClassVar

from flmm_plugin.adapters.answering.defaults import DEFAULTS, Defaults
from flmm_plugin.adapters.lmms_eval.model import FlmmModel, simple_form


class FlmmInternVL(FlmmModel):
    """InternVL3 8B, or any other ``-hf`` checkpoint. Without ``heads`` it only chats: none are shipped for it."""

    defaults: ClassVar[Defaults] = DEFAULTS["flmm_internvl"]


FlmmInternVLSimple = simple_form(FlmmInternVL)
