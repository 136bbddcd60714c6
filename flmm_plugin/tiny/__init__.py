"""The embedded default: a small LMM that really chats, its procedural world, and heads that ground it.

Nothing here imports torch until it is needed: a registry may ask for the paths at no cost.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from flmm_plugin.bundled import BundledModel
from flmm_plugin.errors import DataNotFound

if TYPE_CHECKING:
    from PIL import Image

_WEIGHTS = Path(__file__).parent / "weights"


def tiny_path() -> Path:
    """Folder of the embedded LMM: a plain transformers checkpoint with processor and chat template.

    Raises:
        DataNotFound: The weights are not in this installation.
    """
    return _present(_WEIGHTS / "lmm", "config.json")


def heads_path() -> Path:
    """File of the embedded grounding heads (safetensors with a manifest).

    Raises:
        DataNotFound: The weights are not in this installation.
    """
    return _present(_WEIGHTS / "heads.safetensors")


def sam_path() -> Path:
    """File of the embedded world's SAM as it is before heads are trained; ``python -m tools.tiny sam`` makes it."""
    return Path(__file__).parent / "sam.safetensors"


def _present(path: Path, inner: str = "") -> Path:
    if not (path / inner).exists():
        raise DataNotFound(
            f"{path / inner} is not there: this installation lacks the embedded weights; reinstall the package, or "
            "make them, in a checkout, with: python -m tools.tiny train --out DIR --install"
        )
    return path


def examples() -> list[tuple[Image.Image, tuple[str, ...]]]:
    """Scenes to try the model on, 448 x 448 pixels, each with questions of kinds that it knows."""
    import numpy as np
    from PIL import Image

    from flmm_plugin.tiny.language import DESCRIBE_PROMPT, question
    from flmm_plugin.tiny.scenes import render, sample_scene

    rng = np.random.default_rng(7)
    found = []
    for _ in range(6):
        scene = sample_scene(rng, min_things=3)
        asked = [question(scene, kind, rng).question for kind in ("color", "where", "count", "yes_no")]
        short = (one.partition("\n")[0] for one in asked)  # without the line that asks for a short answer
        found.append((Image.fromarray(render(scene, 448)), (DESCRIBE_PROMPT, *short)))
    return found


#: What the entry point ``flmm_tiny`` names.
MODEL = BundledModel(checkpoint=tiny_path, heads=heads_path, sam=sam_path, examples=examples)
