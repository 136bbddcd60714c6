"""Run the conformance tests of the backbones and write what passed: a CSV, a table, and what ``flmm doctor`` knows.

    python docs/make_conformance.py                        runs the tests (a minute or two), then writes
    python docs/make_conformance.py --junit report.xml     writes from a report of pytest --junitxml, made here
    python docs/make_conformance.py --render               the table alone, from the committed CSV

Writes ``docs/results/conformance.csv`` (one line per versions, family and check), ``docs/conformance.md`` between its
marks, and the triples of ``flmm_plugin/verified.json``. Lines of other versions stay, so that running it once in an
environment with the oldest supported transformers and once with the newest gives both.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

from flmm_plugin.errors import DataNotFound
from flmm_plugin.verification import Records, Triple, Verified, read_records, write_records

ROOT = Path(__file__).resolve().parents[1]
SUITE = ROOT / "tests" / "flmm_plugin" / "backbones" / "test_conformance.py"
CSV = ROOT / "docs" / "results" / "conformance.csv"
PAGE = ROOT / "docs" / "conformance.md"
RECORDS = ROOT / "flmm_plugin" / "verified.json"
BEGIN, END = "<!-- table:begin -->", "<!-- table:end -->"
COLUMNS = ("transformers", "torch", "kernel", "family", "check", "passed", "failed", "skipped")

# The suite loads every family with transformers' default kernel; the check of rows runs eager beside it.
KERNEL = "sdpa"
_NAME = re.compile(r"^test_(?P<check>\w+)\[(?P<ids>.+)\]$")

Row = dict[str, str]


def main(argv: Sequence[str] | None = None) -> int:
    """Run or read the tests, then write. Returns 1 if a check failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--junit", type=Path, metavar="XML", help="a report that pytest --junitxml wrote, here and now")
    parser.add_argument("--render", action="store_true", help="only make the table from the CSV")
    args = parser.parse_args(argv)
    rows = read_csv(CSV)
    if not args.render:
        new = rows_of(report(args.junit), Triple(_version("transformers"), _version("torch"), KERNEL))
        rows = merged(rows, new)
        CSV.parent.mkdir(parents=True, exist_ok=True)
        CSV.write_text(as_csv(rows), encoding="utf-8")
        write_records(verified(read_records(RECORDS), rows), RECORDS)
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(between_marks(page, table(rows)), encoding="utf-8")
    failed = [row for row in rows if int(row["failed"])]
    for row in failed:
        print(f"{row['family']}: {row['check']} failed with transformers {row['transformers']}", file=sys.stderr)
    print(f"{len(rows)} lines in {CSV.relative_to(ROOT)}, {PAGE.relative_to(ROOT)} and {RECORDS.relative_to(ROOT)}")
    return 1 if failed else 0


