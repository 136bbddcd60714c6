"""Change functions of another package: once in a process, and right after its module was imported."""

from __future__ import annotations

import functools
import importlib.abc
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def wrap_once(owner: Any, name: str, around: Callable[..., Any]) -> None:
    """Have calls of another package's function go through one of ours; a second time changes nothing.

    Args:
        owner: Class or module that has the function.
        name: Name of the function in `owner`.
        around: Called with the original function, then with the arguments of the call.

    Raises:
        AttributeError: There is no such function.
    """
    original = getattr(owner, name)
    if is_wrapped(owner, name, around):
        return

    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return around(original, *args, **kwargs)

    setattr(wrapped, _mark(around), True)
    setattr(owner, name, wrapped)


def is_wrapped(owner: Any, name: str, around: Callable[..., Any]) -> bool:
    """Return whether `wrap_once` was called with the same arguments before."""
    return hasattr(getattr(owner, name, None), _mark(around))


def _mark(around: Callable[..., Any]) -> str:
    # Wrappers copy what they wrap, marks included: each of ours needs a mark of its own.
    return f"_{around.__module__}.{around.__qualname__}"


class AfterImport(importlib.abc.MetaPathFinder):
    """Finder that waits for one module, finds it as usual, calls back once it is executed, and then is gone.

    Args:
        name: Module to wait for, dotted.
        then: Called with the executed module; it must not raise.
        otherwise: Called with a reason where the module has no loader to wait for.
    """

    def __init__(self, name: str, then: Callable[[ModuleType], None], otherwise: Callable[[str], None]) -> None:
        self.name, self._then, self._otherwise = name, then, otherwise

    @classmethod
    def place(
        cls, name: str, then: Callable[[ModuleType], None], otherwise: Callable[[str], None] = lambda reason: None
    ) -> None:
        """Wait for a module, unless somebody waits for it already."""
        if not any(isinstance(finder, cls) and finder.name == name for finder in sys.meta_path):
            sys.meta_path.insert(0, cls(name, then, otherwise))

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the module's own spec, with a loader that calls back."""
        if fullname != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None or not hasattr(spec.loader, "exec_module"):
            self._otherwise(f"{self.name} has no loader to wait for")
            return spec
        spec.loader = _CallingBack(spec.loader, self._then)
        return spec


class _CallingBack(importlib.abc.Loader):
    """The module's own loader, followed by a call."""

    def __init__(self, loader: Any, then: Callable[[ModuleType], None]) -> None:
        self._loader, self._then = loader, then

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._then(module)
