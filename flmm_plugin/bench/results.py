"""Rows of results: what was measured, how far it scatters, and what was to be reached."""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from flmm_plugin import files
from flmm_plugin.bench.timing import Ratio, Times
from flmm_plugin.content_hashes import versions
from flmm_plugin.errors import DataNotFound


@dataclass(frozen=True)
class Row:
    """One number.

    Attributes:
        name: What it is of, such as ``capture/llava-512/self``; unique.
        value: Number in the unit that the next names.
        unit: ``x`` for a ratio, ``part`` for a small one, ``apart`` for a difference, ``s``, ``bytes``, ``GB/s``.
        low: 10th percentile over the rounds, None where there were none.
        high: 90th percentile over the rounds.
        minima: Of a ratio, the ratio of the fastest runs.
        null_low: 10th percentile of the null arm's ratios.
        null_high: 90th percentile of the null arm's ratios.
        rounds: Number of rounds; 0: arithmetic, nothing was run.
        note: Words on what it was measured with; "" for none.
    """

    name: str
    value: float
    unit: str = "x"
    low: float | None = None
    high: float | None = None
    minima: float | None = None
    null_low: float | None = None
    null_high: float | None = None
    rounds: int = 0
    note: str = ""

    @classmethod
    def ratio(cls, name: str, times: Times, arm: str, over: str, *, minima: bool = False, note: str = "") -> Row:
        """Make the row of one arm over another.

        Args:
            name: Name of the row, unique in a file.
            times: Seconds of all arms, null arm included, by round.
            arm: Name of the arm that is compared.
            over: Arm that it is compared with.
            minima: Whether the ratio of the fastest runs is the value, instead of the median of ratios.
            note: Words on what it was measured with; "" for none.
        """
        found, null = times.ratio(arm, over), times.null
        return cls(
            name, found.minima if minima else found.median, "x", found.low, found.high, found.minima, null.low,
            null.high, len(times.seconds[arm]), note,
        )  # fmt: skip

    @classmethod
    def seconds(cls, name: str, seconds: Sequence[float], note: str = "") -> Row:
        """Make the row of repeated work, whose fastest run is the value."""
        scatter = Ratio.of(seconds, [1.0] * len(seconds))
        return cls(name, scatter.minima, "s", scatter.low, scatter.high, rounds=len(seconds), note=note)

    @property
    def resolved(self) -> bool:
        """Tell whether a ratio lies outside of what the null arm scatters by; true of everything else."""
        return self.null_low is None or self.null_high is None or not self.null_low <= self.value <= self.null_high

    def __str__(self) -> str:
        """Return the number for people.

        >>> str(Row("a", 1.0213, null_low=0.98, null_high=1.03)), str(Row("b", 3.4, "GB/s"))
        ('1.021, not resolved', '3.40 GB/s')
        """
        said = written(self.value, self.unit)
        return said if self.resolved else f"{said}, not resolved"

    @property
    def scatter(self) -> str:
        """Return the 10th to the 90th percentile for people; "" where nothing was repeated."""
        if self.low is None or self.high is None or self.rounds < 2:
            return ""
        return f"{written(self.low, self.unit)} to {written(self.high, self.unit)}"

    @property
    def null(self) -> str:
        """Return the same of the null arm."""
        return "" if self.null_low is None else replace(self, low=self.null_low, high=self.null_high).scatter


def written(value: float, unit: str) -> str:
    """Write a number with its unit.

    >>> written(1.0294, "x"), written(0.0121, "part"), written(0.0712, "s"), written(3_500_000, "bytes")
    ('1.029', '1/83', '71.2 ms', '3.5 MB')
    """
    if unit == "bytes":
        size, name = next((pair for pair in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if value >= pair[0]), (1.0, "B"))
        return f"{value / size:.3g} {name}"
    if unit == "s":
        return f"{value:.3g} s" if value >= 1 else f"{1000 * value:.3g} ms"
    if unit == "apart":
        return f"{value:.1g}"
    if unit == "part":
        return f"1/{1 / value:.0f}"
    return f"{value:.3f}" if unit == "x" else f"{value:.2f} {unit}"


