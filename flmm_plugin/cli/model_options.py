"""Options that say which model, where and how exactly; what is wrong with them is found before torch is imported."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from os.path import isdir, isfile  # a name that no system can have: False, where Path raises
from typing import Any

from flmm_plugin.bundled import EMBEDDED
from flmm_plugin.devices import checked_device
from flmm_plugin.errors import UnknownArgument
from flmm_plugin.options import LoadOptions
from flmm_plugin.suggestions import did_you_mean


def add_model_options(parser: Any) -> None:
    """Add ``--model``, ``--revision``, ``--device``, ``--dtype`` and ``--no-fetch``."""
    parser.add_argument("--model", help=f"{EMBEDDED}, a folder or a hub name (default: {EMBEDDED})")
    texts = LoadOptions.help_texts()
    for name, default in (("revision", None), ("device", None), ("dtype", "auto")):
        parser.add_argument(f"--{name}", default=default, help=texts[name])
    add_no_fetch(parser)


def add_no_fetch(parser: Any) -> None:
    """Add ``--no-fetch``."""
    parser.add_argument("--no-fetch", action="store_true", help="fetch nothing; list what is missing, with its size")


def check_model_options(args: argparse.Namespace) -> None:
    """See that `add_model_options` were given a model that can be and a device that is here; fill in the default model.

    Raises:
        UnknownArgument: They were not.
    """
    args.model = EMBEDDED if args.model is None else checked_model(args.model)
    args.device = checked_device(args.device)
    if args.revision is not None and (args.model == EMBEDDED or isdir(args.model)):
        raise UnknownArgument(f"--revision is of a model on the hub, and {args.model} is on this machine; leave it out")


def checked_model(name: str, option: str = "--model") -> str:
    """Return the name of a model if it can be one: the embedded one, a folder that is here, or ``owner/name``.

    Args:
        name: Value of ``--model``: ``flmm_tiny``, a folder, or a name on the hub.
        option: What it was given with, for the message.

    Raises:
        UnknownArgument: It is a harness's name for a family, a file, or nothing that is here.
    """
    from flmm_plugin.adapters.answering.defaults import DEFAULTS

    if name == EMBEDDED or (name and isdir(name)):
        return name
    if name in DEFAULTS:
        give = DEFAULTS[name].pretrained
        raise UnknownArgument(
            f"{option} {name} is what a harness calls the family; "
            + (f"give the model itself: {option} {give}" if give else f"give the model itself with {option}")
        )
    if isfile(name):
        raise UnknownArgument(f"{option} {name} is a file; give the folder that it lies in")
    owner, slash, rest = name.partition("/")
    if owner in ("", ".", "..", "~") or not rest or "/" in rest:
        near = "" if slash else did_you_mean(name, (EMBEDDED, *(one.pretrained for one in DEFAULTS.values())))
        raise UnknownArgument(
            f"there is no model {name!r} here{near or ';'} {option} takes {EMBEDDED}, a folder, or the name of a model "
            "on the hub, owner/name"
        )
    return name


def refuse_idle(args: argparse.Namespace, options: Iterable[str], why: str) -> None:
    """Refuse options that would change nothing.

    Args:
        args: Parsed; an option that was not given is None, False or an empty list.
        options: Names of options, without the two dashes.
        why: In what case they change nothing.

    Raises:
        UnknownArgument: One of them was given.
    """
    for option in options:
        if getattr(args, option.replace("-", "_")) not in (None, False, []):
            raise UnknownArgument(f"--{option} changes nothing {why}; leave it out")


def positive(text: str) -> int:
    """Read a number from 1 on, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a number >= 1")
    return value
