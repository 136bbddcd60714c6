"""The processes of a run, as accelerate distributes them: sums over all, and failing together.

A process that raises alone leaves the others waiting for its gradients until a timeout; so what may fail is done
collectively.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedType,
    InitProcessGroupKwargs,
    ProjectConfiguration,
    broadcast_object_list,
)
from torch import Tensor, nn

from flmm_plugin.errors import FlmmError, TrainingStopped
from flmm_plugin.training.recipe import TrainRecipe

Shared = TypeVar("Shared")


class Processes:
    """All processes of a run, seen from one of them.

    Args:
        recipe: Says the precision.
        trackers: Names for accelerate.
        out: The run's folder.

    Attributes:
        accelerator: accelerate's.
        count: How many there are.
        index: Of this one.
        main: Whether this one writes.
        device: Where the heads learn.
    """

    def __init__(self, recipe: TrainRecipe, trackers: Sequence[str], out: Path) -> None:
        self.accelerator: Any = Accelerator(
            # Without this word several processes without a GPU would not look for each other.
            cpu=not _has_accelerator(),
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
        """Whether every backward pass makes a step (DeepSpeed's engine does)."""
        return bool(self.accelerator.distributed_type == DistributedType.DEEPSPEED)

    def reduced(self, values: Tensor) -> Tensor:
        """The sum over all processes, on the CPU."""
        if self.count == 1:
            return values.cpu()
        return cast(Tensor, self.accelerator.reduce(values.to(self.device), reduction="sum")).cpu()

    def summed(self, values: Sequence[int]) -> list[int]:
        """`reduced` of whole numbers."""
        return [int(one) for one in self.reduced(torch.tensor(list(values), dtype=torch.int64)).tolist()]

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        """The whole state of a prepared module, on every process."""
        whole: dict[str, Tensor] = self.accelerator.get_state_dict(model)
        if self.accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
            whole = self.shared(whole)  # sharded modules give it to the main process alone
        return whole

    def shared(self, value: Shared) -> Shared:
        """Give every process the value of the main one."""
        if self.count == 1:
            return value
        values = [value if self.main else None]
        broadcast_object_list(values)
        return cast(Shared, values[0])

    def together(self, act: Callable[[], Any]) -> None:
        """Do something that may fail; where it fails on one process, it fails on all.

        Raises:
            FlmmError: It failed here; `TrainingStopped`: or elsewhere.
        """
        failed: FlmmError | None = None
        try:
            act()
        except FlmmError as exc:
            failed = exc
        if self.summed([int(failed is not None)])[0]:
            raise failed or TrainingStopped("another process had to stop; its own message says why")

    def by_main(self, act: Callable[[], Any]) -> None:
        """Do something on the main process alone; where it fails, all fail. Raises as `together`."""
        self.together(lambda: act() if self.main else None)


def _has_accelerator() -> bool:
    """Whether accelerate would find something better than a CPU."""
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        return True
    return any(getattr(torch, kind).is_available() for kind in ("xpu", "npu", "mlu", "hpu") if hasattr(torch, kind))
