"""Specify a run of a proof, name it by all that goes into it, and keep it on disk; no torch, no harness.

A folder holds a run: ``answers.jsonl`` while it runs, ``arm.json`` (and ``logits.pt``) when it is done.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from flmm_plugin import files, json_lines
from flmm_plugin.adapters.preservation.verdict import Answer, RunRecord
from flmm_plugin.bundled import EMBEDDED
from flmm_plugin.errors import FlmmError

#: Name of a stock model that is no adapter of a harness.
PLAIN_TRANSFORMERS = "plain transformers"


@dataclass(frozen=True)
class Harness:
    """Facts about a harness that a proof needs.

    Attributes:
        distribution: Name under which it is installed.
        unit: Word for what ``--limit`` counts.
        takes_settings: True if its stock models can be loaded with the settings of the F-LMM run.
    """

    distribution: str
    unit: str
    takes_settings: bool


#: Harnesses by their name for ``--harness``.
HARNESSES = {
    "lmms_eval": Harness("lmms-eval", "documents of each task", takes_settings=True),
    "vlmevalkit": Harness("ms-vlmeval", "rows of each data set", takes_settings=False),
}


class StockUnusable(FlmmError):
    """The harness's adapter of the stock model cannot be loaded or cannot answer here."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a proof that reach the runs.

    Attributes:
        model: Name of the F-LMM model, as for the harness's ``--model``.
        tasks: Names of tasks and groups of lmms-eval, or of data sets of VLMEvalKit.
        harness: One of `HARNESSES`: whose questions and scoring are used.
        model_args: Arguments of the F-LMM model; a stock run gets those that say which LMM it is and how it computes.
        stock: ``auto``, ``plain`` (transformers alone) or a name of the harness's; empty in the F-LMM run.
        stock_args: Arguments of the stock run alone; a setting among them makes the verdict a measured one.
        limit: Documents per task, below 1 a share of them; None: all.
        batch_size: Requests per forward pass of the F-LMM run. The stock run asks one by one, as stock adapters do.
        device: Where to run, unless the arguments say so.
        ground_every: Grounding requests come after every so many batches of questions; 0: never.
        force_simple, include_path: As for lmms-eval.
        seed: Seed of sampled answers: set before every batch, from this and the batch's number.
        plant: Name of a fault to plant in the F-LMM run, or empty.
    """

    model: str
    tasks: tuple[str, ...]
    harness: str = "lmms_eval"
    model_args: Mapping[str, Any] = field(default_factory=dict)
    stock: str = ""
    stock_args: Mapping[str, Any] = field(default_factory=dict)
    limit: float | None = None
    batch_size: int = 1
    device: str = "cpu"
    ground_every: int = 1
    force_simple: bool = False
    include_path: str | None = None
    seed: int = 0
    plant: str = ""


@dataclass(frozen=True, kw_only=True)
class RunSpec(Settings):
    """Specification of one run, as it is handed to its process.

    Attributes:
        role: Name of the run, as in `RunRecord`.
        judge: File of judge answers that the runs share.
        work: Working directory, where the harness looks for data.
    """

    role: str
    judge: str = "judge.jsonl"
    work: str = "."

    @classmethod
    def read(cls, path: Path) -> RunSpec:
        """Read the fields from a JSON file."""
        content = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**content, "tasks": tuple(content["tasks"])})


def run_key(spec: RunSpec, times: int) -> str:
    """Name a run by all that goes into it.

    That is its arguments, the content of the files that they name (a model on the hub counts by its name), the versions
    of the libraries and, for the F-LMM run, this package's code: a run of older code proves nothing about this one.

    Args:
        spec: Specification of the run to name.
        times: How often it ran before; 1 for a second run of the stock model.

    Returns:
        12 hexadecimal digits.
    """
    from flmm_plugin.adapters.answering.identity import code_digest, digest_of
    from flmm_plugin.content_hashes import argument_digests

    arguments = {**dataclasses.asdict(spec), "times": times, "judge": "", "role": ""}
    given = {"pretrained": spec.model, **spec.model_args}
    local = {name: value for name, value in given.items() if value == EMBEDDED or Path(str(value)).exists()}
    code = "" if spec.stock else code_digest(())
    versions = versions_of("torch", "transformers", "xxhash", HARNESSES[spec.harness].distribution)
    return digest_of([arguments, versions, code, argument_digests(local)])[:12]


def read_answers(path: Path) -> Iterator[Answer]:
    """Read a run's answers; a last line that was cut off by a kill is left out."""
    return map(Answer.from_json, json_lines.read(path))


def write_run(folder: Path, run: RunRecord) -> None:
    """Write ``arm.json``, and ``answers.jsonl`` in the order of the requests; each whole or not at all."""
    lines = "".join(json.dumps(answer.as_json()) + "\n" for answer in run.answers.values())
    fields = {one.name: getattr(run, one.name) for one in dataclasses.fields(run) if one.name != "answers"}
    files.write(folder / "answers.jsonl", lines)
    files.write(folder / "arm.json", json.dumps(fields, indent=1, default=str))


def read_run(folder: Path) -> RunRecord | None:
    """Read a finished run; None if it is not finished."""
    if not (folder / "arm.json").is_file():
        return None
    content = json.loads((folder / "arm.json").read_text(encoding="utf-8"))
    content["weights_after"] = tuple(content["weights_after"])
    return RunRecord(**content, answers={answer.key: answer for answer in read_answers(folder / "answers.jsonl")})


def versions_of(*distributions: str) -> dict[str, str]:
    """Return the versions of those distributions that are installed."""
    found = {}
    for name in distributions:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
