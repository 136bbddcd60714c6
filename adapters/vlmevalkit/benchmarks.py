"""This package's benchmarks by the names that VLMEvalKit's users type, and the tasks that each is made of.

A name stands for one task, or for several whose documents follow each other: ``RefCOCO_SEG`` is all splits of
RefCOCO, ``RefCOCO_SEG_val`` is one. ``..._TINY`` are the same benchmarks on the embedded model's world, written when
first asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from flmm_plugin.tasks.benchmarks import benchmarks, headline

#: The kit's own benchmarks on synthetic scenes, by the names of their tables.
SYNTHETIC = ("MME_TINY", "POPE_TINY", "MMBench_TINY")


class Part(NamedTuple):
    """One task of a benchmark; its metrics are printed as ``label.metric``, or bare where there is only one task."""

    label: str
    task: str


def _listed() -> dict[str, tuple[Part, ...]]:
    found: dict[str, tuple[Part, ...]] = {}
    for benchmark in benchmarks().values():
        for name, tasks in benchmark.kit.items():
            found[name] = tuple(Part(label, task) for label, task in tasks.items())
            if len(tasks) > 1:
                found.update({f"{name}_{label}": (Part("", task),) for label, task in tasks.items()})
    return found


#: Name for ``--data`` -> its tasks.
BENCHMARKS: Mapping[str, tuple[Part, ...]] = _listed()


def headline_first(task: str, metrics: Mapping[str, float | int]) -> dict[str, float | int]:
    """Put the metric that stands for a task before its others.

    >>> headline_first("flmm_tiny_gcg", {"AP50": 1.0, "mIoU": 2.0})
    {'mIoU': 2.0, 'AP50': 1.0}
    """
    name = next((metric for metric in headline(task) if metric in metrics), None)
    return {**({name: metrics[name]} if name is not None else {}), **metrics}


def primary(metrics: Mapping[str, object]) -> dict[str, float | int]:
    """Choose the numbers that stand for a benchmark: the first of each of its tasks.

    >>> primary({"val.cIoU": 80.0, "val.items": 3, "testA.cIoU": 70.0, "testA.mIoU": 71.0})
    {'val.cIoU': 80.0, 'testA.cIoU': 70.0}
    """
    first: dict[str, tuple[str, float | int]] = {}
    for name, value in metrics.items():
        if isinstance(value, int | float):
            first.setdefault(_label(name), (name, value))
    return dict(first.values())


def _label(name: str) -> str:
    """Read the task's label in a metric's name; ``P@0.5`` has none."""
    label, _, metric = name.partition(".")
    return label if metric and "@" not in label else ""
