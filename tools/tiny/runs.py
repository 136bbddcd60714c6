"""What a long run leaves on disk: states written whole or not at all."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch

from flmm_plugin import files
from flmm_plugin.errors import BadCheckpoint
from flmm_plugin.heads.weights import read_pth


def atomic_save(state: Any, path: Path) -> None:
    """Save a state whole or not at all: a killed run leaves the last good file.

    Raises:
        OutputFailed: The place cannot be written.
    """
    content = io.BytesIO()  # in one piece: how a full disk is told depends on who writes
    torch.save(state, content)
    files.write(path, content.getvalue())


def load_state(path: Path) -> Any:
    """Read what `atomic_save` wrote.

    Raises:
        BadCheckpoint: It is damaged.
    """
    try:
        return read_pth(path, "state of a run")
    except (BadCheckpoint, pickle.UnpicklingError) as exc:
        raise BadCheckpoint(f"{path} is damaged ({exc}); remove it, its stage then begins anew") from exc
