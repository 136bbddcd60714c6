"""The record of POPE, whose data lmms-eval fetches."""

from __future__ import annotations

from flmm_plugin.data.registry import Benchmark
from flmm_plugin.tasks.benchmarks import parquet_part, read_parquet

_REPO = "lmms-lab-encoder/POPE"

BENCHMARKS = (
    Benchmark(
        name="pope",
        title="POPE",
        tasks=("pope", "flmm_pope"),
        paper="Li et al. 2023 (arXiv 2305.10355)",
        parts=(parquet_part(_REPO),),
        splits=("test",),
        read=lambda root, _: read_parquet(root, _REPO, expected=9000),
        headline=("pope_accuracy",),
        folders=("pope_viscot",),
        order=8,
    ),
)
