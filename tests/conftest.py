"""What every test runs under: offline, on few threads, and tiers that say how to run what they skip."""

from __future__ import annotations

import os

# Set before anything imports huggingface_hub, which reads it once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip the tiers that were not asked for by name (``-m``) or that this machine cannot run."""
    asked = config.getoption("markexpr")
    for item in items:
        if "gpu" in item.keywords and not _has_gpu():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device: run `pytest -m gpu` on a machine with one"))
        if "weights" in item.keywords and "FLMM_WEIGHTS" not in os.environ:
            item.add_marker(
                pytest.mark.skip(reason="needs real weights: set FLMM_WEIGHTS to their folder, `pytest -m weights`")
            )
        if "slow" in item.keywords and "slow" not in asked:
            item.add_marker(pytest.mark.skip(reason="takes longer than ten seconds: run `pytest -m slow`"))


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
