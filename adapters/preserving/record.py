"""What an arm of ``flmm preserve`` is, and what it leaves on disk; no torch, no lmms-eval.

A folder holds an arm: ``answers.jsonl`` while it runs, ``arm.json`` (and ``logits.pt``) when it is done.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from flmm_plugin import files, json_lines
from flmm_plugin.reports.preservation import Answer, Arm


@dataclass(frozen=True)
class ArmSpec:
    """What an arm is, as it is handed to its process.

    Attributes:
        role: As in `Arm`.
        model: The F-LMM model's name for ``--model``.
        model_args: Its arguments; the stock arm gets those that say which LMM it is and how it computes.
        stock: In a stock arm: ``auto``, ``plain`` or the name of an adapter; empty in the F-LMM arm.
        stock_args: Arguments that only the stock arm gets.
        tasks, limit, force_simple, include_path: As of lmms-eval.
        batch_size: Requests per forward pass.
        device: For an arm whose arguments name none.
        ground_every: Grounding requests come after every so many batches of questions; 0: never.
        seed: Of sampled answers: set before every batch, from this and the batch's number.
        plant: Name of a fault to plant, or empty.
        judge: File of judge answers that the arms share.
        work: Working directory, where lmms-eval looks for data.
    """

    role: str
    model: str
    model_args: Mapping[str, Any]
    tasks: tuple[str, ...]
    stock: str = ""
    stock_args: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    limit: float | None = None
    batch_size: int = 1
    device: str = "cpu"
    force_simple: bool = False
    include_path: str | None = None
    ground_every: int = 1
    seed: int = 0
    plant: str = ""
    judge: str = "judge.jsonl"
    work: str = "."

    def as_json(self) -> dict[str, Any]:
        """For the process that runs it."""
        return {**dataclasses.asdict(self), "tasks": list(self.tasks)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> ArmSpec:
        """What `as_json` gave."""
        return cls(**{**content, "tasks": tuple(content["tasks"])})


def part_of(limit: float, what: str) -> str:
    """A limit in words; below 1 it is a share, as in lmms-eval.

    >>> part_of(0.005, "rows")
    'the first 0.5 % of the rows'
    """
    much = f"{limit:g}" if limit >= 1 else f"{100 * limit:g} % of the"
    return f"the first {much} {what}"


def arm_key(spec: ArmSpec, times: int, harness: str) -> str:
    """Name an arm by all that goes into it.

    That is its arguments, the content of the files that they name (a model on the hub counts by its name), the versions
    of the libraries and, for the F-LMM arm, this package's code: what older code ran proves nothing about this one.

    Args:
        spec: The arm.
        times: How often it ran before; 1 for a second run of the stock arm.
        harness: The harness's distribution, such as ``lmms-eval``; one that is not installed as such counts as None.

    Returns:
        12 hexadecimal digits.
    """
    from flmm_plugin.adapters.answering.identity import code_digest, digest_of
    from flmm_plugin.contents import argument_digests

    arguments = {**spec.as_json(), "times": times, "judge": "", "role": ""}
    versions = {}
    for name in ("torch", "transformers", harness):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    given = {"pretrained": spec.model, **spec.model_args}
    local = {name: value for name, value in given.items() if value == "flmm_tiny" or Path(str(value)).exists()}
    code = "" if spec.stock else code_digest(())
    return digest_of([arguments, versions, code, argument_digests(local)])[:12]


def read_answers(path: Path) -> Iterator[Answer]:
    """An arm's record; a last line that was cut off by a kill is left out."""
    return map(Answer.from_json, json_lines.read(path))


def write_arm(folder: Path, arm: Arm) -> None:
    """``arm.json``, and ``answers.jsonl`` in the order of the requests; written whole or not at all."""
    lines = "".join(json.dumps(answer.as_json()) + "\n" for answer in arm.answers.values())
    fields = {field.name: getattr(arm, field.name) for field in dataclasses.fields(arm) if field.name != "answers"}
    files.write(folder / "answers.jsonl", lines)
    files.write(folder / "arm.json", json.dumps(fields, indent=1, default=str))


def read_arm(folder: Path) -> Arm | None:
    """A finished arm, or None."""
    if not (folder / "arm.json").is_file():
        return None
    content = json.loads((folder / "arm.json").read_text(encoding="utf-8"))
    content["weights_after"] = tuple(content["weights_after"])
    return Arm(**content, answers={answer.key: answer for answer in read_answers(folder / "answers.jsonl")})
