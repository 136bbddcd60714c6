"""Fixtures of the conformance suite: every family saved once and loaded once per session and set of options."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .families import FAMILIES, Family


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes ``family`` runs for every one of them; ``@pytest.mark.families(...)`` is not needed."""
    if "family" in metafunc.fixturenames:
        metafunc.parametrize("family", sorted(FAMILIES), scope="session")


@pytest.fixture(scope="session")
def family_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``family_folder(name)``: its checkpoint on disk."""
    saved: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in saved:
            saved[name] = tmp_path_factory.mktemp(f"family_{name}")
            FAMILIES[name].save(saved[name])
        return saved[name]

    return folder


@pytest.fixture(scope="session")
def load_family(family_folder: Callable[[str], Path]) -> Callable[..., Any]:
    """``load_family(name, **options)``: its backbone on the CPU; leave it unchanged."""
    from flmm_plugin.backbones import load_backbone

    loaded: dict[tuple[Any, ...], Any] = {}

    def load(name: str, **options: Any) -> Any:
        key = (name, *sorted(options.items()))
        if key not in loaded:
            entry: Family = FAMILIES[name]
            loaded[key] = load_backbone(family_folder(name), device="cpu", **{**entry.options, **options})
        return loaded[key]

    return load
