"""What `flmm preserve` found, read back from its ``verdict.json``, for the page's head."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flmm_plugin import files
from flmm_plugin.errors import DataNotFound
from flmm_plugin.public import public_text
from flmm_plugin.reports.runs import named


@dataclass(frozen=True)
class CheckNote:
    """One kind of comparison.

    Attributes:
        name: Of the check.
        compared: How much was compared.
        differing: How much of it differed between the stock arm and F-LMM.
        noise: How much of it differed between the stock model and itself; None where that was not measured.
        same: How much differed between F-LMM and stock under the same settings; None where they were the same anyway.
        question: What was asked where the first difference is that is held against the plugin, "" if there is none.
        stock: What the stock arm has there.
        ours: What the F-LMM arm has there.
    """

    name: str
    compared: int
    differing: int
    noise: int | None = None
    same: int | None = None
    question: str = ""
    stock: str = ""
    ours: str = ""

    @property
    def blamed(self) -> int:
        """How much of it is held against the plugin."""
        return self.differing if self.same is None else self.same


@dataclass(frozen=True)
class VerdictNote:
    """One verdict: its file, status (``unchanged``, ``changed``, ``uncomparable``), its line, and its checks."""

    path: Path
    status: str
    line: str
    checks: tuple[CheckNote, ...]


def read_verdicts(paths: Iterable[str | Path]) -> list[VerdictNote]:
    """Every ``verdict.json`` at or under the given paths.

    Raises:
        DataNotFound: One of them is damaged.
    """
    found = []
    for given in map(Path, paths):
        for file in sorted(given.rglob("verdict.json")) if given.is_dir() else [given]:
            if file.name == "verdict.json":
                found.append(_read(file))
    return found


def _read(file: Path) -> VerdictNote:
    content: Mapping[str, Any] = files.read_json(file, DataNotFound, "run flmm preserve again")
    with named(file, "verdict of `flmm preserve`"):
        others = [{str(one["name"]): one for one in content.get(kind, ())} for kind in ("noise", "same_settings")]
        checks = tuple(_check(one, *others) for one in content["checks"])
        return VerdictNote(file, str(content["status"]), public_text(str(content["line"])), checks)


def _check(
    one: Mapping[str, Any], noise: Mapping[str, Mapping[str, Any]], same: Mapping[str, Mapping[str, Any]]
) -> CheckNote:
    name = str(one["name"])
    first = same.get(name, one).get("first") or {}
    return CheckNote(
        name, int(one["compared"]), int(one["differing"]), _differing(noise.get(name)), _differing(same.get(name)),
        question=str(first.get("question", "")), stock=str(first.get("left", "")), ours=str(first.get("right", "")),
    )  # fmt: skip


def _differing(one: Mapping[str, Any] | None) -> int | None:
    return None if one is None else int(one["differing"])
