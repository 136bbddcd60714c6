r"""Put a run of `flmm train flmm_tiny`, and what its heads reach, into docs/results and docs/training.md.

    flmm train flmm_tiny --out runs/tiny
    flmm tiny evaluate --seed 2026 --scenes 150 --no-controls --heads runs/tiny/heads.safetensors --json > trained.json
    lmms_eval --model flmm_tiny --model_args heads=runs/tiny --output_path panel \
        --tasks flmm_tiny_refcoco,flmm_tiny_png,flmm_tiny_reasonseg,flmm_tiny_gcg
    python docs/make_training.py --run runs/tiny --trained trained.json --panel panel/*_results.json

Beside the retrained heads stand those that ship with the package, as ``docs/results/tiny_evaluate.json`` measured them
on the same scenes, and the panel (``docs/results/panel/controls.csv``) in the same tasks. Writes
``docs/results/train_tiny.csv``, ``train_tiny_panel.csv``, ``train_tiny_run.json`` and ``train_tiny_log.jsonl``.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flmm_plugin.tiny.evaluate import HEADINGS, MEASURED

ROOT = Path(__file__).resolve().parents[1]


def main(argv: Sequence[str] | None = None) -> int:
    """Read both measurements, write the files, fill the page."""
    from flmm_plugin.reports.tables import fill

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="folder of the run")
    parser.add_argument("--trained", type=Path, required=True, help="JSON of `flmm tiny evaluate` with the run's heads")
    parser.add_argument("--shipped", type=Path, default=ROOT / "docs" / "results" / "tiny_evaluate.json")
    parser.add_argument("--panel", type=Path, help="lmms-eval's result file of the run's heads on tasks of the panel")
    args = parser.parse_args(argv)
    trained, shipped = (json.loads(path.read_text(encoding="utf-8")) for path in (args.trained, args.shipped))
    record = scrubbed(json.loads((args.run / "run.json").read_text(encoding="utf-8")))
    results = ROOT / "docs" / "results"
    (results / "train_tiny.csv").write_text(table(trained, shipped, record), encoding="utf-8")
    (results / "train_tiny_run.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (results / "train_tiny_log.jsonl").write_text(
        (args.run / "log.jsonl").read_text(encoding="utf-8"), encoding="utf-8"
    )
    if args.panel:
        found = json.loads(args.panel.read_text(encoding="utf-8"))
        (results / "train_tiny_panel.csv").write_text(
            panel_table(found, (results / "panel" / "controls.csv").read_text(encoding="utf-8")), encoding="utf-8"
        )
    page = ROOT / "docs" / "training.md"
    page.write_text(fill(page.read_text(encoding="utf-8"), ROOT), encoding="utf-8")
    return 0


def scrubbed(record: Mapping[str, Any]) -> dict[str, Any]:
    """A run's record without paths of the machine that it ran on: of each, the last part."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(one) for key, one in value.items()}
        if isinstance(value, list):
            return [plain(one) for one in value]
        return Path(value).name if isinstance(value, str) and value.startswith("/") else value

    found: dict[str, Any] = plain(record)
    return found


def table(trained: Mapping[str, Any], shipped: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    """CSV of both heads, with what made the numbers above it."""
    out = io.StringIO()
    said = {
        "flmm train flmm_tiny": f"{record['result']['steps']} steps, {record['result']['seconds']:.0f} s",
        "samples": record["data"]["samples"],
        "phrases": record["data"]["phrases"],
        "sealed LMM": str(record["frozen"][0])[:16],
        "flmm tiny evaluate": f"--seed {trained['seed']} --scenes {trained['scenes']} --no-controls",
        **trained["provenance"],
        "shipped heads": f"--seed {shipped['seed']} --scenes {shipped['scenes']}, "
        f"heads_sha256 {shipped['provenance']['heads_sha256']}",
    }
    out.write("".join(f"# {key}: {value}\n" for key, value in said.items()))
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["heads", *HEADINGS.values(), "keyword F1", "phrases"])
    for name, measured in (("flmm train flmm_tiny", trained), ("shipped", shipped)):
        row = next(one for one in measured["grounding"] if one["method"] == MEASURED)
        numbers = [f"{row[column]:.3f}" for column in HEADINGS]
        writer.writerow([name, *numbers, f"{measured['keywords']['f1']:.3f}", row["n"]])
    return out.getvalue()


def panel_table(found: Mapping[str, Any], controls: str) -> str:
    """CSV: each metric of the panel's tasks that lmms-eval measured with the retrained heads, beside the panel's own.

    Args:
        found: lmms-eval's result file.
        controls: Text of the panel's CSV.
    """
    out = io.StringIO()
    out.write(f"# lmms_eval --tasks {','.join(sorted(found['results']))}, heads of `flmm train flmm_tiny`\n")
    out.write("".join(f"# panel: {line[2:]}\n" for line in controls.splitlines() if line.startswith("# ")))
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["task", "metric", "documents", "flmm train flmm_tiny", "shipped"])
    for row in csv.DictReader(line for line in controls.splitlines() if not line.startswith("#")):
        measured = found["results"].get(row["task"], {})
        value = next((measured[key] for key in measured if key.partition(",")[0] == row["metric"]), None)
        if isinstance(value, (int, float)):
            writer.writerow([row["task"], row["metric"], row["documents"], f"{value:.2f}", row["run"]])
    return out.getvalue()


if __name__ == "__main__":
    raise SystemExit(main())
