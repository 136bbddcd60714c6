"""Remake docs/speed.md and README's table of speed from result files of ``flmm bench``.

    python docs/make_speed.py                 from benchmarks/results/cpu-*.json, beside cpu-*-before.json
    python docs/make_speed.py RESULT.json     from another one

Writes the tables beside the result file, ``speed_profile.csv`` and ``speed_limits.csv`` in ``docs/results``, the
figures of growth in ``docs/images`` and the marked places of README.md and docs/speed.md. Nothing is measured here.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flmm_plugin.bench import results
from flmm_plugin.bench.results import Row
from flmm_plugin.reports import tables

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
#: Figure -> title, axis below, and what it shows: rows' prefix by legend.
FIGURES: Mapping[str, tuple[str, str, Mapping[str, str]]] = {
    "phrases": ("Phrases of one picture, encoded already", "phrases", {"ground": "phrases"}),
    "answer": ("A chat, the same grounded", "answer tokens", {"chat": "answer chat", "grounded": "answer grounded"}),
    "pixels": ("Size of the picture, one phrase", "pixels", {"ground": "pixels"}),
    "documents": ("The request loop alone, answers given", "documents", {"loop": "documents"}),
    "processes": (
        "A whole run of the embedded model, CPU time of a process", "pictures",
        {"one process": "processes 1", "two processes, each": "processes 2"},
    ),
}  # fmt: skip
_VIT_B = "llava-8x512-vit_b"
PARTS = ("LMM", "capture", "U-Net", "SAM encoder", "SAM prompts", "SAM decoder", "processor", "rest", "all")


def main(argv: Sequence[str] | None = None) -> int:
    """Read the results and write everything that is made of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("result", nargs="?", type=Path, help="result file (default: the CPU's that is committed)")
    args = parser.parse_args(argv)
    found = [path for path in sorted(RESULTS.glob("cpu-*.json")) if not path.stem.endswith("-before")]
    path: Path = args.result or found[-1]
    earlier = path.with_name(f"{path.stem}-before.json")
    before = earlier if earlier.is_file() else None
    results.write_tables(path, before)
    now, old = results.load(path), {} if before is None else results.load(before)
    (ROOT / "docs" / "results" / "speed_profile.csv").write_text(profile(now, old, path.name), encoding="utf-8")
    (ROOT / "docs" / "results" / "speed_limits.csv").write_text(limits(now, path.name), encoding="utf-8")
    for name, (_, _, curves) in FIGURES.items():
        if not any(_points(now, f"growth/{prefix}/") for prefix in curves.values()):
            continue  # not measured
        figure(name, now, old).savefig(ROOT / "docs" / "images" / f"growth_{name}.svg", metadata={"Date": None})
    return tables.main([str(ROOT / "README.md"), str(ROOT / "docs" / "speed.md")])


def profile(now: Mapping[str, Row], old: Mapping[str, Row], source: str) -> str:
    """Return where the time of one picture goes, as CSV, in milliseconds."""
    kinds = {"1 phrase": "embedded/1", "8 phrases": "embedded/8"}
    columns = [f"{kind}, {when}" for kind in kinds for when in ("before", "now")]
    lines = []
    for part in PARTS:
        names = [f"stage/{kind}/{part}" for kind in kinds.values()]
        lines.append([part, *(_ms(rows.get(name)) for name in names for rows in (old, now))])
    return results.table(["part", *columns], lines, {"milliseconds of CPU time, medians": source})


def limits(now: Mapping[str, Row], source: str) -> str:
    """Return ratios as CSV: as they are, and as if capture and all that is outside of the networks cost nothing."""

    def seconds(kind: str, *parts: str) -> float:
        return sum(now[f"stage/{kind}/{part}"].value for part in parts)

    floor, heads = ("processor", "LMM", "SAM encoder"), ("U-Net", "SAM prompts", "SAM decoder")
    bars = {target.name: target.bar for target in results.TARGETS}
    lines = []
    for title, kind, name in (
        ("grounded over floor, 1 phrase", "embedded/1", "picture/embedded/1 phrase/grounded"),
        ("grounded over floor, 8 phrases", "embedded/8", "picture/embedded/8 phrases/grounded"),
        ("grounded over floor, 4 phrases", f"{_VIT_B}/4", f"picture/{_VIT_B}/4 phrases/grounded"),
    ):
        if f"stage/{kind}/all" in now and name in now:
            ratio = seconds(kind, *floor, *heads) / seconds(kind, *floor)
            lines.append([title, kind.partition("/")[0], now[name], f"{ratio:.2f}", bars[name]])
    eight, one = (seconds(f"embedded/{count}", "processor", "LMM", *heads) for count in (8, 1))
    name = "picture/embedded/8 over 1 encoded"
    lines.append(["8 phrases over 1, picture encoded", "embedded", now[name], f"{eight / one:.2f}", bars[name]])
    return results.table(["what", "model", "now", "the networks alone", "bar"], lines, {"computed from": source})


def _ms(row: Row | None) -> str:
    return "" if row is None else f"{1000 * row.value:.1f}"


def figure(name: str, now: Mapping[str, Row], old: Mapping[str, Row]) -> Any:
    """Draw one figure of growth: what is measured now, and before in grey."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "growth"
    title, below, curves = FIGURES[name]
    drawn = Figure(figsize=(5, 3.2), layout="constrained")
    axes = drawn.add_subplot()
    for number, (label, prefix) in enumerate(curves.items()):
        for rows, when, look in ((old, ", before", {"color": "0.6", "linestyle": "--"}), (now, "", {})):
            points = sorted(_points(rows, f"growth/{prefix}/"))
            if points:
                axes.plot(*zip(*points, strict=True), marker="os"[number % 2], label=label + when, **look)
    axes.set(title=title, xlabel=below, ylabel="seconds of CPU time", xscale="log", yscale="log")
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    return drawn


def _points(rows: Mapping[str, Row], prefix: str) -> list[tuple[float, float]]:
    return [(float(name.removeprefix(prefix)), row.value) for name, row in rows.items() if name.startswith(prefix)]


if __name__ == "__main__":
    sys.exit(main())
