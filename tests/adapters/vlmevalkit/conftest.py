"""The kit, where it is installed, and the embedded world in a cache of the tests' own."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flmm_plugin.adapters.vlmevalkit import command

HOW = "needs VLMEvalKit, which has an environment of its own: .ci/run vlmevalkit, or docs/vlmevalkit.md"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if importlib.util.find_spec("vlmeval") is None:
        for item in items:
            if "kit" in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.skip(reason=HOW))


@pytest.fixture(scope="session")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for runs of the kit; its data root and this package's cache are in it."""
    root = tmp_path_factory.mktemp("kit")
    (root / "LMUData").mkdir()
    (root / "data").mkdir()
    patch = pytest.MonkeyPatch()
    for name, value in {
        "LMUData": root / "LMUData", "FLMM_CACHE": root / "cache", "FLMM_DATA": root / "data", "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }.items():  # fmt: skip
        patch.setenv(name, str(value))
    for name in ("PRED_FORMAT", "MMEVAL_ROOT", "OPENAI_API_KEY", "LOCAL_LLM", "FLMM_MODEL_ARGS"):
        patch.delenv(name, raising=False)
    patch.setattr(sys, "argv", ["flmm-vlmeval"])
    patch.chdir(root)
    before = dict(os.environ)
    yield root
    os.environ.clear()
    os.environ.update(before)
    patch.undo()


@pytest.fixture(scope="session")
def flmm(kit: Path) -> Any:
    """The embedded model as the kit makes it."""
    from flmm_plugin.adapters.vlmevalkit.register import register

    register()
    import vlmeval.config

    return vlmeval.config.supported_VLM["flmm_tiny"]()


@pytest.fixture
def run(flmm: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """``run(folder, *words)``: a whole run of the kit in this process, with the model that is there already."""

    def started(folder: Path, *words: str, named: bool = True) -> int:
        from flmm_plugin.adapters.vlmevalkit import outcomes

        monkeypatch.setattr(outcomes, "_outcomes", {})
        # The kit makes a model anew for each run; its weights are those that were loaded.
        monkeypatch.setattr("flmm_plugin.adapters.answering.arguments.ModelArguments.load", lambda *_: flmm.lmm)
        model = ["--model", "flmm_tiny"] if named else []
        return command.main([*model, "--work-dir", str(folder), *words])

    return started


@pytest.fixture
def says(flmm: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """``says(*replies)``: let the model give these in turn; what it was asked is in the list that comes back."""

    def given(*replies: str) -> list[Any]:
        asked: list[Any] = []

        def generate(self: Any, message: Any, dataset: str | None = None) -> str:
            asked.append(message)
            return replies[(len(asked) - 1) % len(replies)]

        monkeypatch.setattr(type(flmm), "generate", generate)
        return asked

    return given
