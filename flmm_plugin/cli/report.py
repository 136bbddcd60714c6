"""``flmm report``: write tables, figures and a page from result files, beside the paper's numbers."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flmm_plugin import files
from flmm_plugin.cli.output import note, write
from flmm_plugin.errors import UnknownArgument

if TYPE_CHECKING:
    from flmm_plugin.reports.comparison import ComparisonTable
    from flmm_plugin.reports.runs import Run

_EXAMPLES = """\
examples:
  flmm report results/ --table 1                               Table 1, your runs beside the paper's rows
  flmm report results/ stock/ --table 1,A2 --format latex --out tables.tex
  flmm report results/ --table 1 --check                       which of the paper's numbers no run reproduces
  flmm report results/ --table 1 --check table1.md             which numbers of that file no result file supports
  flmm report results/ --figure 6 --out ranks.png              chat rank against ground rank
  flmm report results/ stock/ --html report.html               one page: tables, samples, answers of both models

Results are the --output_path folders of lmms_eval runs and the work folders of VLMEvalKit. Run lmms_eval with
--log_samples: samples can then be shown, and runs that were asked the same questions are recognised. Nothing is
measured here. A number that was not measured as its column says carries a mark, and what a file does not record is "not
recorded".
"""


def add_subcommand(commands: Any) -> None:
    """Add ``report`` to the parser of ``flmm``."""
    from flmm_plugin.reports.rendering import FORMATS
    from flmm_plugin.reports.table_layouts import TABLE_NAMES

    parser = commands.add_parser(
        "report",
        help="tables, figures and a page from result files, beside the paper's numbers",
        description="Read result files of lmms-eval and VLMEvalKit; write the paper's tables with their rows added, "
        "its figures, or one self-contained page.",
        epilog=_EXAMPLES,
    )
    option = parser.add_argument
    option("results", metavar="RESULTS", nargs="*", type=Path, help="result files, or folders of them")
    option(
        "--table",
        action="append",
        metavar="N",
        help=f"of the paper: {', '.join(TABLE_NAMES)}, or all; several with commas",
    )
    option("--format", choices=FORMATS, help="of tables (default: by the ending of --out, else md)")
    option("--out", type=Path, metavar="FILE", help="where to (default: standard output)")
    option("--measured-only", action="store_true", help="leave the paper's rows out")
    option(
        "--check",
        nargs="?",
        const="",
        metavar="FILE",
        help="list the numbers that no result file supports, in FILE or else in the paper's F-LMM rows; "
        "exit status 1 if there are any",
    )
    _add_figure(parser)
    _add_page(parser)
    parser.set_defaults(run=run)


FIGURES = ("6", "recall", "ablation", "samples")


def _add_figure(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("figures (PNG, into --out)")
    option = group.add_argument
    option(
        "--figure",
        choices=FIGURES,
        help="6: chat rank against ground rank; recall: curves over IoU; ablation: bars of Table 5; "
        "samples: pictures with predicted and target masks",
    )
    option("--order", choices=("worst", "best", "document"), default="worst", help="order of --figure samples")
    option("--count", type=int, default=6, metavar="N", help="rows of --figure samples (default: %(default)s)")


def _add_page(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("page")
    option = group.add_argument
    option("--html", type=Path, metavar="OUT", help="write one self-contained page")
    option(
        "--verdict",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a verdict.json of flmm preserve, or its folder, to show first (those under RESULTS are found)",
    )
    option(
        "--page-megabytes",
        type=float,
        default=150,
        metavar="MB",
        help="room for its images; beyond it the best samples are shown without (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Make all outputs that the arguments ask for; return 1 if ``--check`` found unsupported numbers."""
    from flmm_plugin.reports.result_files import read_results

    if not (args.table or args.html or args.figure or args.check is not None):
        raise UnknownArgument(
            "say what to make: --table 1, --figure 6, --html report.html or --check; flmm report --help"
        )
    if args.check and Path(args.check).is_dir():  # `--check results/`: the folder is a result, not the file to check
        args.results, args.check = [*args.results, Path(args.check)], ""
    if not args.results and args.figure != "6":
        raise UnknownArgument("give result files or folders: flmm report RESULTS --table 1; flmm report --help")
    if args.figure and args.out is None:
        raise UnknownArgument(f"say where to write the picture: --figure {args.figure} --out {args.figure}.png")
    if args.out is not None:
        files.check_file_place(args.out, parents=False)
    if args.html is not None:
        files.check_file_place(args.html)
    runs = read_results(args.results)
    if args.check is not None:
        return _check(args, runs)
    if args.html:
        _write_page(args, runs)
    if args.figure:
        write(args.out, _figure(args, runs))
    elif args.table and (args.out or not args.html):
        _write_tables(args, runs)
    return 0


