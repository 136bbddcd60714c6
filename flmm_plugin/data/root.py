"""Find the folder that holds the benchmarks' files."""

from __future__ import annotations

import os
from pathlib import Path

from flmm_plugin import bundled

DATA_ROOT_VARIABLE = "FLMM_DATA"
DEFAULT_ROOT = "data"


def data_root(root: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder that a root means: itself, or ``$FLMM_DATA``, or ``data``; a name in `bundled`: that data."""
    if root is not None and bundled.is_data_root(str(root)):
        return bundled.data_root(str(root))
    return Path(root if root is not None else os.environ.get(DATA_ROOT_VARIABLE) or DEFAULT_ROOT)
