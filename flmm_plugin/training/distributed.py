"""Distribute a run over processes with accelerate: sums over all, failing together, and trackers.

A process that raises alone leaves the others waiting for its gradients until a timeout; so what may fail is done
collectively.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import (
    DistributedType,
    InitProcessGroupKwargs,
    ProjectConfiguration,
    broadcast_object_list,
)
from torch import Tensor, nn

from flmm_plugin.errors import FlmmError, TrainingStopped, UnknownArgument
from flmm_plugin.training.recipe import TrainRecipe
from flmm_plugin.typed_fields import nearest

Result = TypeVar("Result")

AUTO = "auto"


class Processes:
    """All processes of a run, seen from one of them, which has the number ``index`` of ``count``.

    ``main`` is true in the one process that writes files; the heads learn on ``device``.
    """

    def __init__(self, recipe: TrainRecipe, trackers: Sequence[str], out: Path) -> None:
        self.accelerator: Any = Accelerator(
            cpu=not _has_accelerator(),  # needed for DDP on CPUs
            mixed_precision="no" if recipe.precision == "fp32" else recipe.precision,
            log_with=list(trackers) or None,
            project_config=ProjectConfiguration(project_dir=str(out), logging_dir=str(out / "trackers")),
            # One process may compute features for long while the others wait for its gradients.
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=2))],
        )
        self.count = int(self.accelerator.num_processes)
        self.index = int(self.accelerator.process_index)
        self.main = bool(self.accelerator.is_main_process)
        self.device: torch.device = self.accelerator.device

    @property
    def one_call_per_step(self) -> bool:
        """True if every backward pass makes a step (DeepSpeed's engine does)."""
        return bool(self.accelerator.distributed_type == DistributedType.DEEPSPEED)

    def reduced(self, values: Tensor) -> Tensor:
        """Return the sum over all processes, on the CPU."""
        if self.count == 1:
            return values.cpu()
        return cast(Tensor, self.accelerator.reduce(values.to(self.device), reduction="sum")).cpu()

    def summed(self, values: Sequence[int]) -> list[int]:
        """Return the sums of integers over all processes."""
        return [int(one) for one in self.reduced(torch.tensor(list(values), dtype=torch.int64)).tolist()]

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the whole state of a prepared module, on every process."""
        state: dict[str, Tensor] = self.accelerator.get_state_dict(model)
        if self.accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
            state = self.shared(state)  # sharded modules give it to the main process alone
        return state

    def shared(self, value: Result) -> Result:
        """Give every process the value of the main one."""
        if self.count == 1:
            return value
        values = [value if self.main else None]
        broadcast_object_list(values)
        return cast(Result, values[0])

    def together(self, act: Callable[[], Result]) -> Result:
        """Return what ``act`` returns here; where it fails on one process, it fails on all.

        Raises:
            FlmmError: It failed here; `TrainingStopped`: or elsewhere.
        """
        failed: FlmmError | None = None
        result: Result | None = None
        try:
            result = act()
        except FlmmError as exc:
            failed = exc
        if self.summed([int(failed is not None)])[0]:
            raise failed or TrainingStopped("another process had to stop; its own message says why")
        return cast(Result, result)

    def by_main(self, act: Callable[[], Result]) -> Result | None:
        """Return what ``act`` returns on the main process, None elsewhere; raises as `together`."""
        return self.together(lambda: act() if self.main else None)


def _has_accelerator() -> bool:
    """Return whether accelerate would find something better than a CPU."""
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        return True
    return any(getattr(torch, kind).is_available() for kind in ("xpu", "npu", "mlu", "hpu") if hasattr(torch, kind))


def chosen_trackers(names: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """Return the trackers to use, and advice for the user (or ""). ``auto`` is TensorBoard where it is installed.

    Raises:
        UnknownArgument: An unknown name, or a tracker that was asked for by name and is not installed.
    """
    found: list[str] = []
    advice = ""
    for name in names:
        if name == AUTO and _installed("tensorboard"):
            found.append("tensorboard")
        elif name == AUTO:
            advice = (
                "no TensorBoard here, so progress goes to log.jsonl alone; `pip install tensorboard`, or name "
                "another tracker: trackers=[wandb]"
            )
        elif name not in LOGGER_TYPE_TO_CLASS:
            raise UnknownArgument(f"trackers: no tracker {name!r}; {nearest(name, (*LOGGER_TYPE_TO_CLASS, AUTO))}")
        elif not _installed(name):
            raise UnknownArgument(f"trackers: {name} is not installed; pip install {name}, or leave it out")
        else:
            found.append(name)
    return tuple(dict.fromkeys(found)), advice


def _installed(name: str) -> bool:
    return any(str(one) == name for one in get_available_trackers())


def flat(content: Mapping[str, Any], above: str = "") -> dict[str, int | float | str | bool]:
    """Flatten a recipe to what trackers take: one level, plain values.

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