@dataclass(frozen=True)
class Target:
    """A number that was to be reached.

    Attributes:
        title: What it is of, for people.
        name: Name of the row that has it.
        bar: The number to reach, in the row's unit.
        more: Whether more is better (default: less is).
    """

    title: str
    name: str
    bar: float
    more: bool = False

    def reached(self, row: Row) -> str:
        """Return ``yes`` where the row reaches the bar, else ``no``."""
        return "yes" if (row.value >= self.bar if self.more else row.value <= self.bar) else "no"


TARGETS = (
    Target("capture, self time over the pass: LLaVA 8 x 512, 696 tokens", "pass/llava-8x512/self", 1.012),
    Target("the same: LLaVA-NeXT 8 x 512, 3,000 tokens", "pass/llava-next-8x512/self", 1.006),
    Target("the same: Qwen2.5-VL 8 x 512, 3,000 tokens", "pass/qwen2.5-vl-8x512/self", 1.006),
    Target("capture over plain, fastest runs: embedded model, batch 1", "pass/embedded/batch 1/capture", 1.04),
    Target("the same, batch 4", "pass/embedded/batch 4/capture", 1.06),
    Target("grounded over floor: LLaVA 8 x 512, SAM ViT-B", "picture/llava-8x512-vit_b/4 phrases/grounded", 1.10),
    Target("the same: embedded model, 1 phrase", "picture/embedded/1 phrase/grounded", 1.25),
    Target("the same: embedded model, 8 phrases", "picture/embedded/8 phrases/grounded", 2.0),
    Target("8 phrases over 1, picture encoded: embedded model", "picture/embedded/8 over 1 encoded", 1.6),
    Target("the same: LLaVA 8 x 512, SAM ViT-B", "picture/llava-8x512-vit_b/8 over 1 encoded", 1.15),
    Target("128 phrases of one picture: embedded model", "picture/embedded/128 phrases", 1.2),
    Target("grounded chat of 64 tokens over the chat, fastest runs, without SAM", "chat/without SAM", 1.10),
    Target("the same, with SAM", "chat/with SAM", 1.2),
    Target("the paper's loop over ours, a picture a document: embedded model", "res/embedded/picture", 1.4, True),
    Target("the same: LLaVA 8 x 512, 696 tokens, small SAM", "res/llava-8x512/picture", 3.0, True),
    Target("the paper's loop over ours, a sentence a document: embedded model", "res/embedded/sentence", 6.0, True),
    Target("12 MP picture, one phrase: embedded model", "picture/embedded/12 MP", 0.5),
    Target("memory per pixel and phrase, at most", "memory/pixel and phrase", 1.5),
    Target("rows over the paper's matrices: 7B, 700 tokens (arithmetic)", "memory/7b-700", 1 / 400),
    Target("the same: 7B, 3,000 tokens (arithmetic)", "memory/7b-3000", 1 / 400),
    Target("seal on the weights, by the wall clock", "seal/wall", 5.0, True),
    Target("start of lmms_eval over stock lmms-eval's", "start/ours over stock", 0.5),
    Target("training sample without a cache over the paper's way of reading", "training/uncached over paper", 0.7),
)


def file_stem(device: str, installed: Mapping[str, str | None]) -> str:
    """Return the name of a result file, from device and versions.

    >>> file_stem("cuda (NVIDIA H100 PCIe)", {"torch": "2.15.0+cu132", "transformers": "5.23.0"})
    'nvidia-h100-pcie-torch2.15.0-transformers5.23.0'
    """
    words = re.sub(r"^cuda \((.*)\)$", r"\1", device).lower()
    parts = [f"{name}{str(version).partition('+')[0]}" for name, version in installed.items()]
    return "-".join([re.sub(r"[^a-z0-9]+", "-", words).strip("-"), *parts])


def device_words(device: Any) -> str:
    """Return the name of a device for files: a GPU's own, or ``cpu`` with the processor's architecture."""
    from flmm_plugin.devices import device_name

    name = str(device_name(device))
    return f"cpu {platform.machine()}" if name == "cpu" else name


