"""Find models and data that installed packages bring along, by the names in their entry points.

A package ships a model with an entry point of the group `MODELS`, whose value is a `BundledModel`, and data with one of
the group `DATA_ROOTS`, whose value is a function that returns a folder in the benchmarks' layouts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flmm_plugin.errors import DataNotFound

if TYPE_CHECKING:
    from PIL import Image

MODELS = "flmm_plugin.models"
DATA_ROOTS = "flmm_plugin.data_roots"

#: The model that this package ships, and the default wherever a model can be named.
EMBEDDED = "flmm_tiny"

#: Data of synthetic scenes that this package ships: one layout per benchmark; splits to train on; scenes that no
#: training sees; lmms-eval's MME alone; the tables of VLMEvalKit.
SCENES_ROOT = "flmm_tiny_world"
TRAIN_ROOT = "flmm_tiny_train"
HELD_OUT_ROOT = "flmm_tiny_held_out"
MME_ROOT = "flmm_tiny_mme"
KIT_ROOT = "flmm_tiny_vlmevalkit"

_OWN = {MODELS: (EMBEDDED,), DATA_ROOTS: (SCENES_ROOT, TRAIN_ROOT, HELD_OUT_ROOT, MME_ROOT, KIT_ROOT)}


@dataclass(frozen=True)
class BundledModel:
    """Files of a model that a package ships; each function raises `DataNotFound` where its file is not there.

    Attributes:
        checkpoint: Returns the folder of the transformers checkpoint.
        heads: Returns the file of its grounding heads.
        sam: Returns the file of the SAM that its heads are trained from.
        examples: Returns pictures to try it on, RGB, each with questions about it; none by default.
    """

    checkpoint: Callable[[], Path]
    heads: Callable[[], Path]
    sam: Callable[[], Path]
    examples: Callable[[], list[tuple[Image.Image, tuple[str, ...]]]] = list


def is_model(name: str) -> bool:
    """Return whether a name, such as a value of ``pretrained=``, means a model that a package ships."""
    return _is_known(MODELS, name)


def model(name: str) -> BundledModel:
    """Return the files of a model that a package ships.

    Raises:
        DataNotFound: No installed package ships it.
    """
    found: BundledModel = _load(MODELS, name)
    return found


def is_data_root(name: str) -> bool:
    """Return whether a value of ``root=`` means data that a package ships, rather than a folder."""
    return _is_known(DATA_ROOTS, name)


def data_root(name: str, **options: Any) -> Path:
    """Return the folder of data that a package ships.

    Args:
        name: Name of the entry point.
        **options: For the function behind it; those of this package take ``scenes`` (pictures per split).

    Raises:
        DataNotFound: No installed package ships it.
    """
    root: Path = _load(DATA_ROOTS, name)(**options)
    return root


def _is_known(group: str, name: str) -> bool:
    # A path or a name on the hub needs no look at the installed packages.
    return name in _OWN[group] or (name.isidentifier() and bool(metadata.entry_points(group=group, name=name)))


def _load(group: str, name: str) -> Any:
    for entry in metadata.entry_points(group=group, name=name):
        return entry.load()
    raise DataNotFound(
        f"no installed package has the entry point {name!r} in {group!r}; reinstall the one that brings it "
        "(in a checkout of flmm-plugin: pip install -e .)"
    )
