"""Remake docs/scale.md: how long the paper's tables take on 1, 8 and 64 GPUs, and where the bottleneck moves.

    python docs/make_scale.py      from the committed result file of ``flmm bench`` and the formulas of ``flmm plan``

A document takes what the GPU needs for it (arithmetic of ``flmm plan``: never measured on a GPU) and what the CPU needs
(measured: processor and the rest of a picture). Start, loading and sealing are paid once a command, on every rank at
the same time, and do not shrink. Documents are shared among ranks evenly.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flmm_plugin.bench import results
from flmm_plugin.bench.results import Row
from flmm_plugin.reports import tables
from flmm_plugin.reports.table_layouts import TABLE_NAMES, layouts_of

ROOT = Path(__file__).resolve().parents[1]
MODEL, GPU, WEIGHTS = "flmm_llava", "H100", 14.1e9  # LLaVA-1.5-7B: bytes of its weights in bfloat16
RANKS = (1, 8, 64)
DISK = 2e9  # bytes per second at which weights are read, assumed


@dataclass
class Load:
    """Seconds of GPU and CPU that the tasks of one table take, on one rank.

    Attributes:
        documents: Documents whose number is published.
        unknown: Tasks whose number of documents nobody states.
        parts: Seconds by part of the work.
    """

    documents: int = 0
    unknown: int = 0
    parts: dict[str, float] = field(default_factory=dict)


def main(argv: Sequence[str] | None = None) -> int:
    """Compute and write the two tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("result", nargs="?", type=Path, help="result file of flmm bench (default: the committed one)")
    args = parser.parse_args(argv)
    found = sorted((ROOT / "benchmarks" / "results").glob("cpu-*.json"))
    path = args.result or next(one for one in reversed(found) if not one.stem.endswith("-before"))
    rows = results.load(path)
    fixed, each = fixed_seconds(rows), cpu_seconds(rows)
    stages = gpu_stages()
    loads = {name: load_of([name], stages, each) for name in TABLE_NAMES}
    loads["all of them, one command"] = load_of(TABLE_NAMES, stages, each)
    loads["the same, 8 answers at a time"] = load_of(TABLE_NAMES, gpu_stages(batch=8), each)
    made = {"computed by": "docs/make_scale.py", "measured parts": path.name, "model": f"LLaVA-1.5-7B on {GPU}"}
    folder = ROOT / "docs" / "results"
    (folder / "scale_parts.csv").write_text(parts_table(rows, fixed, each, stages, made), encoding="utf-8")
    (folder / "scale.csv").write_text(scale_table(loads, fixed, made), encoding="utf-8")
    return tables.main([str(ROOT / "docs" / "scale.md")])


def fixed_seconds(rows: Mapping[str, Row]) -> dict[str, float]:
    """Return what a command pays once, in seconds."""
    speed = rows["seal/wall"].value * 1e9
    return {
        "start of lmms_eval": rows["start/stock"].value * rows["start/ours over stock"].value,
        "loading weights": WEIGHTS / DISK,
        "seal, made and checked": 2 * WEIGHTS / speed,
    }


def cpu_seconds(rows: Mapping[str, Row]) -> float:
    """Return the seconds of one core that a picture with one phrase takes beside the models."""
    return rows["stage/embedded/1/processor"].value + rows["stage/embedded/1/rest"].value


def gpu_stages(batch: int = 1) -> dict[str, Any]:
    """Return ``flmm plan``'s estimate of every task of the paper's tables, by name."""
    from flmm_plugin.cli.plan import plan_of
    from flmm_plugin.cli.reproduce import chosen_tasks

    tasks = chosen_tasks(layouts_of(TABLE_NAMES), None)
    asked = argparse.Namespace(
        what=None, changes=[], model=MODEL, model_args=None, tasks=",".join(tasks), backbones=None, limit=None,
        batch_size=batch, device=GPU,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FLMM_CACHE"] = folder  # no measurements of this machine
        (work,) = plan_of(asked).works
    return {stage.name: stage for stage in work.stages}


def load_of(names: Sequence[str], stages: Mapping[str, Any], each: float) -> Load:
    """Add up the tasks of tables, each task once."""
    load = Load()
    tasks = dict.fromkeys(task for layout in layouts_of(names) for task in layout.tasks)
    for task in tasks:
        stage = stages.get(task)
        if stage is None or stage.documents is None:
            load.unknown += 1
            continue
        load.documents += stage.documents
        for part, seconds in {**stage.parts, "CPU": each}.items():
            load.parts[part] = load.parts.get(part, 0.0) + stage.documents * seconds
    return load


def scale_table(loads: Mapping[str, Load], fixed: Mapping[str, float], facts: Mapping[str, Any]) -> str:
    """Return the time of every table by number of GPUs, and what takes most of it."""
    from flmm_plugin.cli.plan_time import duration

    columns = ["table", "documents", "tasks of unknown size"]
    columns += [f"{ranks} GPU{'s' * (ranks > 1)}{what}" for ranks in RANKS for what in ("", ": most of it")]
    lines = []
    for name, load in loads.items():
        cells: list[Any] = [name, f"{load.documents:,}", load.unknown or ""]
        for ranks in RANKS:
            parts = {part: seconds / ranks for part, seconds in load.parts.items()}
            parts["start, loading, seal"] = sum(fixed.values())
            largest = max(parts, key=lambda part: parts[part])
            share = parts[largest] / sum(parts.values())
            cells += (
                ["?", ""] if not load.documents else [duration(sum(parts.values())), f"{largest} {100 * share:.0f} %"]
            )
        lines.append(cells)
    return results.table(columns, lines, facts)


def parts_table(
    rows: Mapping[str, Row],
    fixed: Mapping[str, float],
    each: float,
    stages: Mapping[str, Any],
    facts: Mapping[str, Any],
) -> str:
    """Return the parts that the times are made of, each with where it is from."""
    device, arithmetic = "measured on a CPU", f"arithmetic, {GPU}"
    where = {"start of lmms_eval": device, "loading weights": f"arithmetic, {DISK / 1e9:g} GB/s assumed"}
    seal = f"arithmetic from the measured {rows['seal/wall']}"
    lines = [[name, f"{seconds:.1f} s", "a command", where.get(name, seal)] for name, seconds in fixed.items()]
    lines.append(["CPU: processor, boxes, results", f"{1000 * each:.1f} ms", "a document", device])
    masks, chat = (stages[name] for name in ("flmm_refcoco_val", "mme"))
    for part, seconds in masks.parts.items():
        lines.append([f"{part}: a picture with its phrases", f"{1000 * seconds:.1f} ms", "a document", arithmetic])
    writes = 1000 * chat.parts["writes"] / 16
    lines.append(["writes: one token of an answer, batch 1", f"{writes:.1f} ms", "a token", arithmetic])
    return results.table(["part", "time", "per", "where it is from"], lines, facts)


if __name__ == "__main__":
    sys.exit(main())
