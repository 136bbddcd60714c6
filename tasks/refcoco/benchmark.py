"""The records of RefCOCO, RefCOCO+ and RefCOCOg."""

from __future__ import annotations

from pathlib import Path

from flmm_plugin.data.registry import Benchmark, Split
from flmm_plugin.datasets.refer import TITLES, ReferDataset, parts


def _record(order: int, name: str, by: str, splits: tuple[str, ...], paper: str) -> Benchmark:
    def read(root: Path, split: str) -> Split:
        dataset = ReferDataset(root, name, split)
        official = dataset.official_size
        return dataset.summary(split, "refs", None if official is None else official.refs)

    by_picture = {split: f"flmm_{name}_{split}" for split in splits}
    per_sentence = {split: f"{task}_per_sentence" for split, task in by_picture.items()}
    kit = {f"{TITLES[name]}_SEG": by_picture, f"{TITLES[name]}_SEG_PER_SENTENCE": per_sentence}
    if name == "refcoco":
        kit["RefCOCO_SEG_TINY"] = {"": "flmm_tiny_refcoco"}
    return Benchmark(
        name=name,
        title=TITLES[name],
        tasks=(f"flmm_{name}_seg", *by_picture.values(), *per_sentence.values()),
        paper=paper,
        parts=parts(name, by),
        splits=splits,
        read=read,
        headline=("cIoU",),
        folders=("refcoco",),
        kit=kit,
        order=order,
    )


BENCHMARKS = (
    _record(1, "refcoco", "unc", ("val", "testA", "testB"), "Yu et al. 2016"),
    _record(2, "refcoco+", "unc", ("val", "testA", "testB"), "Yu et al. 2016"),
    _record(3, "refcocog", "umd", ("val", "test"), "Mao et al. 2016, Nagaraja et al. 2016"),
)
