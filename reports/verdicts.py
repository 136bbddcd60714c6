"""Read the ``verdict.json`` of `flmm preserve` for the head of a page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flmm_plugin import files
from flmm_plugin.errors import DataNotFound
from flmm_plugin.redaction import public_text
from flmm_plugin.reports.runs import named


@dataclass(frozen=True)
class CheckNote:
    """One kind of comparison.

    Attributes:
        name: Name of the check, such as ``generated ids``.
        compared: Number of things that were compared.
        differing: Number of those that differed between the stock run and F-LMM.
        noise: The same between the stock model and itself; None where that was not measured.
        same: The same between F-LMM and stock under its settings; None where the settings were the same anyway.
        question: Question of the first difference that is held against the plugin, "" if there is none.
        stock: Text of the stock run at that place.
        ours: Text of the F-LMM run at that place.
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
        """Number of differences that are held against the plugin."""
        return self.differing if self.same is None else self.same


@dataclass(frozen=True)
class VerdictNote:
    """One verdict: its file, status (``unchanged``, ``changed``, ``uncomparable``), its line, and its checks."""

    path: Path
    status: str
    line: str
    checks: tuple[CheckNote, ...]


def read_verdicts(paths: Iterable[str | Path]) -> list[VerdictNote]:
    """Read every ``verdict.json`` at or under the given paths.

    Raises:
        DataNotFound: One of them is damaged.
    """
    found = [file for given in map(Path, paths) for file in (sorted(given.rglob("verdict.json")) or [given])]
    return [_read(file) for file in found if file.name == "verdict.json"]


def _read(file: Path) -> VerdictNote:
    content: Mapping[str, Any] = files.read_json(file, DataNotFound, "run flmm preserve again")
    with named(file, "verdict of `flmm preserve`"):
        noise, same = ({str(one["name"]): one for one in content.get(kind, ())} for kind in ("noise", "same_settings"))
        checks = []
        for one in content["checks"]:
            name = str(one["name"])
            first = same.get(name, one).get("first") or {}
            checks.append(
                CheckNote(
                    name=name,
                    compared=int(one["compared"]),
                    differing=int(one["differing"]),
                    noise=int(noise[name]["differing"]) if name in noise else None,
                    same=int(same[name]["differing"]) if name in same else None,
                    question=str(first.get("question", "")),
                    stock=str(first.get("left", "")),
                    ours=str(first.get("right", "")),
                )
            )
        return VerdictNote(file, str(content["status"]), public_text(str(content["line"])), tuple(checks))
