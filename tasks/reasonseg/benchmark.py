"""The record of ReasonSeg."""

from __future__ import annotations

from pathlib import Path

from flmm_plugin.data.registry import Benchmark, Split
from flmm_plugin.datasets.reasonseg import ReasonSegDataset, split_part

_SPLITS = ("val", "test")


def _read(root: Path, split: str) -> Split:
    dataset = ReasonSegDataset(root, split)
    return dataset.summary(split, "pictures", dataset.official_size)


BENCHMARKS = (
    Benchmark(
        name="reasonseg",
        title="ReasonSeg, val and test",
        tasks=("flmm_reasonseg_val", "flmm_reasonseg_test"),
        paper="Lai et al. 2024 (arXiv 2308.00692)",
        parts=tuple(map(split_part, _SPLITS)),
        splits=_SPLITS,
        read=_read,
        headline=("gIoU",),
        folders=("reasonseg",),
        kit={
            "ReasonSeg": {split: f"flmm_reasonseg_{split}" for split in _SPLITS},
            "ReasonSeg_TINY": {"": "flmm_tiny_reasonseg"},
        },
        order=5,
    ),
)
