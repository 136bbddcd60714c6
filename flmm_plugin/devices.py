"""Refuse a device that this machine lacks, before anything is loaded."""

from __future__ import annotations

import re
from typing import Any

from flmm_plugin.errors import UnknownArgument
from flmm_plugin.suggestions import did_you_mean

#: Kinds of devices, as torch calls them.
KINDS = ("cpu", "cuda", "mps", "xpu")
_WORDS = {"gpu": "cuda", "nvidia": "cuda", "metal": "mps", "intel": "xpu"}
_DEVICE = re.compile(rf"({'|'.join(KINDS)})(?::(\d+))?")


def checked_device(asked: str | None, option: str = "--device") -> str | None:
    """Return a device that this machine has.

    Args:
        asked: ``cpu``, ``cuda``, ``cuda:1``, ...; None where nobody asked for one.
        option: What the user gave it with, for the message.

    Returns:
        `asked` without spaces around it.

    Raises:
        UnknownArgument: There is no such device here; the message lists those that are.
    """
    if asked is None:
        return None
    name = asked.strip()
    found = _DEVICE.fullmatch(name)
    if found is None:
        kind = re.split(r"[:\d]", name.lower())[0]
        hint = did_you_mean(_WORDS.get(kind, kind), KINDS)
        raise UnknownArgument(f"{option} {asked!r} is no device{hint} {_listed()}")
    if int(found[2] or 0) >= _number_of(found[1]):
        raise UnknownArgument(f"{option} {asked!r} is not on this machine. {_listed()}")
    return name


def device_name(device: Any) -> str | None:
    """Return the kind of a device and, for a GPU, its name: ``cpu``, ``cuda (NVIDIA H100 PCIe)``; None for None."""
    import torch

    if device is None:
        return None
    place = torch.device(device)
    return f"{place.type} ({torch.cuda.get_device_name(place)})" if place.type == "cuda" else place.type


def _number_of(kind: str) -> int:
    """Count the devices of a kind that this process can use."""
    import torch  # names alone must not cost it

    if kind == "cpu":
        return 1
    part = getattr(torch, kind, None)
    return int(part.device_count()) if part is not None and hasattr(part, "device_count") else 0


def _listed() -> str:
    here = [kind if index == 0 else f"{kind}:{index}" for kind in KINDS for index in range(_number_of(kind))]
    return f"There is here: {', '.join(here)}"
