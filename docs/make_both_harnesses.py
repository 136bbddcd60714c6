"""Remake docs/results/both_harnesses.md: table 1 with the rows of one model from lmms-eval and from VLMEvalKit.

    python docs/make_both_harnesses.py        in the kit's environment (docs/vlmevalkit.md), which has both harnesses

One command per harness in a work folder, each going on where it stopped, then ``flmm report`` on both folders. The
embedded model, its own world: the same documents and requests in both.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "docs" / "results" / "both_harnesses.md"

#: Tasks of lmms-eval and data sets of the kit; in the kit, choices are answered in words and not by likelihoods.
TASKS = ("flmm_tiny_mme", "flmm_tiny_refcoco", "flmm_tiny_png")
DATA = ("MME_TINY", "MMBench_TINY", "RefCOCO_SEG_TINY", "PNG_TINY")


def main(argv: Sequence[str] | None = None) -> int:
    """Run both harnesses where they have no result yet, then write; 1 if a run failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "both_harnesses", help="default: %(default)s")
    work = parser.parse_args(argv).work.resolve()
    if importlib.util.find_spec("vlmeval") is None:
        print("VLMEvalKit is not here: docs/vlmevalkit.md makes its environment", file=sys.stderr)
        return 1
    for command in commands(work):
        print(" ".join(command), file=sys.stderr)
        if subprocess.run(command, check=False).returncode != 0:
            return 1
    text = written(work)
    for place in (str(work), str(ROOT), str(Path.home())):
        if len(place) > 1 and place in text:
            print(f"the table would name {place}; nothing is written", file=sys.stderr)
            return 1
    TARGET.write_text(text, encoding="utf-8")
    print(f"wrote {TARGET}", file=sys.stderr)
    return 0


def commands(work: Path) -> list[list[str]]:
    """What is run; a harness whose results are there is not run again."""
    scripts = Path(sysconfig.get_path("scripts"))
    lmms_eval, kit = work / "lmms_eval", work / "vlmevalkit"
    first = [str(scripts / "lmms_eval"), "--model", "flmm_tiny", "--tasks", ",".join(TASKS), "--batch_size", "1",
             "--log_samples", "--output_path", str(lmms_eval)]  # fmt: skip
    second = [str(scripts / "flmm-vlmeval"), "--model", "flmm_tiny", "--data", *DATA, "--judge", "exact_matching",
              "--work-dir", str(kit)]  # fmt: skip
    return [second] if list(lmms_eval.rglob("*_results.json")) else [first, second]


def written(work: Path) -> str:
    """The page."""
    from flmm_plugin.reports.comparison import compare
    from flmm_plugin.reports.rendering import render
    from flmm_plugin.reports.result_files import read_results
    from flmm_plugin.reports.table_layouts import LAYOUTS

    runs = read_results([work / "lmms_eval", work / "vlmevalkit"])
    lead = (
        "# One table from both harnesses\n\nMade by `python docs/make_both_harnesses.py`; do not edit. The embedded "
        "model on its own world, answered and scored inside lmms-eval and inside VLMEvalKit, as `flmm report "
        "LMMS_EVAL_RESULTS VLMEVALKIT_RESULTS --table 1 --measured-only` shows it. Beside no published number.\n\n"
    )
    return lead + render([compare(LAYOUTS["1"], runs, published=False)], "md")


if __name__ == "__main__":
    sys.exit(main())
