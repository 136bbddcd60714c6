"""``--model flmm_auto``: any model that transformers loads to look at pictures and write text."""

from __future__ import annotations

from typing import ClassVar

from flmm_plugin.adapters.answering.defaults import DEFAULTS, Defaults
from flmm_plugin.adapters.lmms_eval.model import FlmmModel, simple_form


class FlmmAuto(FlmmModel):
    """The checkpoint decides: a family of this package, one that another package brings, or the generic way.

    ``pretrained`` must be given. Without ``heads`` it only chats.
    """

    defaults: ClassVar[Defaults] = DEFAULTS["flmm_auto"]


FlmmAutoSimple = simple_form(FlmmAuto)
