"""Data roots of synthetic scenes, one layout per benchmark, each written once into the cache."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from flmm_plugin.files import cache_folder
from flmm_plugin.tiny.layouts import write_refer
from flmm_plugin.tiny.layouts_gcg import write_grandf, write_reasonseg
from flmm_plugin.tiny.layouts_gref import write_gref
from flmm_plugin.tiny.layouts_png import write_png
from flmm_plugin.tiny.layouts_questions import write_mme, write_pope
from flmm_plugin.tiny.layouts_refcoco_m import write_refcoco_m
from flmm_plugin.tiny.layouts_viscot import write_viscot

#: Pictures per split; a panel of all tasks then runs in minutes on two cores.
SCENES = 20

#: Scenes of the panel are not those of training nor of the measures that ship with the package.
SEED = 7000

#: Scenes of `held_out_root`: enough narratives to see which of two recipes is better.
HELD_OUT_SCENES, HELD_OUT_SEED = 80, 60

#: Pictures per set of `train_root`, where a recipe does not say.
TRAIN_SCENES = 400

#: Streams of `train_root`: no measure of the package draws from them.
TRAIN_SEED = 40

#: Pictures per set that are held back for validation.
VALIDATION_SCENES = 25

#: The one set of the Visual-CoT benchmark that the panel has.
VISCOT_SET = "sroie"


@functools.cache
def panel_root() -> Path:
    """Return the data of all tasks ``flmm_tiny_*``, written where it is not there."""
    return written_once("", write_panel)


@functools.cache
def train_root(scenes: int = TRAIN_SCENES) -> Path:
    """Return a data root with ``scenes`` pictures to train on, and a few to validate on: RefCOCO, RefCOCO+ and PNG."""
    return written_once(f"train-{scenes}", lambda root: write_train(root, scenes=scenes))


@functools.cache
def held_out_root(scenes: int | None = None) -> Path:
    """Return a data root with narratives of PNG (``val``) that nothing is trained on, for ablations.

    Args:
        scenes: Plays no role: comparisons between recipes always use `HELD_OUT_SCENES` pictures.
    """
    return written_once("held-out", lambda root: write_png(root, scenes=HELD_OUT_SCENES, seed=HELD_OUT_SEED))


@functools.cache
def mme_root(scenes: int = SCENES, seed: int = SEED) -> Path:
    """Return a folder with the data of lmms-eval's task ``mme`` alone."""
    return written_once(f"mme-{scenes}-{seed}", lambda root: write_mme(root, scenes=scenes, seed=seed))


def write_train(root: Path, *, scenes: int, seed: int = TRAIN_SEED) -> Path:
    """Write the splits ``train`` (``scenes`` pictures) and ``val`` (`VALIDATION_SCENES`) of RefCOCO, RefCOCO+, PNG."""
    sizes = {"train": scenes, "val": VALIDATION_SCENES}
    write_refer(root, scenes=sizes, seed=seed, names=("refcoco", "refcoco+"))
    write_png(root, scenes=sizes, seed=seed, splits=("val", "train"))
    return root


def write_panel(root: Path, *, scenes: int = SCENES, seed: int = SEED) -> Path:
    """Write every layout under a root, which becomes a working folder for the stock tasks ``mme`` and ``pope`` too."""
    write_refer(root, scenes=scenes, seed=seed, names=("refcoco",))
    write_png(root, scenes=scenes, seed=seed)
    write_grandf(root, scenes=scenes, seed=seed, splits=("val",))
    write_reasonseg(root, scenes=scenes, seed=seed, splits=("test",))
    write_viscot(root, scenes=scenes, seed=seed, names=(VISCOT_SET,))
    write_pope(root, scenes=scenes, seed=seed)
    write_mme(root, scenes=scenes, seed=seed)
    write_gref(root, scenes=scenes, seed=seed)
    write_refcoco_m(root, scenes=scenes, seed=seed)
    return root


def written_once(name: str, write: Callable[[Path], object]) -> Path:
    """Return a folder of the cache, written where it is not there.

    Args:
        name: Name of the folder; the version of the code that writes all folders follows it.
        write: Function that fills the empty folder it is given.
    """
    root = cache_folder() / "tiny_world" / "-".join(filter(None, (name, _version())))
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


@functools.cache
def _version() -> str:
    """Return a hash of the code that writes: of the scenes, what is said about them and their layouts."""
    here = Path(__file__).parent
    sources = [here / "language.py", here / "panel.py", here / "scenes.py", *sorted(here.glob("layouts*.py"))]
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]
