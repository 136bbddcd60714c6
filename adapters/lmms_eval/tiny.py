"""``--model flmm_tiny``: the small LMM that ships with the package, with its heads."""

from __future__ import annotations

from typing import ClassVar

from flmm_plugin.adapters.answering.defaults import DEFAULTS, Defaults
from flmm_plugin.adapters.lmms_eval.model import FlmmModel, simple_form


class FlmmTiny(FlmmModel):
    """The embedded LMM of a procedural world; it knows no photographs."""

    defaults: ClassVar[Defaults] = DEFAULTS["flmm_tiny"]


FlmmTinySimple = simple_form(FlmmTiny)
