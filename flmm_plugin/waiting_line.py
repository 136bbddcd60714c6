"""One line before the long wait: torch and transformers take most of the time until a command does anything."""

from __future__ import annotations

import importlib.abc
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

from flmm_plugin.ending import say


class _BeforeTorch(importlib.abc.MetaPathFinder):
    """Finds nothing; says once, on standard error, that torch is being looked for."""

    def __init__(self, name: str) -> None:
        self._name = name

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == "torch":
            sys.meta_path.remove(self)
            say(self._name, "loading torch and transformers, which takes a while ...")
        return None


def announce(name: str = "flmm") -> None:
    """Have the first import of torch announced; a command that needs none says nothing, nor do ranks but the first."""
    waits = any(isinstance(finder, _BeforeTorch) for finder in sys.meta_path)
    if "torch" not in sys.modules and not waits and os.environ.get("RANK", "0") == "0":
        sys.meta_path.insert(0, _BeforeTorch(name))
