"""Read command lines with argparse, and announce the import of torch, which takes most of a command's time."""

from __future__ import annotations

import argparse
import importlib.abc
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn

from flmm_plugin.exit_codes import FAILED, say
from flmm_plugin.suggestions import did_you_mean


class HelpText(argparse.HelpFormatter):
    """Help that keeps the lines of a text with several, such as examples, and wraps a text of one."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n" not in text.strip():
            return super()._fill_text(text, width, indent)
        return "".join(indent + line for line in text.splitlines(keepends=True))


class Parser(argparse.ArgumentParser):
    """Parser whose errors are one line; the parsers of its subcommands are of this class too."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"formatter_class": HelpText, **options})

    def error(self, message: str) -> NoReturn:
        """Print what is wrong and how to get help in one line, then exit."""
        print(f"{self.prog}: {message} ({self.prog} --help)", file=sys.stderr)
        sys.exit(FAILED)

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse; refuse unknown options here, and leave other unknown words to the caller."""
        found, behind = super().parse_known_args(args, namespace)
        unknown = [word for word in behind if word.startswith("-") and word != "-"]
        if unknown:
            name = unknown[0].partition("=")[0]
            self.error(f"there is no option {name}{did_you_mean(name, self._option_string_actions, 0.6)}")
        return found, behind

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Raise with the nearest of the choices for a value that is none of them."""
        choices = action.choices
        if choices is None or value in choices:
            return
        known = [str(choice) for choice in choices]
        what = "command" if isinstance(action, argparse._SubParsersAction) else "/".join(action.option_strings)
        hint = did_you_mean(str(value), known) or "."
        raise argparse.ArgumentError(
            None, f"there is no {what or action.dest} {value!r}{hint} There are: {', '.join(known)}"
        )


class _BeforeTorch(importlib.abc.MetaPathFinder):
    """Import finder that finds nothing, and says once on standard error that torch is being imported."""

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
