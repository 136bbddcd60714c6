"""The record of panoptic narrative grounding."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from flmm_plugin.data.registry import Benchmark, Split
from flmm_plugin.datasets.png import PngDataset, parts


def _read(root: Path, split: str) -> Split:
    dataset = PngDataset(root, split)
    files = dict.fromkeys(path for one in dataset for path in (one.image_path, one.map_path))
    return replace(dataset.summary(split, "narratives", None), items=dataset.in_file, pictures=tuple(files))


BENCHMARKS = (
    Benchmark(
        name="png",
        title="Panoptic Narrative Grounding, val2017",
        tasks=("flmm_png", "flmm_keywords"),
        paper="Gonzalez et al. 2021 (arXiv 2109.04988)",
        parts=parts("val"),
        splits=("val",),
        read=_read,
        headline=("AR", "F1"),
        folders=("png", "keywords"),
        kit={"PNG": {"": "flmm_png"}, "PNG_BCV": {"": "flmm_png_bcv"}, "PNG_TINY": {"": "flmm_tiny_png"}},
        order=4,
    ),
)
