"""Result files of harnesses as records: which model ran which tasks, with what numbers, under which conditions.

`read_results` takes files or folders of lmms-eval (``*_results.json``) and of VLMEvalKit (``<model>_<data>_score.csv``
and the like). No harness is imported; a file that is none of these is named.
"""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from flmm_plugin import files
from flmm_plugin.errors import DataNotFound
from flmm_plugin.reports.backbone_names import PRINTED, backbone_key
from flmm_plugin.reports.provenance import Provenance

Harness = Literal["lmms-eval", "VLMEvalKit"]


@dataclass(frozen=True)
class TaskResult:
    """One task of a run.

    Attributes:
        task: Its name in the harness.
        metrics: Value by metric, as the harness wrote it.
        n: Documents (or items, where the task counts them) that were scored; None if the file does not say.
        official: The official number of them, None if unknown.
        complete: Whether the official split was scored whole; None if unknown.
        metadata: What the task's configuration says about itself.
        provenance: Conditions of its numbers.
        samples: The log of its samples, None if none was written.
    """

    task: str
    metrics: Mapping[str, float]
    n: int | None
    official: int | None
    complete: bool | None
    metadata: Mapping[str, Any]
    provenance: Provenance
    samples: Path | None = None


@dataclass(frozen=True)
class Run:
    """One run of one model.

    Attributes:
        path: Its result file (VLMEvalKit: its folder).
        harness: Who wrote it.
        model: The model's name in the harness.
        weights: Checkpoint: hub id, or folder, or the model's name where the run does not say.
        flmm: Whether the model is one of this plugin's (otherwise it is a stock adapter).
        options: Model arguments and, for this plugin's models, the recorded options.
        tasks: By name.
        date: Sortable text, "" if unknown.
    """

    path: Path
    harness: Harness
    model: str
    weights: str
    flmm: bool
    options: Mapping[str, str]
    tasks: Mapping[str, TaskResult] = field(default_factory=dict)
    date: str = ""

    @property
    def backbone(self) -> str:
        """Key of the paper's LMM that it is, "" for any other."""
        return backbone_key(self.weights, self.model)

    @property
    def embedded(self) -> bool:
        """Whether it is the small LMM that comes with the package, which knows synthetic pictures only."""
        return self.model == "flmm_tiny" or Path(self.weights).parts[-3:] == ("tiny", "weights", "lmm")

    @property
    def visual_cot(self) -> str:
        """Which visual chain of thought it answered with, "" for none."""
        said = self.options.get("visual_cot", "")
        return "" if said.lower() in ("", "none", "false", "off", "v3") else said

    @property
    def label(self) -> str:
        """How a table names it."""
        known = "embedded model" if self.embedded else PRINTED.get(self.backbone, "")
        weights = known or short_name(self.weights) or self.model
        return f"F-LMM ({weights})" if self.flmm else f"{self.model} ({weights})" if weights != self.model else weights

    @property
    def identity(self) -> tuple[str, ...]:
        """Runs that agree in this are the same model, asked the same way: their tasks make one row."""
        # Heads are known by their tensors, wherever the file lies.
        ignored = NOT_IDENTITY | ({"heads", "sam_checkpoint"} if "heads.sha256" in self.options else set())
        settings = ",".join(f"{name}={self.options[name]}" for name in sorted(self.options) if name not in ignored)
        return (self.harness, self.model, self.weights, settings)


#: Options that leave the answers alone, or are conditions that `Provenance` compares: no part of `Run.identity`.
NOT_IDENTITY = frozenset(
    {"batch_size", "max_batch_size", "device", "device_map", "pretrained", "dtype", "attn_implementation"}
)


@contextlib.contextmanager
def named(file: Path, what: str) -> Iterator[None]:
    """Say which file is damaged where the block cannot make sense of it.

    Args:
        file: File that the block reads.
        what: Name of its kind, e.g. ``result file of lmms-eval``.

    Raises:
        DataNotFound: The block ran into something that is missing, or of another kind or size than it must be.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, OSError, csv.Error) as exc:
        raise DataNotFound(
            f"{file} is no {what} ({type(exc).__name__}: {exc}); it may be cut off: run again, or leave it out"
        ) from exc


def sample_lines(path: Path) -> Iterator[Mapping[str, Any]]:
    """The lines of a log of samples.

    Raises:
        DataNotFound: One of them is no JSON object, or the file cannot be read.
    """
    with named(path, "log of samples in UTF-8"), path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            sample = files.parse_json(line, f"{path}, line {number}", DataNotFound, "run again, or delete it")
            if not isinstance(sample, Mapping):
                raise DataNotFound(f"{path}, line {number} is no sample but {line[:40].strip()!r}; delete that line")
            yield sample


def read_results(paths: Iterable[str | Path]) -> list[Run]:
    """Every run under the given files and folders, oldest first.

    Raises:
        DataNotFound: A path does not exist or holds no result file.
    """
    from flmm_plugin.reports import lmms_eval_files, vlmevalkit_files

    runs: list[Run] = []
    for given in paths:
        path = Path(given)
        if not path.exists():
            raise DataNotFound(f"there is no {path}; give the --output_path of an lmms_eval run, or one of its files")
        found = [*lmms_eval_files.read(path), *vlmevalkit_files.read(path)]
        if not found:
            raise DataNotFound(
                f"{path} holds no result file: lmms-eval writes *_results.json with --output_path, "
                "VLMEvalKit <model>_<data>_score.csv (or _acc.csv, .json) into its work folder"
            )
        runs.extend(found)
    unique = {run.path.resolve(): run for run in runs}
    return sorted(unique.values(), key=lambda run: (run.date, str(run.path)))


def short_name(weights: str) -> str:
    """The last part of a hub id or folder.

    >>> short_name("llava-hf/llava-1.5-7b-hf"), short_name("")
    ('llava-1.5-7b-hf', '')
    """
    return Path(weights).name if weights else ""