def report(path: Path | None) -> str:
    """A JUnit report: the one given, or that of a run now."""
    if path is not None:
        if not path.is_file():
            raise DataNotFound(f"there is no report {path}; make one with: pytest {SUITE} --junitxml {path}")
        return path.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "conformance.xml"
        # -P: what is installed is tested, not the checkout that this is started from.
        command = [sys.executable, "-P", "-m", "pytest", "-q", "--import-mode=importlib", "-p", "no:cacheprovider"]
        subprocess.run([*command, str(SUITE), f"--junitxml={out}"], cwd=ROOT, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        if not out.is_file():
            raise DataNotFound("pytest wrote no report; see above")
        return out.read_text(encoding="utf-8")


def rows_of(junit: str, triple: Triple) -> list[Row]:
    """One row per family and check; a parametrised check counts every case of a family.

    Args:
        junit: Content of a JUnit report with ``test_facts[family]`` for every family, and any number of
            ``test_check[family]`` and ``test_check[family-case]``, the ids in any order.
        triple: What the tests ran with.
    """
    matches = [(case, _NAME.match(case.get("name", ""))) for case in ElementTree.fromstring(junit).iter("testcase")]
    cases = [(case, match["check"], match["ids"]) for case, match in matches if match is not None]
    # pytest joins the ids of several parameters; this check has no other than the family.
    families = {ids for _, check, ids in cases if check == "facts"}
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for case, check, ids in cases:
        found = [part for part in (ids, *ids.split("-")) if part in families]
        if not found:
            continue
        tags = {child.tag for child in case}
        outcome = "failed" if tags & {"failure", "error"} else "skipped" if "skipped" in tags else "passed"
        counts[found[0], check][outcome] += 1
    if not counts:
        raise DataNotFound("the report has no test of a family; is it that of tests/flmm_plugin/backbones?")
    return [
        {
            "transformers": triple.transformers,
            "torch": triple.torch,
            "kernel": triple.kernel,
            "family": family,
            "check": check.replace("_", " "),
            **{outcome: str(count[outcome]) for outcome in ("passed", "failed", "skipped")},
        }
        for (family, check), count in sorted(counts.items())
    ]


def merged(old: Iterable[Row], new: Sequence[Row]) -> list[Row]:
    """Rows of other versions, and the new ones in place of those of theirs."""
    replaced = {(row["transformers"], row["torch"], row["kernel"]) for row in new}
    kept = [row for row in old if (row["transformers"], row["torch"], row["kernel"]) not in replaced]
    return sorted([*kept, *new], key=lambda row: (_ordered(row["transformers"]), row["family"], row["check"]))


def verified(records: Records, rows: Sequence[Row]) -> Records:
    """The records with one triple for each family none of whose checks failed."""
    passed: dict[tuple[str, Triple], int] = defaultdict(int)
    broken: set[tuple[str, Triple]] = set()
    for row in rows:
        key = row["family"], Triple(row["transformers"], row["torch"], row["kernel"])
        passed[key] += int(row["passed"])
        if int(row["failed"]):
            broken.add(key)
    good = [
        Verified(family, triple, n) for (family, triple), n in passed.items() if n and (family, triple) not in broken
    ]
    records = Records((), records.fingerprints)
    for family in sorted({one.family for one in good}):
        records = records.with_triples(family, [one for one in good if one.family == family])
    return records


def table(rows: Sequence[Row]) -> str:
    """Families x checks, one table per versions; every cell says how many cases passed."""
    parts: list[str] = []
    versions = sorted(
        {(row["transformers"], row["torch"], row["kernel"]) for row in rows}, key=lambda one: _ordered(one[0])
    )
    for one in versions:
        here = [row for row in rows if (row["transformers"], row["torch"], row["kernel"]) == one]
        checks, families = sorted({row["check"] for row in here}), sorted({row["family"] for row in here})
        cells = {(row["family"], row["check"]): _cell(row) for row in here}
        lines = ["| family | " + " | ".join(checks) + " |", "|---" * (len(checks) + 1) + "|"]
        lines += [
            f"| {family} | " + " | ".join(cells.get((family, check), "") for check in checks) + " |"
            for family in families
        ]
        parts.append(f"### {Triple(*one)}\n\n" + "\n".join(lines))
    return "\n\n".join(parts)


def _cell(row: Mapping[str, str]) -> str:
    passed, failed, skipped = (int(row[name]) for name in ("passed", "failed", "skipped"))
    if failed:
        return f"**{failed} of {passed + failed} failed**"
    return f"{passed} passed" + (f", {skipped} skipped" if skipped else "") if passed else "skipped"


def as_csv(rows: Iterable[Row]) -> str:
    """CSV with the command that makes it in its first line."""
    out = io.StringIO()
    out.write("# python docs/make_conformance.py, once in an environment of each version\n")
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def read_csv(path: Path) -> list[Row]:
    """Rows of the committed CSV; none if there is none yet."""
    if not path.is_file():
        return []
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return [dict(row) for row in csv.DictReader(lines)]


def between_marks(page: str, content: str) -> str:
    """The page with what stands between its marks replaced.

    Raises:
        DataNotFound: It has no marks.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise DataNotFound(f"{PAGE} needs the lines {BEGIN} and {END} where the table belongs")
    return f"{before}{BEGIN}\n\n{content}\n\n{END}{after}"


def _version(name: str) -> str:
    return metadata.version(name).partition("+")[0]


def _ordered(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


if __name__ == "__main__":
    sys.exit(main())
