"""The record of grounded conversation generation (GranD-f)."""

from __future__ import annotations

from pathlib import Path

from flmm_plugin.data.registry import Benchmark, Split
from flmm_plugin.datasets.grandf import PICTURES, SPLITS, GranDfDataset, annotation_part


def _read(root: Path, split: str) -> Split:
    return GranDfDataset(root, split).summary(split, "pictures", None)


BENCHMARKS = (
    Benchmark(
        name="gcg",
        title="GranD-f: grounded conversation generation, val and test",
        tasks=("flmm_gcg", "flmm_gcg_val", "flmm_gcg_test"),
        paper="Rasheed et al. 2024 (arXiv 2311.03356)",
        parts=(*(annotation_part(split, kind) for split in SPLITS for kind in ("caption", "mask")), PICTURES),
        splits=SPLITS,
        read=_read,
        headline=("mIoU",),
        folders=("gcg",),
        kit={"GCG": {split: f"flmm_gcg_{split}" for split in SPLITS}, "GCG_TINY": {"": "flmm_tiny_gcg"}},
        order=6,
    ),
)
