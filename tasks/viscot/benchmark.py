"""The record of the Visual-CoT benchmark."""

from __future__ import annotations

from pathlib import Path

from flmm_plugin.data.registry import Benchmark, Split
from flmm_plugin.datasets.viscot import TABLE_SETS, VisCotDataset, table_parts

#: Ending of the tasks by how a question is answered: after a second look, after its second version, at once.
ENDINGS = ("", "_v2", "_direct")


def _read(root: Path, name: str) -> Split:
    dataset = VisCotDataset(root, name)
    return dataset.summary(name, "questions", dataset.official_size.records)


BENCHMARKS = (
    Benchmark(
        name="viscot",
        title="Visual-CoT benchmark, the six sets of table 4",
        tasks=("flmm_viscot", "flmm_viscot_v2", "flmm_viscot_direct", *(f"flmm_viscot_{name}" for name in TABLE_SETS)),
        paper="Shao et al. 2024 (arXiv 2403.16999)",
        parts=table_parts(),
        splits=TABLE_SETS,
        read=_read,
        headline=("judged", "anls"),
        folders=("viscot",),
        kit={
            **{f"VisCoT{end}": {name: f"flmm_viscot_{name}{end}" for name in TABLE_SETS} for end in ENDINGS},
            **{f"VisCoT{end}_TINY": {"": f"flmm_tiny_viscot{end or '_v1'}"} for end in ENDINGS},
        },
        order=7,
    ),
)
