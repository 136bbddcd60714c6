"""Name this package's benchmarks as VLMEvalKit's users type them, and choose the numbers that stand for them.

A name stands for one task, or for several whose documents follow each other: ``RefCOCO_SEG`` is all splits of
RefCOCO, ``RefCOCO_SEG_val`` is one. ``..._TINY`` are the same benchmarks on synthetic scenes, written when first asked
for.
"""

from __future__ import annotations

from collections.abc import Mapping

from flmm_plugin.tasks.benchmarks import benchmarks, headline

#: The kit's own benchmarks on synthetic scenes, by the names of their tables.
SYNTHETIC = ("MME_TINY", "POPE_TINY", "MMBench_TINY")

#: Name for ``--data`` -> label -> task. Metrics are printed as ``label.metric``, or bare where the label is "".
BENCHMARKS: dict[str, Mapping[str, str]] = {}

for _benchmark in benchmarks().values():
    for _name, _tasks in _benchmark.kit.items():
        BENCHMARKS[_name] = _tasks
        if len(_tasks) > 1:
            BENCHMARKS.update({f"{_name}_{_label}": {"": _task} for _label, _task in _tasks.items()})


def tasks_of(name: str) -> list[str]:
    """Return the tasks that a name for ``--data`` stands for; of the kit's own data sets, lmms-eval's name.

    >>> tasks_of("RefCOCO_SEG_val"), tasks_of("MME")
    (['flmm_refcoco_val'], ['mme'])
    """
    return list(BENCHMARKS[name].values()) if name in BENCHMARKS else [name.lower()]


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
    >>> primary({"val.cIoU": 80.0, "val.P@0.5": 71.0}), primary({"cIoU": 80.0, "P@0.5": 71.0})
    ({'val.cIoU': 80.0}, {'cIoU': 80.0})
    """
    first: dict[str, tuple[str, float | int]] = {}
    for name, value in metrics.items():
        if isinstance(value, int | float):
            label, point, _ = name.partition(".")
            # The point of `P@0.5` follows no label.
            first.setdefault(label if point and "@" not in label else "", (name, value))
    return dict(first.values())