def _compared(args: argparse.Namespace, runs: Sequence[Run], names: Sequence[str]) -> list[ComparisonTable]:
    from flmm_plugin.reports.comparison import compare
    from flmm_plugin.reports.table_layouts import layouts_of

    return [
        compare(layout, runs, published=not args.measured_only) for layout in layouts_of(",".join(names).split(","))
    ]


def _write_tables(args: argparse.Namespace, runs: Sequence[Run]) -> None:
    from flmm_plugin.reports.rendering import render

    endings = {".csv": "csv", ".tex": "latex", ".html": "html"}
    form = args.format or endings.get(args.out.suffix.lower() if args.out else "", "md")
    text = render(_compared(args, runs, args.table), form)
    if args.out is None:
        sys.stdout.write(text)
    else:
        write(args.out, text)


def _figure(args: argparse.Namespace, runs: Sequence[Run]) -> bytes:
    from flmm_plugin.reports import charts
    from flmm_plugin.reports.comparison import compare
    from flmm_plugin.reports.sample_files import read_samples
    from flmm_plugin.reports.sample_sheet import sample_sheet
    from flmm_plugin.reports.table_layouts import LAYOUTS

    if args.figure == "recall":
        return charts.recall_chart(read_samples(runs))
    if args.figure == "ablation":
        return charts.ablation_chart(_compared(args, runs, ["5"]))
    if args.figure == "samples":
        buffer = io.BytesIO()
        sample_sheet(read_samples(runs), args.count, order=args.order).save(buffer, "PNG", optimize=True)
        return buffer.getvalue()
    points, lacking = charts.ranks_of(compare(LAYOUTS["1"], runs))
    for name, columns in lacking.items():
        note(f"not in the figure: {name}, which lacks (or may not be compared in) {', '.join(columns)}")
    return charts.rank_chart({"printed in Figure 6": charts.published_ranks(), "computed from Table 1": points})


def _write_page(args: argparse.Namespace, runs: Sequence[Run]) -> None:
    from flmm_plugin.reports.explorer import write_explorer
    from flmm_plugin.reports.sample_files import read_samples
    from flmm_plugin.reports.verdicts import read_verdicts

    tables = _compared(args, runs, args.table or ["all"])
    facts = write_explorer(
        args.html,
        [table for table in tables if args.table or table.measured],
        read_samples(runs),
        title="Measured beside published",
        notes=["Made from result files alone; a superscript says what was measured differently, a tooltip says how."],
        verdicts=read_verdicts([*args.results, *args.verdict]),
        megabytes=args.page_megabytes,
        progress=sys.stderr.isatty(),
    )
    note(f"wrote {facts.path}: {facts.samples} samples, {facts.pictures} pictures")
    if facts.left_out or facts.unreadable:
        note(f"{facts.left_out} pictures left out for size, {facts.unreadable} could not be read")


def _check(args: argparse.Namespace, runs: Sequence[Run]) -> int:
    from flmm_plugin.reports.checking import gaps, read_table, unsupported

    tables = _compared(args, runs, args.table or ["all"])
    if args.check:
        found, what = unsupported(read_table(Path(args.check)), tables), f"numbers of {args.check}"
    else:
        found = [gap for table in tables for gap in gaps(table)]
        what = "of the paper's F-LMM numbers in these tables"
    for one in found:
        print(one)
    note(f"{len(found)} {what} without a result file that supports them")
    return 1 if found else 0
