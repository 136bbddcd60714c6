"""Benchmarks' data: what is needed and from where, whether it is all there, how to get it, made quick to open."""

from __future__ import annotations

import os
from pathlib import Path

#: Folder under a data root for what this package puts there itself: downloads and prepared files.
WORKPLACE = ".flmm"

#: Where this package keeps what it can make again: verdicts of judges, the panel of the embedded world.
CACHE_VARIABLE = "FLMM_CACHE"


def cache_folder() -> Path:
    """``$FLMM_CACHE``, or ``~/.cache/flmm``."""
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "flmm")
