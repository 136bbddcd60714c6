"""Say for every image-text-to-text type of the installed transformers whether it grounds, and write CSV and table.

    python docs/make_types.py                 builds and tries every type (some minutes), then writes
    python docs/make_types.py --types a,b     these types alone; lines of others stay
    python docs/make_types.py --check         fails where a type falls out of "grounds", or is a bug
    python docs/make_types.py --render        the table alone, from the committed CSV

Writes ``docs/results/conformance_types.csv`` (one line per version of transformers and type), and
``docs/conformance.md`` between its marks. The instances and the checks are those of ``tests/flmm_plugin/backbones``.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CSV = ROOT / "docs" / "results" / "conformance_types.csv"
PAGE = ROOT / "docs" / "conformance.md"
BEGIN, END = "<!-- types:begin -->", "<!-- types:end -->"
COLUMNS = ("transformers", "type", "verdict", "reason")

Row = dict[str, str]


def main(argv: Sequence[str] | None = None) -> int:
    """Try types and write, or compare. Returns 1 if a type ends in a foreign exception or no longer grounds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--types", default="", metavar="A,B", help="these types alone")
    parser.add_argument("--check", action="store_true", help="write nothing; compare with the CSV")
    parser.add_argument("--render", action="store_true", help="only make the table from the CSV")
    args = parser.parse_args(argv)
    rows = read_csv()
    wrong: list[str] = []
    if not args.render:
        new = tried([one for one in args.types.split(",") if one], check=args.check, known=rows)
        wrong = problems(new, rows)
        if not args.check:
            replaced = {(row["transformers"], row["type"]) for row in new}
            rows = [row for row in rows if (row["transformers"], row["type"]) not in replaced] + new
            rows.sort(key=lambda row: (_ordered(row["transformers"]), row["type"]))
            with CSV.open("w", encoding="utf-8", newline="") as stream:
                writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
    if not args.check:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n\n{table(rows)}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


def tried(types: Sequence[str], *, check: bool, known: Sequence[Row]) -> list[Row]:
    """Verdicts of types now; where only comparing, those of the types that should ground."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    sys.path.append(str(ROOT / "tests" / "flmm_plugin"))
    from backbones import tiny_types, verdicts  # type: ignore[import-not-found]
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    version = metadata.version("transformers")
    rows = []
    asked = types or (grounding(known, version) if check else tiny_types.TYPES)
    for kind in asked:
        if kind not in tiny_types.TYPES:
            continue
        with tempfile.TemporaryDirectory() as folder:
            found: Any = verdicts.verdict_of(kind, Path(folder) / "model")
        print(f"{kind}: {found.kind} {found.reason}", flush=True)
        rows.append(dict(zip(COLUMNS, (version, kind, found.kind, found.reason), strict=True)))
    return rows


def grounding(rows: Sequence[Row], version: str) -> list[str]:
    """Types that ground with a version of transformers; with a version that was not tried, those of any other."""
    here = [row for row in rows if row["transformers"] == version] or rows
    return sorted({row["type"] for row in here if row["verdict"] == "grounds"})


def problems(new: Sequence[Row], old: Sequence[Row]) -> list[str]:
    """What must not be, a line each."""
    wrong = [f"{row['type']} ends in a foreign exception: {row['reason']}" for row in new if row["verdict"] == "bug"]
    should = {kind for row in new[:1] for kind in grounding(old, row["transformers"])}
    fallen = [row for row in new if row["type"] in should and row["verdict"] != "grounds"]
    return wrong + [f"{row['type']} does not ground any more ({row['verdict']}): {row['reason']}" for row in fallen]


def table(rows: Sequence[Row]) -> str:
    """One table per version of transformers."""
    parts: list[str] = []
    for version in sorted({row["transformers"] for row in rows}, key=_ordered):
        here = [row for row in rows if row["transformers"] == version]
        counts: Mapping[str, int] = Counter(row["verdict"] for row in here)
        said = ", ".join(f"{counts[kind]} {kind}" for kind in ("grounds", "chats", "refused", "not built", "bug"))
        lines = [
            f"transformers {version}, {len(here)} types: {said}.",
            "",
            "| type | verdict | reason |",
            "|---|---|---|",
        ]
        lines += [f"| {row['type']} | {row['verdict']} | {row['reason'].replace('|', chr(92) + '|')} |" for row in here]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def read_csv() -> list[Row]:
    """The committed lines; none yet where there is no file."""
    if not CSV.is_file():
        return []
    with CSV.open(encoding="utf-8", newline="") as stream:
        return [dict(row) for row in csv.DictReader(stream)]


def _ordered(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


if __name__ == "__main__":
    sys.exit(main())
