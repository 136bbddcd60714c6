"""Remake what README shows: the embedded model's results as CSV, its tables, and its picture.

    python docs/make_results.py                     measures (some minutes), then writes
    python docs/make_results.py --from result.json  writes from what `flmm tiny evaluate --json` printed earlier
    python docs/make_results.py --from result.json --again other.json
                                                    the same, and the bars beside a measurement of another seed
    python docs/make_results.py --run runs/tiny ... also keeps record and log of the run whose heads are shipped

Writes ``docs/results/tiny.csv`` (grounding and controls), ``tiny_chat.csv`` and ``tiny_bars.csv`` beside it, pictures
in ``docs/images`` and the marked places of README.md and docs/tiny.md. Every number in README comes from these files.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from flmm_plugin.tiny.evaluate import HEADINGS, MEASURED

ROOT = Path(__file__).resolve().parents[1]
PICTURE_BEGIN, PICTURE_END = "<!-- picture:begin -->", "<!-- picture:end -->"
GROUNDING_COLUMNS = {"method": "method", **HEADINGS, "n": "phrases"}
CHAT_COLUMNS = {"kind": "question", "exact": "exact", "chance": "chance", "n": "asked"}
#: What the embedded model was to reach, wherever a number of that kind stands.
CHAT_BAR, DECODER_BAR, REFINED_BAR = 0.9, 0.65, 0.75


def main(argv: Sequence[str] | None = None) -> int:
    """Measure or read a measurement, then write CSV, picture and README."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--scenes", type=int, default=300)
    parser.add_argument("--from", dest="source", type=Path, help="JSON of `flmm tiny evaluate --json`")
    parser.add_argument("--again", type=Path, help="JSON of the same for another seed")
    parser.add_argument("--run", type=Path, help="folder of `flmm train flmm_tiny` that made the shipped heads")
    args = parser.parse_args(argv)
    measured = json.loads(args.source.read_text(encoding="utf-8")) if args.source else measure(args.seed, args.scenes)
    results = ROOT / "docs" / "results"
    results.mkdir(parents=True, exist_ok=True)
    (results / "tiny_evaluate.json").write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    chat = [{"kind": kind, **values} for kind, values in measured["chat"].items()]
    chat += [
        {
            "kind": f"caption names, {which}",
            "exact": measured["captions"][which],
            "chance": None,
            "n": measured["captions"]["n"],
        }
        for which in ("precision", "recall")
    ]
    (results / "tiny.csv").write_text(as_csv(measured["grounding"], GROUNDING_COLUMNS, measured), encoding="utf-8")
    (results / "tiny_chat.csv").write_text(as_csv(chat, CHAT_COLUMNS, measured), encoding="utf-8")
    again = results / "tiny_evaluate_again.json"
    if args.again:
        again.write_text(
            json.dumps(json.loads(args.again.read_text(encoding="utf-8")), indent=1) + "\n", encoding="utf-8"
        )
    if again.exists():
        other = json.loads(again.read_text(encoding="utf-8"))
        (results / "tiny_bars.csv").write_text(bars(measured, other), encoding="utf-8")
    if args.run:
        record = scrubbed(json.loads((args.run / "run.json").read_text(encoding="utf-8")))
        (results / "train_tiny_run.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        shutil.copyfile(args.run / "log.jsonl", results / "train_tiny_log.jsonl")
    picture = ROOT / "docs" / "images" / "grounded.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    grounded_scenes(measured["seed"]).save(picture, optimize=True)
    example_scene().save(picture.parent / "scene.png", optimize=True)
    training_figure(results / "tiny_lmm_log.jsonl").savefig(picture.parent / "tiny_training.png", dpi=110)
    readme = ROOT / "README.md"
    readme.write_text(with_picture(readme.read_text(encoding="utf-8")), encoding="utf-8")
    from flmm_plugin.reports import tables

    return tables.main([str(readme), str(ROOT / "docs" / "tiny.md")])


def scrubbed(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's record without paths of the machine that it ran on: of each, the last part."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(one) for key, one in value.items()}
        if isinstance(value, list):
            return [plain(one) for one in value]
        return Path(value).name if isinstance(value, str) and value.startswith("/") else value

    found: dict[str, Any] = plain(record)
    return found


def measure(seed: int, scenes: int) -> dict[str, Any]:
    """Run ``flmm tiny evaluate``; its progress is shown."""
    flmm = Path(sysconfig.get_path("scripts")) / "flmm"
    command = [str(flmm), "tiny", "evaluate", "--seed", str(seed), "--scenes", str(scenes), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    measured: dict[str, Any] = json.loads(done.stdout)
    return measured


def as_csv(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], measured: Mapping[str, Any]) -> str:
    """Rows under readable headings, three decimals, with where they come from in ``#`` lines above."""
    out = io.StringIO()
    out.write(f"# flmm tiny evaluate --seed {measured['seed']} --scenes {measured['scenes']} --json\n")
    for name, value in measured["provenance"].items():
        out.write(f"# {name}: {value}\n")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns.values())
    writer.writerows([_cell(row[name]) for name in columns] for row in rows)
    return out.getvalue()


def against_bars(measured: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """What has a bar: its name, the bar, what was reached."""
    found = {f"chat: {kind}": (CHAT_BAR, values["exact"]) for kind, values in measured["chat"].items()}
    for which in ("precision", "recall"):
        found[f"captions: {which} of names"] = (CHAT_BAR, measured["captions"][which])
    row = next(row for row in measured["grounding"] if row["method"] == MEASURED)
    for place in ("caption", "question"):
        found[f"mask decoder alone, cIoU in {place}s"] = (DECODER_BAR, row[f"{place}_decoder_ciou"])
        found[f"refined, cIoU in {place}s"] = (REFINED_BAR, row[f"{place}_refined_ciou"])
    return found


def bars(measured: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """CSV: every bar beside both measurements.

    Raises:
        SystemExit: They are of the same seed, or of different heads.
    """
    if measured["seed"] == other["seed"]:
        raise SystemExit(f"both measurements are of seed {other['seed']}; make one with `flmm tiny evaluate --seed N`")
    if measured["provenance"]["heads_sha256"] != other["provenance"]["heads_sha256"]:
        raise SystemExit("the two measurements are of different heads; make that of --again anew")
    out = io.StringIO()
    for one in (measured, other):
        out.write(f"# flmm tiny evaluate --seed {one['seed']} --scenes {one['scenes']} --json\n")
    for name, value in measured["provenance"].items():
        out.write(f"# {name}: {value}\n")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["what", "bar", f"seed {measured['seed']}", f"seed {other['seed']}"])
    second = against_bars(other)
    for what, (bar, value) in against_bars(measured).items():
        writer.writerow([what, bar, _cell(value), _cell(second[what][1])])
    return out.getvalue()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def example_scene() -> Image.Image:
    """The held-out scene that README grounds: a red, a green and two orange things."""
    from flmm_plugin.tiny.evaluate import held_out
    from flmm_plugin.tiny.scenes import render

    *_, (scene, _) = held_out(2026, 5)
    return Image.fromarray(render(scene))


def grounded_scenes(seed: int, count: int = 3) -> Image.Image:
    """Held-out scenes of three objects or more, side by side, with masks of what the model says of them."""
    from flmm_plugin import GroundedLMM
    from flmm_plugin.figures import in_row, overlay
    from flmm_plugin.tiny.evaluate import held_out
    from flmm_plugin.tiny.language import DESCRIBE_PROMPT
    from flmm_plugin.tiny.scenes import render

    lmm = GroundedLMM.from_pretrained("flmm_tiny")
    crowded = [scene for scene, _ in held_out(seed, 12 * count) if len(scene.things) > 2]
    tiles = []
    for scene in crowded[:count]:
        image = Image.fromarray(render(scene))
        answer = lmm.grounded_chat(image, DESCRIBE_PROMPT, max_new_tokens=72, do_sample=False)
        tiles.append(overlay(image, answer.groundings))
    return in_row(tiles, 16)


def training_figure(log: Path) -> Any:
    """How the embedded LMM learnt, from the committed log of `python -m tools.tiny train`."""
    from matplotlib.figure import Figure

    by_step: dict[int, dict[str, Any]] = {}
    for line in log.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["phase"] == "chat":
            by_step[row["step"]] = row  # a resumed run repeats steps: the last word counts
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.add_subplot()
    skip = {"phase", "step", "stage", "loss", "length", "seconds"}
    for kind in sorted({key for row in by_step.values() for key in row} - skip):
        steps = [step for step in sorted(by_step) if kind in by_step[step]]
        axes.plot(steps, [by_step[step][kind] for step in steps], label=kind.replace("_", " "))
    axes.set(xlabel="step", ylabel="answer tokens predicted right (running mean)", ylim=(0, 1))
    axes.legend(ncols=3, fontsize="small")
    axes.grid(alpha=0.3)
    return figure


def with_picture(readme: str) -> str:
    """README with the picture between its markers."""
    before, found, rest = readme.partition(PICTURE_BEGIN)
    _, closed, after = rest.partition(PICTURE_END)
    if not (found and closed):
        raise SystemExit(f"README.md has no {PICTURE_BEGIN} ... {PICTURE_END}")
    line = "![Held-out scenes with the masks of what the embedded model says about them](docs/images/grounded.png)"
    return f"{before}{PICTURE_BEGIN}\n{line}\n{PICTURE_END}{after}"


if __name__ == "__main__":
    sys.exit(main())
