"""The kit, where it is installed, and the embedded world in a cache of the tests' own."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

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
