"""Records of evaluation runs: which model ran which tasks, with what numbers, under which conditions.

What a result file does not say is never guessed: it is "" here and "not recorded" in a table.
"""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from flmm_plugin import files
from flmm_plugin.errors import DataNotFound
from flmm_plugin.reports.paper_numbers import LMM_NAMES, lmm_key

Harness = Literal["lmms-eval", "VLMEvalKit"]

#: Conditions that change scores of the same weights on the same questions; compared between measured rows.
SCORE_CONDITIONS = ("kernel", "dtype", "batch_size", "device")
#: Options that leave the answers alone, or are conditions of `Provenance`: no part of `Run.identity`.
NOT_IDENTITY = frozenset(
    {"batch_size", "max_batch_size", "device", "device_map", "pretrained", "dtype", "attn_implementation"}
)


@dataclass(frozen=True)
class Provenance:
    """Conditions of one number; every field is text as recorded, "" where the file does not say.

    Attributes:
        commit: Version and commit of flmm-plugin.
        kernel: Attention implementation of the LMM, e.g. ``sdpa``.
        batch_size: Number of requests per forward pass.
        processes: Number of ranks that shared the documents.
        preprocessing: What pictures went through before grounding, ``stock`` or ``paper``.
        n: Number of items scored, with the official number where it is known.
        heads: SHA-256 of the grounding heads' tensors.
        data: Hash of the annotations, or of the questions asked.
        judge: Name of the model that judged answers.
        file: Name of the result file.
    """

    commit: str = ""
    harness: str = ""
    torch: str = ""
    transformers: str = ""
    kernel: str = ""
    dtype: str = ""
    batch_size: str = ""
    device: str = ""
    processes: str = ""
    preprocessing: str = ""
    n: str = ""
    seed: str = ""
    heads: str = ""
    data: str = ""
    judge: str = ""
    date: str = ""
    file: str = ""

    def items(self) -> Iterator[tuple[str, str]]:
        """Return name and value of every field, in order."""
        yield from asdict(self).items()

    def as_line(self) -> str:
        """Return all that is recorded on one line; used as tooltip and in lists of runs."""
        return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in self.items() if value)

    def not_recorded(self) -> tuple[str, ...]:
        """Return those of `SCORE_CONDITIONS` that the file does not say."""
        return tuple(name for name in SCORE_CONDITIONS if not getattr(self, name))


def differing_conditions(first: Provenance, second: Provenance) -> tuple[str, ...]:
    """Name those of `SCORE_CONDITIONS` that both files record, with different values.

    >>> differing_conditions(Provenance(dtype="float32", kernel="sdpa"), Provenance(dtype="bfloat16"))
    ('dtype float32 and bfloat16',)
    """
    found = []
    for name in SCORE_CONDITIONS:
        one, other = getattr(first, name), getattr(second, name)
        if one and other and one != other:
            found.append(f"{name.replace('_', ' ')} {one} and {other}")
    return tuple(found)


@dataclass(frozen=True)
class TaskResult:
    """One task of a run.

    Attributes:
        task: Name of the task in the harness.
        metrics: Value by metric, as the harness wrote it.
        n: Documents (or items, where the task counts them) that were scored; None if the file does not say.
        official: The official number of them, None if unknown.
        complete: Whether the whole official split was scored; None if unknown.
        metadata: What the task's configuration says about itself.
        provenance: Conditions under which its numbers were measured.
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
        harness: Name of the harness that wrote it.
        model: The model's name in the harness.
        weights: Checkpoint: hub id, or folder, or the model's name where the run does not say.
        flmm: Whether the model is one of this plugin's (otherwise it is a stock adapter).
        options: Model arguments and, for this plugin's models, the recorded options.
        tasks: Results by name of the task.
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
        """Key of the paper's LMM that the weights are, "" for any other."""
        return lmm_key(self.weights, self.model)

    @property
    def embedded(self) -> bool:
        """Return whether it is the small LMM that comes with the package and knows synthetic images only."""
        return self.model == "flmm_tiny" or Path(self.weights).parts[-3:] == ("tiny", "weights", "lmm")

    @property
    def visual_cot(self) -> str:
        """Mode of the visual chain of thought that it answered with, "" for none."""
        mode = self.options.get("visual_cot", "")
        return "" if mode.lower() in ("", "none", "false", "off", "v3") else mode

    @property
    def label(self) -> str:
        """Name of the run in a table."""
        known = "embedded model" if self.embedded else LMM_NAMES.get(self.backbone, "")
        weights = known or short_name(self.weights) or self.model
        if self.flmm:
            return f"F-LMM ({weights})"
        return f"{self.model} ({weights})" if weights != self.model else weights

    @property
    def identity(self) -> tuple[str, ...]:
        """Key that is equal for runs of the same model, asked the same way: their tasks make one row."""
        # Heads are identified by their tensors, wherever the file lies.
        ignored = NOT_IDENTITY | ({"heads", "sam_checkpoint"} if "heads.sha256" in self.options else set())
        settings = ",".join(f"{name}={self.options[name]}" for name in sorted(self.options) if name not in ignored)
        return (self.harness, self.model, self.weights, settings)

    @property
    def pair(self) -> str:
        """Key that is equal for runs of the same weights."""
        return "embedded" if self.embedded else self.backbone or self.weights.rstrip("/").rpartition("/")[2].lower()


