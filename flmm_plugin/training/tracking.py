"""Where a run reports to: a log of JSON lines always, and trackers by name, through accelerate.

``auto`` is TensorBoard where it is installed, and one line that says so where it is not.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

from flmm_plugin.errors import UnknownArgument
from flmm_plugin.strict import nearest

AUTO = "auto"

# Name of a tracker, as accelerate has it -> a module that its package brings, any of them.
MODULES: Mapping[str, tuple[str, ...]] = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "wandb": ("wandb",),
    "comet_ml": ("comet_ml",),
    "aim": ("aim",),
    "mlflow": ("mlflow",),
    "clearml": ("clearml",),
    "dvclive": ("dvclive",),
    "swanlab": ("swanlab",),
    "trackio": ("trackio",),
}


def chosen_trackers(names: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """Trackers to use, and a line to tell the user, or "".

    Raises:
        UnknownArgument: An unknown name, or a tracker that was asked for by name and is not installed.
    """
    found: list[str] = []
    said = ""
    for name in names:
        if name == AUTO:
            if _installed("tensorboard"):
                found.append("tensorboard")
            else:
                said = (
                    "no TensorBoard here, so progress goes to log.jsonl alone; `pip install tensorboard`, or name "
                    "another tracker: trackers=[wandb]"
                )
            continue
        if name not in MODULES:
            raise UnknownArgument(f"trackers: no tracker {name!r}; {nearest(name, (*MODULES, AUTO))}")
        if not _installed(name):
            raise UnknownArgument(f"trackers: {name} is not installed; pip install {MODULES[name][0]}, or leave it out")
        found.append(name)
    return tuple(dict.fromkeys(found)), said


def _installed(name: str) -> bool:
    return any(importlib.util.find_spec(module) is not None for module in MODULES[name])


def flat(content: Mapping[str, Any], above: str = "") -> dict[str, int | float | str | bool]:
    """A recipe as trackers take it: one level, plain values.

    >>> flat({"a": {"b": 1, "c": None}, "d": [1, 2]})
    {'a.b': 1, 'a.c': 'None', 'd': '[1, 2]'}
    """
    found: dict[str, int | float | str | bool] = {}
    for key, value in content.items():
        name = f"{above}{key}"
        if isinstance(value, Mapping):
            found.update(flat(value, f"{name}."))
        else:
            found[name] = value if isinstance(value, int | float | str | bool) else str(value)
    return found
