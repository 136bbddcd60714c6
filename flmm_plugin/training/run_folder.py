"""Keep the folder of a run: its files, the recipe it belongs to, and the record of what made the heads."""

from __future__ import annotations

import contextlib
import json
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

import flmm_plugin
from flmm_plugin import files, json_lines
from flmm_plugin.datasets.problems import Problem
from flmm_plugin.errors import OutputFailed, TrainingStopped, UnknownArgument
from flmm_plugin.heads.checkpoint import HEADS_NAME
from flmm_plugin.seal import FrozenSeal
from flmm_plugin.training.recipe import TrainRecipe
from flmm_plugin.yaml_text import read_yaml

if TYPE_CHECKING:
    from flmm_plugin.grounded_lmm import GroundedLMM
    from flmm_plugin.training.samples import TrainingSet

CHECKPOINTS = "checkpoints"

#: Keys that may differ when a run goes on: they decide nothing about the weights.
FREE = ("cache.folder", "cache.cap_gb", "validation", "saving", "trackers", "bad_samples", "max_bad_share")


class RunFolder:
    """Files of one run: the folder ``path``, which belongs to ``recipe``."""

    def __init__(self, path: Path, recipe: TrainRecipe) -> None:
        self.path, self.recipe = path, recipe
        self.heads = path / HEADS_NAME
        self.last = path / "last.safetensors"
        self.log = path / "log.jsonl"
        self.problems = path / "problems.jsonl"
        self.checkpoints = path / CHECKPOINTS
        self.features = path / "features"
        self.page = path / "validation.html"
        self._recipe = path / "recipe.yaml"
        self._record = path / "run.json"
        self._named: list[dict[str, Any]] | None = None
        self._held = contextlib.ExitStack()

    def open(self, *, restart: bool = False) -> None:
        """Make the folder, or check that it belongs to the same recipe, and lock it until `close`.

        Raises:
            OutputFailed: It cannot be written, or another process trains in it.
            TrainingStopped: It holds a run of another recipe, or a recipe that is damaged.
        """
        self._held.enter_context(files.held(self.path))
        if restart:
            shutil.rmtree(self.checkpoints, ignore_errors=True)
            for path in (self.heads, self.last, self.log, self.problems, self.page, self._recipe, self._record):
                path.unlink(missing_ok=True)
        if self._recipe.exists() and (found := differences(self._recipe_before(), self.recipe.to_dict())):
            raise TrainingStopped(
                f"{self.path} holds a run of another recipe ({'; '.join(found[:4])}); name another folder, or give "
                "--restart to begin anew"
            )
        files.write(self._recipe, yaml.safe_dump(self.recipe.to_dict(), sort_keys=False))

    def close(self) -> None:
        """Release the folder for other runs."""
        self._held.close()

    def check(self) -> None:
        """Check that the folder is still there: what is written into a new one would be half a run.

        Raises:
            OutputFailed: It is gone.
        """
        if not self._recipe.exists():
            raise OutputFailed(
                f"{self.path} is gone, or what was in it; put it back, or run the same line again to begin anew"
            )

    def go_on_after(self, step: int) -> None:
        """Cut from the log the lines of steps that will be done again, and incomplete lines."""
        if self.log.exists():
            kept = [row for row in json_lines.read(self.log) if isinstance(row, dict) and row.get("step", 0) <= step]
            files.write(self.log, (json.dumps(row) + "\n" for row in kept))

    def name_problem(self, problem: Problem, process: int = 0) -> None:
        """Append a problem to the list of the run, once."""
        line = {"kind": problem.kind, "where": problem.where, "dropped": problem.dropped, "process": process}
        if self._named is None:
            self._named = [row for row in json_lines.read(self.problems) if isinstance(row, dict)]
        if line not in self._named:
            self._named.append(line)
            json_lines.append(self.problems, line)

    def _recipe_before(self) -> Mapping[str, Any]:
        try:
            before = read_yaml(files.read_text(self._recipe, UnknownArgument), str(self._recipe))
        except UnknownArgument as exc:
            before, why = None, str(exc)
        else:
            why = f"{self._recipe} holds no recipe"
        if not isinstance(before, Mapping) or not before:
            raise TrainingStopped(
                f"{why}, so it is not known which run is in {self.path}: write its recipe back (the same line with "
                f"--print > {self._recipe}), or give --restart to begin anew"
            )
        return before

    def record(
        self,
        result: Mapping[str, Any],
        lmm: GroundedLMM,
        samples: TrainingSet,
        *,
        processes: int,
        seals: Sequence[FrozenSeal],
    ) -> None:
        """Write ``run.json``: result, recipe, data, model and versions."""
        import accelerate
        import torch
        import transformers

        content = {
            "result": {**result, "heads": self.heads.name, "last": self.last.name},
            "recipe": self.recipe.to_dict(),
            "data": {"samples": len(samples), "phrases": samples.phrases, "digests": samples.digests},
            "backbone": {
                **asdict(lmm.backbone.facts),
                "dtype": str(lmm.backbone.dtype),
                "preprocessing": lmm.backbone.preprocessing,
            },
            "frozen": [seal.digest for seal in seals],
            "versions": {
                "flmm_plugin": flmm_plugin.__version__,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "accelerate": accelerate.__version__,
                "python": platform.python_version(),
            },
            "machine": platform.machine(),
            "processes": processes,
        }
        files.write(self._record, json.dumps(content, indent=1))


def differences(before: Mapping[str, Any], now: Mapping[str, Any], above: str = "") -> list[str]:
    """List the keys in which two recipes differ, `FREE` ones apart, each as ``key: one, now other``.

    >>> differences({"seed": 0, "cache": {"cap_gb": 1}}, {"seed": 1, "cache": {"cap_gb": 2}})
    ['seed: 0, now 1']
    """
    found: list[str] = []
    for key in dict.fromkeys((*before, *now)):
        one, other = before.get(key), now.get(key)
        if f"{above}{key}" in FREE or one == other:
            continue
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            found += differences(one, other, f"{above}{key}.")
        else:
            found.append(f"{above}{key}: {one}, now {other}")
    return found
