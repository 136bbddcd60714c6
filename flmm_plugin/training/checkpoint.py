"""Write and load checkpoints: one folder each, complete or absent.

A checkpoint is written beside its place, flushed to the disk, and renamed; so whatever kills the process, or fills the
disk, a folder with a checkpoint's name is complete. A disk may damage it later: the hash of every file is kept with it,
and a run goes on from the newest checkpoint whose files still have their hashes. accelerate saves weights and
optimiser, because it knows how each way of distributing holds them; each process saves its counters and random states.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from flmm_plugin import files
from flmm_plugin.content_hashes import file_digest
from flmm_plugin.errors import BadCheckpoint, OutputFailed, TrainingStopped
from flmm_plugin.training.distributed import Processes
from flmm_plugin.training.run_folder import CHECKPOINTS, RunFolder

_NAME = re.compile(r"step_(\d{8})")
_PART = ".part"
_HASHES = "sha256.json"  # SHA-256 of every other file of a checkpoint, by its path in the folder


class Checkpoints:
    """The checkpoints of one run: a folder each in ``folder``, of which the newest ``keep`` stay."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint, in order."""
        if not self.folder.is_dir():
            return []
        found = (_NAME.fullmatch(path.name) for path in self.folder.iterdir())
        return sorted(int(match[1]) for match in found if match is not None)

    def newest(self) -> Path | None:
        """Return the newest checkpoint, None if there is none."""
        steps = self.steps()
        return self.at(steps[-1]) if steps else None

    def newest_whole(self, say: Callable[[str], None]) -> Path | None:
        """Find the newest checkpoint whose files have their hashes, None if there is no checkpoint at all.

        Damaged later ones are removed.

        Args:
            say: Gets a sentence for each that is damaged.

        Raises:
            BadCheckpoint: There are some, and all are damaged.
        """
        damaged: dict[Path, str] = {}
        for step in reversed(self.steps()):
            damage = _damage(self.at(step))
            if damage is None:
                for path, why in damaged.items():
                    say(f"the checkpoint {path} is damaged ({why}): it is removed, the run goes on from step {step}")
                    shutil.rmtree(path, ignore_errors=True)
                return self.at(step)
            damaged[self.at(step)] = damage
        if damaged:
            all_damage = "; ".join(f"{path.name}: {why}" for path, why in damaged.items())
            raise BadCheckpoint(
                f"no checkpoint in {self.folder} is whole ({all_damage}); bring one back, or give --restart to begin "
                "anew"
            )
        return None

    def at(self, step: int) -> Path:
        """Return the folder of a step's checkpoint."""
        return self.folder / f"step_{step:08d}"

    def part(self, step: int) -> Path:
        """Return the folder of a checkpoint that is being written."""
        return self.folder / f"{self.at(step).name}{_PART}"

    def begin(self, step: int) -> Path:
        """Make an empty folder to write the checkpoint of a step into."""
        part = self.part(step)
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        return part

    def finish(self, step: int) -> Path:
        """Give the folder of `begin` its name, and remove the oldest checkpoints."""
        part, final = self.part(step), self.at(step)
        files.write(part / _HASHES, json.dumps(_hashes(part), indent=1))
        for path in (*_files_of(part), part):
            files.flush(path)
        if final.exists():  # a run that was told to go on from an earlier step comes by again
            shutil.rmtree(final)
        os.rename(part, final)
        files.flush(self.folder)
        for step_before in self.steps()[: -self.keep]:
            shutil.rmtree(self.at(step_before), ignore_errors=True)
        return final

    def sweep(self) -> None:
        """Remove what a killed process left half written; the caller holds the lock of the run's folder."""
        for part in self.folder.glob(f"*{_PART}"):
            shutil.rmtree(part, ignore_errors=True)

    def give_up(self, step: int) -> None:
        """Remove what `begin` made: on a full disk, its space may let others finish."""
        shutil.rmtree(self.part(step), ignore_errors=True)


