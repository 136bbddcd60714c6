"""Classes of lmms-eval models, made from the table of names when they are asked for: `FlmmTiny`, `FlmmTinySimple`, ...

The class named ``...Simple`` is the form for ``--force_simple``: the same model, asked with lmms-eval's plain prompts.
"""

from __future__ import annotations

import functools

from flmm_plugin.adapters.answering.defaults import DEFAULTS
from flmm_plugin.adapters.lmms_eval.model import FlmmModel
from flmm_plugin.adapters.lmms_eval.models import class_name


@functools.cache
def __getattr__(name: str) -> type[FlmmModel]:
    chat_name = name.removesuffix("Simple")
    if chat_name != name:
        return type(name, (__getattr__(chat_name),), {"__module__": __name__, "is_simple": True})
    for model in DEFAULTS.values():
        if name == class_name(model.name):
            facts = {"__module__": __name__, "__doc__": f"``--model {model.name}``.", "defaults": model}
            return type(name, (FlmmModel,), facts)
    raise AttributeError(f"module {__name__} has no class {name!r}")
