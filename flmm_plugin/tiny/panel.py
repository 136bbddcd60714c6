"""The embedded world in every benchmark's layout, written once into the cache.

The panel is the data of the tasks ``flmm_tiny_*``; the training world is what ``flmm train flmm_tiny`` learns from.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from flmm_plugin.files import cache_folder

#: Pictures per split; a panel of all tasks then runs in minutes on two cores.
SCENES = 20

#: Scenes of the panel are not those of training nor of the measures that ship with the package.
SEED = 7000

#: Scenes of `held_out_root`: enough narratives to tell two recipes apart.
HELD_OUT_SCENES, HELD_OUT_SEED = 80, 60

#: Pictures per set of the training world, where a recipe does not say.
TRAIN_SCENES = 400

#: Streams of the training world: no measure of the package draws from them.
TRAIN_SEED = 40

#: Pictures per set that are held back for validation.
VALIDATION_SCENES = 25

#: The one set of the Visual-CoT benchmark that the panel has.
VISCOT_SET = "sroie"

_WRITERS = ("layouts", "layouts_gcg", "layouts_png", "layouts_pope", "layouts_viscot", "language", "panel", "scenes")


@functools.cache
def panel_root() -> Path:
    """The data root, written if it is not there; the name of its folder changes with the code that writes it."""
    return _written_once(cache_folder() / "tiny_world" / _version(), write_panel)


@functools.cache
def train_root(scenes: int = TRAIN_SCENES) -> Path:
    """A data root with ``scenes`` pictures of RefCOCO and as many of PNG to train on, and a few to validate on."""
    return _written_once(
        cache_folder() / "tiny_world" / f"train-{scenes}-{_version()}", lambda root: write_train(root, scenes=scenes)
    )


@functools.cache
def held_out_root(scenes: int | None = None) -> Path:
    """Return a data root with narratives of PNG (``val``) that nothing is trained on, for ablations.

    Args:
        scenes: Plays no role: comparisons between recipes always use `HELD_OUT_SCENES` pictures.
    """
    from flmm_plugin.tiny.layouts_png import write_png

    return _written_once(
        cache_folder() / "tiny_world" / f"held-out-{_version()}",
        lambda root: write_png(root, scenes=HELD_OUT_SCENES, seed=HELD_OUT_SEED),
    )


@functools.cache
def mme_root(scenes: int = SCENES, seed: int = SEED) -> Path:
    """Return a folder with the data of lmms-eval's task ``mme`` alone."""
    from flmm_plugin.tiny.layouts import write_mme

    return _written_once(
        cache_folder() / "tiny_world" / f"mme-{scenes}-{seed}-{_version()}",
        lambda root: write_mme(root, scenes=scenes, seed=seed),
    )


def write_train(root: Path, *, scenes: int, seed: int = TRAIN_SEED) -> Path:
    """Write the splits ``train`` (``scenes`` pictures) and ``val`` (`VALIDATION_SCENES`) of refcoco, refcoco+ and PNG.

    Returns:
        ``root``.
    """
    from flmm_plugin.tiny.layouts import write_refer
    from flmm_plugin.tiny.layouts_png import write_png

    sizes = {"train": scenes, "val": VALIDATION_SCENES}
    write_refer(root, scenes=sizes, seed=seed, names=("refcoco", "refcoco+"))
    write_png(root, scenes=sizes, seed=seed, splits=("val", "train"))
    return root


def _written_once(root: Path, write: Callable[[Path], object]) -> Path:
    """The folder, written if it is not there."""
    if root.is_dir():
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    # Written aside and renamed: several ranks start at once, and a killed run leaves no half of it.
    partial = Path(tempfile.mkdtemp(prefix=f"{root.name}.", dir=root.parent))
    try:
        write(partial)
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
