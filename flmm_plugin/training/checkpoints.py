"""Where a killed run goes on: one folder per checkpoint, there as a whole or not at all.

A checkpoint is written beside its place, made durable, and renamed; so whatever kills the process, or fills the disk,
the newest folder with a checkpoint's name is a whole one. A disk may damage it later: the hash of every file is kept
with it, and a run goes on from the newest checkpoint whose files are what they were. Weights and optimiser are saved by
accelerate, which knows how each way of distributing holds them; counters and random states beside them, one file per
process.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flmm_plugin import files
from flmm_plugin.contents import file_digest
from flmm_plugin.errors import BadCheckpoint

FOLDER = "checkpoints"  # of a run's folder
_NAME = re.compile(r"step_(\d{8})")
_PART = ".part"
_HASHES = "sha256.json"  # SHA-256 of every other file of a checkpoint, by its path in the folder


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: Theirs; made when the first is saved.
        keep: How many of the newest stay.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, in order."""
        if not self.folder.is_dir():
            return []
        found = (_NAME.fullmatch(path.name) for path in self.folder.iterdir())
        return sorted(int(match[1]) for match in found if match is not None)

    def newest(self) -> Path | None:
        """The last one, None if there is none."""
        steps = self.steps()
        return self.at(steps[-1]) if steps else None

    def newest_whole(self, told: Callable[[str], None]) -> Path | None:
        """Find the last one whose files are what they were, None if there is no checkpoint; remove damaged later ones.

        Args:
            told: Gets a sentence for each that is damaged.

        Raises:
            BadCheckpoint: There are some, and all are damaged.
        """
        damaged: dict[Path, str] = {}
        for step in reversed(self.steps()):
            trouble = _damage(self.at(step))
            if trouble is None:
                for path, why in damaged.items():
                    told(f"the checkpoint {path} is damaged ({why}): it is removed, the run goes on from step {step}")
                    shutil.rmtree(path, ignore_errors=True)
                return self.at(step)
            damaged[self.at(step)] = trouble
        if damaged:
            said = "; ".join(f"{path.name}: {why}" for path, why in damaged.items())
            raise BadCheckpoint(
                f"no checkpoint in {self.folder} is whole ({said}); bring one back, or give --restart to begin anew"
            )
        return None

    def at(self, step: int) -> Path:
        """Folder of a step's checkpoint."""
        return self.folder / f"step_{step:08d}"

    def part(self, step: int) -> Path:
        """Folder of a checkpoint that is being written."""
        return self.folder / f"{self.at(step).name}{_PART}"

    def begin(self, step: int) -> Path:
        """An empty folder to write the checkpoint of a step into; remains of an attempt that was killed go."""
        part = self.part(step)
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        return part

    def finish(self, step: int) -> Path:
        """Give the folder of `begin` its name; then the oldest ones go."""
        part, whole = self.part(step), self.at(step)
        files.write(part / _HASHES, json.dumps(_hashes(part), indent=1))
        for path in (*_files_of(part), part):
            files.flush(path)
        if whole.exists():  # a run that was told to go on from an earlier step comes by again
            shutil.rmtree(whole)
        os.rename(part, whole)
        files.flush(self.folder)
        for step_before in self.steps()[: -self.keep]:
            shutil.rmtree(self.at(step_before), ignore_errors=True)
        return whole

    def sweep(self) -> None:
        """Remove what a killed process left half written; the caller holds the lock of the run's folder."""
        for part in self.folder.glob(f"*{_PART}"):
            shutil.rmtree(part, ignore_errors=True)

    def give_up(self, step: int) -> None:
        """Remove what `begin` made: the disk is full, and its space may let others finish."""
        shutil.rmtree(self.part(step), ignore_errors=True)


def saved_in(run: Path) -> str:
    """Say in half a sentence which checkpoint the folder of a run holds."""
    newest = Checkpoints(run / FOLDER, keep=1).newest()
    return f"no step is saved in {run} yet" if newest is None else f"{newest} is saved"


def random_states() -> dict[str, Any]:
    """States of every random generator of this process, as plain data and tensors."""
    kind, keys, place, has_gauss, gauss = np.random.get_state(legacy=True)
    version, numbers, gauss_next = random.getstate()
    return {
        "python": [version, list(numbers), gauss_next],
        "numpy": [str(kind), torch.from_numpy(np.asarray(keys).astype(np.int64)), place, has_gauss, gauss],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_states(states: Mapping[str, Any]) -> None:
    """What `random_states` gave."""
    version, numbers, gauss_next = states["python"]
    random.setstate((version, tuple(numbers), gauss_next))
    kind, keys, place, has_gauss, gauss = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), place, has_gauss, gauss))
    torch.set_rng_state(states["torch"])
    if states["cuda"] and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])


def save_process(folder: Path, process: int, content: Mapping[str, Any]) -> None:
    """Write what one process remembers of its own, random states included."""
    torch.save({**content, "random": random_states()}, folder / f"process_{process}.pt")


def load_process(folder: Path, process: int, processes: int) -> dict[str, Any]:
    """Read it, and set the random states.

    A run may go on with another number of processes: weights and order of the data are the same then, what a process
    remembers is taken from the first.

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
    """SHA-256 of the files of a checkpoint, by their path in it."""
    found: dict[str, str] = {}
    for path in _files_of(folder):
        if path != folder / _HASHES:
            found[path.relative_to(folder).as_posix()] = file_digest(path)
    return found


def _damage(folder: Path) -> str | None:
    """Say what is wrong with a checkpoint, None if it is whole."""
    try:
        wanted = files.read_json(folder / _HASHES, BadCheckpoint)
        there = _hashes(folder)
    except (BadCheckpoint, OSError) as exc:
        return str(exc)
    if not isinstance(wanted, dict):
        return f"{_HASHES} holds no hashes"
    missing = sorted(wanted.keys() - there.keys())
    changed = sorted(name for name in wanted.keys() & there.keys() if wanted[name] != there[name])
    if not missing and not changed:
        return None
    return ", ".join([*(f"{name} is missing" for name in missing), *(f"{name} is not what it was" for name in changed)])
