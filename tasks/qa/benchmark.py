"""The record of MME, whose data lmms-eval fetches."""

from __future__ import annotations

from flmm_plugin.data.registry import Benchmark
from flmm_plugin.tasks.benchmarks import parquet_part, read_parquet

_REPO = "lmms-lab-encoder/MME"
_QUESTIONS = 2374

BENCHMARKS = (
    Benchmark(
        name="mme",
        title="MME",
        tasks=("mme",),
        paper="Fu et al. 2023 (arXiv 2306.13394)",
        parts=(parquet_part(_REPO),),
        splits=("test",),
        read=lambda root, _: read_parquet(root, _REPO, expected=_QUESTIONS),
        headline=("mme_perception_score", "acc"),
        folders=("tiny",),
        order=9,
        documents={"mme": _QUESTIONS},
    ),
)