def save(folder: Path, device: Any, groups: Mapping[str, Iterable[Row]], facts: Mapping[str, Any]) -> Path:
    """Write the rows of the groups that ran into the result file of this device and these versions.

    Groups that did not run keep what the file has of them. ``load`` is the machine's when a group ended.

    Args:
        folder: Folder of result files; made where it is not there.
        device: Device that was measured, as torch names it.
        groups: Rows of each group that ran, by the name of the group.
        facts: What else decides the numbers, such as the number of threads.

    Returns:
        The file.
    """
    known = versions(("flmm-plugin", "torch", "transformers"))
    words = device_words(device)
    path = folder / f"{file_stem(words, {name: known[name] for name in ('torch', 'transformers')})}.json"
    folder.mkdir(parents=True, exist_ok=True)
    with files.turn(path, "writing results"):
        before = files.read_json(path, DataNotFound) if path.is_file() else {}
        record = {
            "device": words,
            **facts,
            "groups": {
                **before.get("groups", {}),
                **{
                    name: {
                        "versions": known,
                        "load": round(os.getloadavg()[0], 1),
                        "rows": [_short(asdict(row)) for row in rows],
                    }
                    for name, rows in groups.items()
                },
            },
        }
        files.write(path, json.dumps(record, indent=1) + "\n")
    return path


def _short(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries that say something, numbers with five digits."""
    kept = {name: value for name, value in entries.items() if value not in (None, "", 0) or name == "value"}
    return {name: float(f"{value:.5g}") if isinstance(value, float) else value for name, value in kept.items()}


def load(path: Path) -> dict[str, Row]:
    """Read all rows of a result file, by name."""
    groups = files.read_json(path, DataNotFound)["groups"]
    return {entry["name"]: Row(**entry) for group in groups.values() for entry in group["rows"]}


def write_tables(path: Path, before: Path | None = None) -> list[Path]:
    """Write two tables of a result file beside it: passes by size of model, and numbers beside what was to be reached.

    Args:
        path: Result file that `save` wrote.
        before: An older one, for a column of its own; None for no such column.

    Returns:
        The files, the result file first.
    """
    rows, old = load(path), {} if before is None else load(before)
    record = files.read_json(path, DataNotFound)
    facts = {"device": record["device"], **next(iter(record["groups"].values()))["versions"]}
    sizes = []
    for name in [name.removesuffix("/plain") for name in rows if name.startswith("pass/") and name.endswith("/plain")]:
        plain, own, capture, paper = (rows[f"{name}/{arm}"] for arm in ("plain", "self", "capture", "paper"))
        shape, matrices = name.removeprefix("pass/").replace("/", ", "), rows[f"{name}/matrices"]
        sizes.append(
            [shape, plain.note, plain, own, capture.minima, capture.null, paper, rows[f"{name}/rows"], matrices]
        )
    heading = (
        "model", "sequence", "plain pass", "capture: self time", "capture: whole", "null arm", "the paper's way",
        "rows", "the paper's matrices",
    )  # fmt: skip
    targets = []
    for target in TARGETS:
        row = rows.get(target.name)
        if row is not None:
            bar = written(target.bar, row.unit)
            was = [] if before is None else [old.get(target.name, "")]
            targets.append([target.title, *was, row, row.scatter, row.null, bar, target.reached(row)])
    columns = ["what", *([] if before is None else ["before"]), "now", "scatter", "null arm", "bar", "reached"]
    found = {"sizes": table(heading, sizes, facts), "targets": table(columns, targets, facts)}
    return [path, *(files.write(path.with_name(f"{path.stem}-{name}.csv"), text) for name, text in found.items())]


def table(columns: Sequence[str], lines: Iterable[Sequence[Any]], facts: Mapping[str, Any]) -> str:
    """Return a CSV with what made it in ``#`` lines above: the form that tables of Markdown are filled from."""
    out = io.StringIO()
    out.writelines(f"# {name}: {value}\n" for name, value in facts.items())
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(lines)
    return out.getvalue()
