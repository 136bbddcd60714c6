"""Read files of tensors that somebody else may have written or damaged; no code in them is run."""

from __future__ import annotations

import difflib
import hashlib
import os
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from flmm_plugin.errors import BadCheckpoint
from flmm_plugin.file_kinds import kind_of


def read_metadata(path: Path) -> dict[str, str]:
    """Read the metadata of a safetensors file, without a tensor.

    Raises:
        BadCheckpoint: It is cut off, damaged, or something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except Exception as exc:  # what a damaged header makes of its parser is not to be foreseen
        raise _no_safetensors(path, exc) from exc


def _no_safetensors(path: Path, error: Exception) -> BadCheckpoint:
    return BadCheckpoint(
        f"{path} is truncated or not a safetensors file: it is {kind_of(path)} ({error}); fetch the file again"
    )


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a safetensors file.

    Raises:
        BadCheckpoint: As `read_metadata`.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except Exception as exc:
        raise _no_safetensors(path, exc) from exc


def read_pth(path: Path, what: str) -> Any:
    """Read what `torch.save` wrote: tensors and plain values.

    Args:
        path: A ``.pth`` or ``.pt`` file of either of torch's forms.
        what: Name of its kind, for messages.

    Raises:
        BadCheckpoint: It is cut off, damaged, or speaks of more than it holds.
        pickle.UnpicklingError: It holds more than tensors and plain values.
    """
    try:
        if zipfile.is_zipfile(path):
            _check_archive(path)
        elif not _is_pickle(path):
            raise ValueError("neither of the forms that torch.save writes")
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
        _check_sizes(content)
    except pickle.UnpicklingError:
        raise
    except Exception as exc:  # torch reads what the file says: a flipped bit may raise anything
        raise BadCheckpoint(
            f"{path} is truncated, damaged or no {what}: it is {kind_of(path)} "
            f"({type(exc).__name__}: {first_lines(exc)}); download it again"
        ) from exc
    return content


def tensors_sha256(state: Mapping[str, Tensor]) -> str:
    """Hash of names, dtypes, shapes and bytes, whatever the order."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def tensor_mismatches(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """Name the tensors that are missing, unknown or of another shape; "" if there are none."""
    missing = sorted(expected.keys() - state.keys())
    unknown = []
    for name in sorted(state.keys() - expected.keys()):
        near = difflib.get_close_matches(name, missing, 1, 0.8)
        unknown.append(f"{name} (should it be {near[0]}?)" if near else name)
    wrong = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in sorted(expected.keys() & state.keys())
        if state[name].shape != expected[name].shape
    ]
    found = {
        "missing": [f"{name} {tuple(expected[name].shape)}" for name in missing],
        "unknown": unknown,
        "wrong shape": wrong,
    }
    return "; ".join(f"{what} {listed(names)}" for what, names in found.items() if names)


def listed(names: Sequence[str], limit: int = 8) -> str:
    """Write how many names there are, and the first of them.

    >>> listed(["a", "b", "c"], limit=2)
    '3 (a, b and 1 more)'
    """
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"{len(names)} ({', '.join(names[:limit])}{more})"


def first_lines(exc: BaseException, count: int = 1) -> str:
    """Return the first lines of an error's message that hold words, or the name of its kind."""
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    return " ".join(lines[:count]) or type(exc).__name__


def _is_pickle(path: Path) -> bool:
    """Tell whether a file begins as pickles do, which torch wrote before it wrote archives."""
    with path.open("rb") as file:
        return file.read(1) == b"\x80"


def _check_archive(path: Path) -> None:
    """Compare every part with its checksum, which torch itself does not do."""
    with zipfile.ZipFile(path) as archive:
        claimed = sum(one.file_size for one in archive.infolist())
        if claimed > 2 * os.path.getsize(path):  # torch stores its parts as they are
            raise ValueError(f"it claims to hold {claimed} bytes")
        if (damaged := archive.testzip()) is not None:
            raise ValueError(f"{damaged} is not what its checksum says")


def _check_sizes(content: Any) -> None:
    """A tensor may claim more numbers than the file holds for it: copies of it would take all memory."""
    waiting = [content]
    while waiting:
        one = waiting.pop()
        if isinstance(one, Mapping):
            waiting += one.values()
        elif isinstance(one, list | tuple):
            waiting += one
        elif isinstance(one, Tensor) and one.numel() * one.element_size() > one.untyped_storage().nbytes():
            raise ValueError(f"a tensor of shape {tuple(one.shape)} is spread over fewer numbers")
