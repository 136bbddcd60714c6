"""``--model flmm_mgm``: MGM (Mini-Gemini) from its published repositories, with heads that were trained for it."""

from __future__ import annotations

from typing import ClassVar

from flmm_plugin.adapters.answering.defaults import DEFAULTS, Defaults
from flmm_plugin.adapters.lmms_eval.model import FlmmModel, simple_form


class FlmmMGM(FlmmModel):
    """MGM-2B (default); ``pretrained=YanweiLi/MGM-7B`` and ``YanweiLi/MGM-7B-HD`` are the others of the paper.

    Without ``heads`` it only chats: none are shipped for it.
    """

    defaults: ClassVar[Defaults] = DEFAULTS["flmm_mgm"]


FlmmMGMSimple = simple_form(FlmmMGM)
