"""The embedded world in every benchmark's layout, written once into the cache: data of the tasks ``flmm_tiny_*``."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from flmm_plugin.data import cache_folder

#: Pictures per split; a panel of all tasks then runs in minutes on two cores.
SCENES = 12

#: Scenes of the panel are not those of training nor of the measures that ship with the package.
SEED = 7000

#: The one set of the Visual-CoT benchmark that the panel has.
VISCOT_SET = "sroie"

_WRITERS = ("layouts", "layouts_gcg", "layouts_png", "layouts_pope", "layouts_viscot", "language", "panel", "world")


@functools.cache
def panel_root() -> Path:
    """The data root, written if it is not there; the name of its folder changes with the code that writes it."""
    root = cache_folder() / "tiny_world" / _version()
    if root.is_dir():
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    # Written aside and renamed: several ranks start at once, and a killed run leaves no half of it.
    partial = Path(tempfile.mkdtemp(prefix=f"{root.name}.", dir=root.parent))
    try:
        write_panel(partial)
        os.rename(partial, root)
    except OSError:
        if not root.is_dir():
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return root


def write_panel(root: Path, *, scenes: int = SCENES, seed: int = SEED) -> Path:
    """Write every layout under a root.

    Args:
        root: Becomes a valid ``FLMM_DATA``, and a working folder for the stock tasks ``mme`` and ``pope``.
        scenes: Pictures per split.
        seed: Scenes are a function of it.

    Returns:
        ``root``.
    """
    from flmm_plugin.tiny.layouts import write_mme, write_refer
    from flmm_plugin.tiny.layouts_gcg import write_grandf, write_reasonseg
    from flmm_plugin.tiny.layouts_png import write_png
    from flmm_plugin.tiny.layouts_pope import write_pope
    from flmm_plugin.tiny.layouts_viscot import write_viscot

    write_refer(root, scenes=scenes, seed=seed, names=("refcoco",))
    write_png(root, scenes=scenes, seed=seed)
    write_grandf(root, scenes=scenes, seed=seed, splits=("val",))
    write_reasonseg(root, scenes=scenes, seed=seed, splits=("test",))
    write_viscot(root, scenes=scenes, seed=seed, names=(VISCOT_SET,))
    write_pope(root, scenes=scenes, seed=seed)
    write_mme(root, scenes=scenes, seed=seed)
    return root


def _version() -> str:
    """Hash of the code that writes the panel."""
    here = Path(__file__).parent
    return hashlib.sha256(b"".join((here / f"{name}.py").read_bytes() for name in _WRITERS)).hexdigest()[:12]
