"""Keep how long the stages of runs took on this machine, so that the next plan need not guess."""

from __future__ import annotations

import contextlib
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from flmm_plugin import files, json_lines
from flmm_plugin.content_hashes import versions
from flmm_plugin.devices import device_name
from flmm_plugin.errors import FlmmError

FILE = "measured.jsonl"


@dataclass(frozen=True)
class Measurement:
    """Duration of one stage of one run.

    Attributes:
        stage: Name of a task, or of a part of the training such as ``train: features``.
        model: Folder or hub id of the LMM.
        device: Name of the device, such as ``cuda (NVIDIA H100 80GB HBM3)``.
        dtype: Name of the weights' dtype, or ``4 bit`` and ``8 bit``.
        batch_size: Number of documents per forward pass, at least 1.
        documents: How many documents, or samples, were measured.
        seconds: How long they took together, > 0.
        parameters: Number of the LMM's weights, None where it is not known.
        versions: Versions of the packages that count.
    """

    stage: str
    model: str
    device: str
    dtype: str
    batch_size: int
    documents: int
    seconds: float
    parameters: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def per_document(self) -> float:
        """Seconds of one document."""
        return self.seconds / self.documents


@dataclass
class Lap:
    """Task of each document that one pass of a `Stopwatch` is about."""

    tasks: list[str]


class Stopwatch:
    """Sum of the seconds that documents took, by task.

    The first lap is left out where its task has others: the first pass through a model is slower than all later ones.
    """

    def __init__(self) -> None:
        self._laps: dict[str, list[tuple[int, float]]] = {}
        self._first: str | None = None

    @contextlib.contextmanager
    def lap(self, *tasks: str) -> Iterator[Lap]:
        """Time the block and share its seconds among the tasks of its documents; nothing is kept if it raises.

        Args:
            *tasks: Task of each document; the block may change them by the lap that it is given.
        """
        lap, began = Lap(list(tasks)), time.perf_counter()
        yield lap
        seconds = time.perf_counter() - began
        for task, count in Counter(lap.tasks).items():
            self._first = task if self._first is None else self._first
            self._laps.setdefault(task, []).append((count, seconds * count / len(lap.tasks)))

    def take(self) -> dict[str, tuple[int, float]]:
        """Return documents and seconds of each task, and begin anew."""
        laps, self._laps = self._laps, {}
        if self._first and len(laps.get(self._first, ())) > 1:
            del laps[self._first][0]
        self._first = "" if laps else None
        return {task: (sum(one for one, _ in those), sum(one for _, one in those)) for task, those in laps.items()}


def path() -> Path:
    """Return the file of all measurements of this machine."""
    return files.cache_folder() / FILE


def remember(*measured: Measurement) -> None:
    """Append measurements to the file; where it cannot be written, they are dropped: no run fails because of them."""
    good = [one for one in measured if _is_sound(one)]
    if good:
        with contextlib.suppress(FlmmError, OSError, TypeError, ValueError):
            json_lines.append(path(), *(asdict(one) for one in good))


def remember_model(
    watch: Stopwatch, backbone: Any, batch_size: int, tasks_of: Callable[[str], Sequence[str]] = lambda name: (name,)
) -> None:
    """Keep what a stopwatch has measured of a loaded LMM; the watch begins anew. Never raises.

    Args:
        watch: Stopwatch with seconds by stage.
        backbone: A loaded `flmm_plugin.backbones.base.Backbone`, whose name, dtype and device are recorded.
        batch_size: Number of documents per forward pass, at least 1.
        tasks_of: Gives the tasks that a stage's name stands for.
    """
    times = watch.take()
    with contextlib.suppress(Exception):  # a model that does not say what it is
        model = backbone.model
        bits = next((bits for bits in (4, 8) if getattr(model, f"is_loaded_in_{bits}bit", False)), None)
        common: dict[str, Any] = {
            "model": str(backbone.name),
            "device": str(device_name(backbone.device)),
            "dtype": str(backbone.dtype).removeprefix("torch.") if bits is None else f"{bits} bit",
            "batch_size": batch_size,
            "parameters": int(model.num_parameters()),
            "versions": versions(("flmm-plugin", "torch", "transformers")),
        }
        found = ((task, *times[name]) for name in times for task in tasks_of(name))
        remember(*(Measurement(task, documents=count, seconds=took, **common) for task, count, took in found))


def measurements() -> list[Measurement]:
    """Return all that can be read of the file, the oldest first; damaged lines are passed over."""
    found = []
    with contextlib.suppress(OSError):
        for record in json_lines.read(path()):
            with contextlib.suppress(TypeError):
                one = Measurement(**record)
                if _is_sound(one):
                    found.append(one)
    return found


def _is_sound(one: Measurement) -> bool:
    """Tell whether the values are of their types and above 0, which a file does not promise."""
    values: dict[str, Any] = asdict(one)
    texts = [values[name] for name in ("stage", "model", "device", "dtype")]
    counts = [values["batch_size"], values["documents"], values["parameters"] or 1]
    seconds = values["seconds"]
    if not isinstance(seconds, int | float) or not isinstance(values["versions"], dict):
        return False
    return (
        all(isinstance(text, str) and text for text in texts)
        and all(type(count) is int and count > 0 for count in counts)
        and math.isfinite(seconds)
        and seconds > 0
    )
