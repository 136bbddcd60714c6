"""The record of POPE, whose data lmms-eval fetches."""

from __future__ import annotations

from flmm_plugin.data.registry import Benchmark
from flmm_plugin.tasks.benchmarks import parquet_part, read_parquet

_REPO = "lmms-lab-encoder/POPE"
_QUESTIONS = 9000

BENCHMARKS = (
    Benchmark(
        name="pope",
        title="POPE",
        tasks=("pope", "flmm_pope"),
        paper="Li et al. 2023 (arXiv 2305.10355)",
        parts=(parquet_part(_REPO),),
        splits=("test",),
        read=lambda root, _: read_parquet(root, _REPO, expected=_QUESTIONS),
        headline=("pope_accuracy",),
        folders=("pope_viscot",),
        order=8,
        documents=dict.fromkeys(("pope", "flmm_pope_direct", "flmm_pope_viscot", "flmm_pope_viscot_v2"), _QUESTIONS),
    ),
)