class Saver:
    """Saves and loads the checkpoints of a run; all processes save, and fail, together."""

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
        # torch, safetensors and the operating system raise different errors on a full disk.
        except (OSError, RuntimeError, SafetensorError, OutputFailed) as exc:
            self.checkpoints.give_up(step)
            newest = self.checkpoints.newest()
            kept = "nothing was saved before" if newest is None else f"{newest} is whole"
            raise TrainingStopped(
                f"the checkpoint of step {step} cannot be written ({exc}); {kept}: make room there, or mend what is "
                "said, and run the same line again, it goes on from there"
            ) from exc

    def restore(self) -> dict[str, Any] | None:
        """Load the newest undamaged checkpoint; the main process looks for it, all take the same.

        Returns:
            What this process saved; None where there is none.

        Raises:
            BadCheckpoint: There are some, and all are damaged.
        """
        found = self.processes.by_main(lambda: self.checkpoints.newest_whole(lambda text: print(text, file=sys.stderr)))
        newest = self.processes.shared(found)
        if newest is None:
            return None
        self.processes.accelerator.load_state(str(newest))
        return load_process(newest, self.processes.index, self.processes.count)


def saved_in(run: Path) -> str:
    """Say in half a sentence which checkpoint the folder of a run holds."""
    newest = Checkpoints(run / CHECKPOINTS, keep=1).newest()
    return f"no step is saved in {run} yet" if newest is None else f"{newest} is saved"


def random_states() -> dict[str, Any]:
    """Return the states of every random generator of this process, as plain data and tensors."""
    kind, keys, place, has_gauss, gauss = np.random.get_state(legacy=True)
    version, numbers, gauss_next = random.getstate()
    return {
        "python": [version, list(numbers), gauss_next],
        "numpy": [str(kind), torch.from_numpy(np.asarray(keys).astype(np.int64)), place, has_gauss, gauss],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_states(states: Mapping[str, Any]) -> None:
    """Set the states that `random_states` returned."""
    version, numbers, gauss_next = states["python"]
    random.setstate((version, tuple(numbers), gauss_next))
    kind, keys, place, has_gauss, gauss = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), place, has_gauss, gauss))
    torch.set_rng_state(states["torch"])
    if states["cuda"] and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])


def save_process(folder: Path, process: int, content: Mapping[str, Any]) -> None:
    """Write the counters of one process, and its random states."""
    torch.save({**content, "random": random_states()}, folder / f"process_{process}.pt")


def load_process(folder: Path, process: int, processes: int) -> dict[str, Any]:
    """Read what `save_process` wrote, and set the random states.

    A run may go on with another number of processes: weights and order of the data are the same then, and a process
    without a file of its own takes that of the first.

    Raises:
        BadCheckpoint: The file is missing or damaged.
    """
    path = folder / f"process_{process}.pt"
    if not path.exists():
        path = folder / "process_0.pt"
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if content["processes"] == processes:
            set_random_states(content["random"])
    except (OSError, RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as exc:
        raise BadCheckpoint(
            f"{path} cannot be read ({exc}); remove the folder {folder}, the run then goes on from the one before"
        ) from exc
    return content


def _files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of a checkpoint, by its path in it."""
    paths = (path for path in _files_of(folder) if path != folder / _HASHES)
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in paths}


def _damage(folder: Path) -> str | None:
    """Say what is wrong with a checkpoint, None if nothing is."""
    try:
        wanted = files.read_json(folder / _HASHES, BadCheckpoint)
        there = _hashes(folder)
    except (BadCheckpoint, OSError) as exc:
        return str(exc)
    if not isinstance(wanted, dict):
        return f"{_HASHES} holds no hashes"
    missing = [f"{name} is missing" for name in sorted(wanted.keys() - there.keys())]
    common = sorted(wanted.keys() & there.keys())
    changed = [f"{name} is not what it was" for name in common if wanted[name] != there[name]]
    return ", ".join([*missing, *changed]) or None
