"""Command lines read by argparse, with the nearest known name for one that does not exist."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from flmm_plugin.ending import FAILED
from flmm_plugin.nearest import did_you_mean


class Parser(argparse.ArgumentParser):
    """A parser, and those of its subcommands, whose refusals are one line."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and where the help is, in one line."""
        print(f"{self.prog}: {message} ({self.prog} --help)", file=sys.stderr)
        sys.exit(FAILED)

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Refuse unknown options where they belong; other words are left to the caller."""
        found, behind = super().parse_known_args(args, namespace)
        unknown = [word for word in behind if word.startswith("-") and word != "-"]
        if unknown:
            name = unknown[0].partition("=")[0]
            self.error(f"there is no option {name}{did_you_mean(name, self._option_string_actions, 0.6)}")
        return found, behind

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Offer the nearest of the choices."""
        choices = action.choices
        if choices is None or value in choices:
            return
        known = [str(choice) for choice in choices]
        what = "command" if isinstance(action, argparse._SubParsersAction) else "/".join(action.option_strings)
        hint = did_you_mean(str(value), known) or "."
        raise argparse.ArgumentError(
            None, f"there is no {what or action.dest} {value!r}{hint} There are: {', '.join(known)}"
        )