def short_name(weights: str) -> str:
    """Return the last part of a hub id or folder.

    >>> short_name("llava-hf/llava-1.5-7b-hf"), short_name("")
    ('llava-1.5-7b-hf', '')
    """
    return Path(weights).name if weights else ""


# --- reading -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def named(file: Path, what: str) -> Iterator[None]:
    """Name the damaged file where the block cannot make sense of it.

    Args:
        file: File that the block reads.
        what: Name of its kind, e.g. ``result file of lmms-eval``.

    Raises:
        DataNotFound: The block met a value that is missing, or of another kind or size than it must be.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, OSError, csv.Error) as exc:
        raise DataNotFound(
            f"{file} is no {what} ({type(exc).__name__}: {exc}); it may be cut off: run again, or leave it out"
        ) from exc


def sample_lines(path: Path) -> Iterator[Mapping[str, Any]]:
    """Read the lines of a log of samples.

    Raises:
        DataNotFound: A line is no JSON object, or the file cannot be read.
    """
    with named(path, "log of samples in UTF-8"), path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            sample = files.parse_json(line, f"{path}, line {number}", DataNotFound, "run again, or delete it")
            if not isinstance(sample, Mapping):
                raise DataNotFound(f"{path}, line {number} is no sample but {line[:40].strip()!r}; delete that line")
            yield sample


def text(record: Mapping[str, Any], *names: str) -> str:
    """Return the first of ``names`` that the record has, as text; "" if it has none of them or None."""
    for name in names:
        value = record.get(name)
        if value is not None and value != "":
            return str(value)
    return ""


def plugin_conditions(record: Mapping[str, Any]) -> dict[str, str]:
    """Return the fields of `Provenance` that this plugin's own record of a run says.

    Args:
        record: The record; empty for a stock adapter.
    """
    versions, heads = record.get("versions") or {}, record.get("heads") or {}
    commit, _, changed = text(record, "commit").partition("-")
    short_commit = commit[:12] + (f"-{changed}" if changed else "")
    return {
        "commit": " ".join(part for part in (text(versions, "flmm_plugin"), short_commit) if part),
        "torch": text(versions, "torch"),
        "transformers": text(versions, "transformers"),
        "kernel": text(record, "kernel"),
        "dtype": text(record, "dtype").removeprefix("torch."),
        "batch_size": text(record, "batch_size"),
        "device": text(record, "device"),
        "processes": text(record, "processes"),
        "preprocessing": text(record, "preprocessing"),
        "heads": text(heads, "sha256")[:16],
    }


def plugin_options(record: Mapping[str, Any]) -> dict[str, str]:
    """Return options and facts about heads of the plugin's record as text; the names of facts begin with ``heads.``."""
    found: dict[str, str] = {}
    for prefix, part in (("", record.get("options")), ("heads.", record.get("heads"))):
        if isinstance(part, Mapping):
            found |= {f"{prefix}{name}": str(value) for name, value in part.items() if value is not None}
    return found


def items_scored(n: int | None, official: int | None, complete: bool | None) -> str:
    """Say how many items were scored, and of how many; "" if unknown."""
    if n is None:
        return ""
    of = "" if official is None else f" of {official}"
    return f"{n}{of}{' (partial)' if complete is False else ''}"


def short_hash(digest: str) -> str:
    """Return the kind of a hash and the first 16 of its digits."""
    kind, colon, value = digest.partition(":")
    return f"{kind}:{value[:16]}" if colon else kind[:16]
