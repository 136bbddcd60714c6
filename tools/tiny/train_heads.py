"""Train the embedded model's heads and their two controls by the recipe of ``flmm train flmm_tiny``."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from flmm_plugin import files
from flmm_plugin.tiny.untrained import write_untrained
from flmm_plugin.training.loop import train
from flmm_plugin.training.recipe import read_recipe

#: Heads files -> changes of the recipe. The first are the heads; the others are controls that must fail: heads on an
#: untrained LMM of the same shape, and a refiner that sees the image alone.
CONTROLS: Mapping[str, Sequence[str]] = {
    "heads": (),
    "control_random": (),
    "control_image_only": ("control=image_only", "optimiser.decoder_first=0"),
}


def train_heads(out: Path, checkpoint: Path, changes: Sequence[str] = ()) -> Path:
    """Train the heads and both controls; those that are in ``out`` already are kept.

    Args:
        out: Work folder, with ``sam.safetensors``; gets ``heads.safetensors`` and ``control_*.safetensors``.
        checkpoint: Folder of the LMM.
        changes: Keys of the recipe to change, ``key.sub=value`` each.

    Returns:
        The file of the heads.
    """
    for name, own in CONTROLS.items():
        path = out / f"{name}.safetensors"
        if path.exists():
            continue
        model = checkpoint
        if name == "control_random":
            model = write_untrained(files.make_folder(out / "untrained") / "flmm_tiny")
        places = (f"backbone.pretrained={model}", f"heads.refiner.checkpoint={out / 'sam.safetensors'}")
        recipe = read_recipe("flmm_tiny", [*places, f"cache.folder={out / 'features'}", *changes, *own])
        run = train(recipe, out / f"train_{name}")
        shutil.copy(run.heads, path)
    return out / "heads.safetensors"
