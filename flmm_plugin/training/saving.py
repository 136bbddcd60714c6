"""Write and load the checkpoints of a run, all of its processes together."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from flmm_plugin.errors import OutputFailed, TrainingStopped
from flmm_plugin.training.checkpoints import Checkpoints, load_process, save_process
from flmm_plugin.training.processes import Processes
from flmm_plugin.training.run_folder import RunFolder


class Saver:
    """Writes and finds the checkpoints of a run.

    Args:
        processes: The run's ranks; all of them save, and fail, together.
        folder: The run's folder, held by this run.
        checkpoints: The newest ``saving.keep`` checkpoints of that folder.
    """

    def __init__(self, processes: Processes, folder: RunFolder, checkpoints: Checkpoints) -> None:
        self.processes, self.folder, self.checkpoints = processes, folder, checkpoints

    def save(self, step: int, content: Mapping[str, Any]) -> None:
        """Write one checkpoint; where it cannot be written, the one before stays.

        Raises:
            TrainingStopped: It cannot be written, here or elsewhere.
        """
        checkpoints, processes = self.checkpoints, self.processes
        own = {**content, "processes": processes.count}

        def begin() -> None:
            self.folder.check()
            checkpoints.begin(step)

        def fill() -> None:
            processes.accelerator.save_state(str(checkpoints.part(step)))
            save_process(checkpoints.part(step), processes.index, own)

        processes.by_main(lambda: self.guarded(step, begin))
        processes.together(lambda: self.guarded(step, fill))
        processes.by_main(lambda: self.guarded(step, lambda: checkpoints.finish(step)))

    def guarded(self, step: int, write: Callable[[], Any]) -> None:
        """Write something of a step; where that fails, say from where the run goes on.

        Raises:
            TrainingStopped: It cannot be written.
        """
        try:
            write()
        # How a full disk is told depends on who writes.
        except (OSError, RuntimeError, SafetensorError, OutputFailed) as exc:
            self.checkpoints.give_up(step)
            newest = self.checkpoints.newest()
            kept = "nothing was saved before" if newest is None else f"{newest} is whole"
            raise TrainingStopped(
                f"the checkpoint of step {step} cannot be written ({exc}); {kept}: make room there, or mend what is "
                "said, and run the same line again, it goes on from there"
            ) from exc

    def restore(self) -> dict[str, Any] | None:
        """Load the newest whole checkpoint; one process looks for it, all take the same.

        Returns:
            What this process saved; None where there is none.

        Raises:
            BadCheckpoint: There are some, and none is whole.
        """
        found: list[Path | None] = []
        self.processes.by_main(
            lambda: found.append(self.checkpoints.newest_whole(lambda said: print(said, file=sys.stderr)))
        )
        newest = self.processes.shared(found[0] if self.processes.main else None)
        if newest is None:
            return None
        self.processes.accelerator.load_state(str(newest))
        return load_process(newest, self.processes.index, self.processes.count)
