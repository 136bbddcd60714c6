"""Registration at the moment when VLMEvalKit's registry of models has been made. Costs no import until then."""

from __future__ import annotations

import sys
from types import ModuleType

from flmm_plugin.adapters.after_import import AfterImport

#: The module that is executed last of those that hold registries, and first by everything that runs the kit.
_REGISTRY = "vlmeval.config"


def wait_for_the_kit() -> None:
    """Register as soon as the kit is imported, or now if it is already."""
    module = sys.modules.get(_REGISTRY)
    if module is None:
        AfterImport.place(_REGISTRY, _register)
    else:
        _register(module)


def _register(_module: ModuleType) -> None:
    from flmm_plugin.adapters.vlmevalkit.register import register

    register()
