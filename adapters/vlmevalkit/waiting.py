"""Registration at the moment when VLMEvalKit's registry of models has been made. Costs no import until then."""

from __future__ import annotations

import sys
from types import ModuleType

from flmm_plugin.adapters.after_import import AfterImport

#: The module that is executed last of those that hold registries, and first by everything that runs the kit.
_REGISTRY = "vlmeval.config"


def wait_for_the_kit(*, hooked: bool = False) -> None:
    """Register as soon as the kit is imported, or now if it is already.

    Args:
        hooked: Whether the kit was started by itself: then what `flmm-vlmeval` checks and adds is checked and added
            too, and its exit status is seen to.
    """
    then = _begin if hooked else _register
    if hooked:
        from flmm_plugin.adapters.vlmevalkit.outcomes import report_at_the_end

        report_at_the_end()
    module = sys.modules.get(_REGISTRY)
    if module is None:
        AfterImport.place(_REGISTRY, then)
    else:
        then(module)


def _register(_module: ModuleType) -> None:
    from flmm_plugin.adapters.vlmevalkit.register import register

    register()


def _begin(module: ModuleType) -> None:
    from flmm_plugin.adapters.vlmevalkit.command import begin_unmodified

    _register(module)
    begin_unmodified()
