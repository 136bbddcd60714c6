"""What `flmm preserve` found, read back from its ``verdict.json``, for the page's head."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flmm_plugin.errors import DataNotFound


@dataclass(frozen=True)
class CheckNote:
    """One kind of comparison: how much was compared, how much of it differed, and the first difference, if any."""

    name: str
    compared: int
    differing: int
    question: str = ""
    stock: str = ""
    ours: str = ""


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
    try:
        content: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        checks = tuple(_check(one) for one in content["checks"])
        return VerdictNote(file, str(content["status"]), str(content["line"]), checks)
    except (ValueError, KeyError, TypeError) as exc:
        raise DataNotFound(
            f"{file} is no verdict of `flmm preserve` ({type(exc).__name__}: {exc}); run flmm preserve again"
        ) from exc


def _check(one: Mapping[str, Any]) -> CheckNote:
    first = one.get("first") or {}
    words = (str(first.get(name, "")) for name in ("question", "left", "right"))
    return CheckNote(str(one["name"]), int(one["compared"]), int(one["differing"]), *words)
