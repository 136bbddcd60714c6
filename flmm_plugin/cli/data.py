"""``flmm data``: list, download, check and prepare the data of the benchmarks."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flmm_plugin.cli.output import markdown_table, note, print_json
from flmm_plugin.cli.own_data import add_own_actions
from flmm_plugin.errors import DataNotFound, FlmmError
from flmm_plugin.files import WORKPLACE, make_folder

if TYPE_CHECKING:
    from flmm_plugin.data.registry import Benchmark, Part
    from flmm_plugin.tasks.data_needs import Use

_SHOWN = 20

_EXAMPLES = """\
examples:
  flmm data list                                  benchmarks: tasks, size of the downloads, what is here
  flmm data list viscot                           its parts: where they are looked for, sources, licences
  flmm data download refcoco --root /data         fetch what is missing; run again to resume
  flmm data check refcoco --root /data --deep     decode every picture too
  flmm data prepare all --root /data              convert annotations once, so that runs start in seconds
  flmm data add mine refs.json --images photos    your own data, as flmm_own_mine; docs/own-data.md
then
  FLMM_DATA=/data lmms_eval --model flmm_tiny --tasks refcoco_seg
"""


def add_subcommand(commands: Any) -> None:
    """Add ``data`` to the parser of ``flmm``."""
    data = commands.add_parser(
        "data",
        help="the benchmarks' data: list, check, prepare, download",
        description="List what each benchmark needs, from where and under which licence; get it, and check it.",
        epilog=_EXAMPLES,
    )
    actions = data.add_subparsers(title="commands", metavar="COMMAND", required=True)

    listing = _action(actions, "list", "what each benchmark needs, from where, its licence and size", _list, many="*")
    listing.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    listing.add_argument("--markdown", action="store_true", help="a Markdown table of parts, sources and licences")

    check = _action(actions, "check", "name each missing or damaged file; exit status 1 if there is one", _check)
    check.add_argument("--deep", action="store_true", help="decode every picture (minutes), not its two ends alone")
    check.add_argument("--all-lines", action="store_true", help=f"name every bad picture, not the first {_SHOWN}")
    check.add_argument("--json", action="store_true", help="one JSON list of all findings")

    _action(actions, "prepare", "convert the annotations once to Arrow, so that a run starts in seconds", _prepare)

    download = _action(
        actions, "download", "fetch, verify and unpack what is missing; run again to resume", _download, "*"
    )
    download.set_defaults(stopped=lambda _: "what has arrived is kept, the same line goes on with it")
    download.add_argument("--tasks", metavar="NAME,...", help="what these tasks and groups read")
    download.add_argument("--recipe", metavar="CONFIG", help="what this training recipe reads: a name or a file")
    for action in (check, download):
        action.add_argument("--split", metavar="NAME,...", help="these splits alone, those of training too (train)")
    download.add_argument("--archive", action="store_true", help="whole archives of pictures, not only those needed")
    download.add_argument(
        "--dry-run", action="store_true", help="say what would be fetched, and what must be done by hand"
    )
    add_own_actions(actions)


def _action(
    actions: Any,
    name: str,
    help_: str,
    run: Callable[[argparse.Namespace, Path, list[Benchmark]], int],
    many: str = "+",
) -> argparse.ArgumentParser:
    """Add a command that runs with the data root and the benchmarks that its words name."""
    parser: argparse.ArgumentParser = actions.add_parser(name, help=help_, description=help_[0].upper() + help_[1:])
    parser.add_argument("names", metavar="NAME", nargs=many, help="a benchmark, or all; `flmm data list` shows them")
    parser.add_argument("--root", type=Path, metavar="DIR", help="data root (default: $FLMM_DATA, else data)")

    def run_with_data(args: argparse.Namespace) -> int:
        from flmm_plugin.data.root import data_root
        from flmm_plugin.tasks.benchmarks import benchmark_of, benchmarks

        named = args.names or vars(args).get("tasks") or vars(args).get("recipe")
        every = not named or "all" in args.names
        chosen = list(benchmarks().values()) if every else [benchmark_of(one) for one in args.names]
        _check_splits(vars(args).get("split"), chosen)
        return run(args, data_root(args.root), chosen)

    parser.set_defaults(run=run_with_data)
    return parser


def _list(args: argparse.Namespace, root: Path, chosen: list[Benchmark]) -> int:
    if args.json:
        print_json(
            [
                {**one.as_json(), "here": {part.what: part.found(root) is not None for part in one.parts}}
                for one in chosen
            ]
        )
    elif args.markdown:
        headings = ("benchmark", "part", "from", "bytes", "hash known", "licence")
        print(markdown_table(headings, [_row(one, part) for one in chosen for part in one.parts]))
    elif args.names and "all" not in args.names:
        print("\n\n".join(_detail(one, root) for one in chosen))
    else:
        print(f"benchmarks, and how many of the parts that they need are under {root}")
        print(f"  {'name':<10} {'here':<13} {'download':>8}  {'to train':>8}  what: its first task")
        for one in chosen:
            sizes = f"{_size(one.size(one.splits)):>8}  {_size(one.size(one.training) if one.training else 0):>8}"
            print(f"  {one.name:<10} {one.here(root):<13} {sizes}  {one.title}: {one.tasks[0]}")
        print("sizes: downloads whose size is stated, for the splits of tasks and for those to train on;")
        print("parts of one archive count once. More: flmm data list NAME")
    return 0


def _size(size: int) -> str:
    if size > 1e8:
        return f"{size / 1e9:.1f} GB"
    return f"{size / 1e6:.1f} MB" if size else "-"


def _row(benchmark: Benchmark, part: Part) -> tuple[str, ...]:
    """Return the cells of a part in the Markdown table, which is the same for every root."""
    source = getattr(part.source, "archive", part.source)
    hashed = "yes" if getattr(source, "sha256", None) else ""
    return benchmark.name, part.what, part.origin, str(part.size or ""), hashed, part.licence


def _detail(benchmark: Benchmark, root: Path) -> str:
    lines = [f"{benchmark.name}: {benchmark.title}", f"  paper  {benchmark.paper}"]
    lines.append(f"  tasks  {', '.join(benchmark.tasks)}")
    for part in benchmark.parts:
        missing = "absent" if part.optional else "MISSING"
        state = missing if part.found(root) is None else "have"
        lines.append(f"  {state:<7}  {part.what}")
        lines.append(f"      places   {', '.join(part.places)}")
        lines.append(f"      from     {_origin_and_size(part)}")
        lines.append(f"      licence  {part.licence}")
    return "\n".join(lines)


def _origin_and_size(part: Part) -> str:
    return part.origin + (f" ({part.size} bytes)" if part.size else "")


def _check(args: argparse.Namespace, root: Path, chosen: list[Benchmark]) -> int:
    from tqdm import tqdm

    from flmm_plugin.data.checking import check

    found = []
    shown = sys.maxsize if args.all_lines else _SHOWN
    for benchmark in chosen:
        if not args.json:
            print(f"{benchmark.name} under {root}")
        pictures = 0
        for finding in check(benchmark, root, _splits(args.split, benchmark), deep=args.deep):
            found.append({"benchmark": benchmark.name, **asdict(finding)})
            is_picture = finding.what.startswith("picture ")
            pictures += is_picture
            if not args.json and not (is_picture and pictures > shown):
                tqdm.write(f"  {finding.status:<4}  {finding.what}: {finding.detail}")
        if pictures > shown and not args.json:
            print(f"  ...   {pictures - shown} more bad pictures; name them with --all-lines")
    bad = sum(one["status"] == "bad" for one in found)
    if args.json:
        print_json(found)
    elif bad:
        note(f"\n{bad} bad: see the lines marked so")
    return 1 if bad else 0


def _prepare(args: argparse.Namespace, root: Path, chosen: list[Benchmark]) -> int:
    from flmm_plugin.data.registry import Hub
    from flmm_plugin.datasets.prepared import writing

    failures = 0
    if root.exists():
        make_folder(root / WORKPLACE / "prepared")
    for benchmark in chosen:
        with writing() as written:
            for name in benchmark.splits:
                try:
                    split = benchmark.read(root, name)
                except DataNotFound as exc:
                    failures += 1
                    print(f"  skip  {benchmark.name} {name}: {exc}")
                except FlmmError as exc:
                    failures += 1
                    print(f"  bad   {benchmark.name} {name}: {type(exc).__name__}: {exc}")
                else:
                    print(f"  ok    {benchmark.name} {name}: {split.items} {split.unit}")
        for path in dict.fromkeys(written):
            print(f"  wrote {path} ({path.stat().st_size} bytes)")
        if not written:
            parquet = all(isinstance(part.source, Hub) and "data/*" in part.source.patterns for part in benchmark.parts)
            print(f"  {benchmark.name}: nothing to convert{', it is parquet' if parquet else ''}")
    return 1 if failures else 0


def _download(args: argparse.Namespace, root: Path, chosen: list[Benchmark]) -> int:
    from flmm_plugin.needs import missing, offline, size_text
    from flmm_plugin.tasks.data_needs import needs_of

    needs = missing(needs_of(_uses(args, root, chosen), archive=args.archive, optional=True))
    if not args.dry_run:
        make_folder(root)
    failures = 0
    by_hand = [need for need in needs if need.bring is None]
    for need in needs:
        said = f"{need.what}: {need.source} ({size_text(need.size)})   licence: {need.licence}"
        if need.bring is None:
            print(f"  by hand   {need.what}: {need.command}")
        elif args.dry_run or offline():
            print(f"  would get  {said}")
        else:
            print(f"  get  {said}")
            try:
                need.bring()
                print(f"  got   {need.what}")
            except FlmmError as exc:
                failures += 1
                print(f"  FAILED  {need.what}: {exc}")
    if by_hand:
        print(f"{len(by_hand)} must be got by hand, from the pages named above: a form, a licence or no stable address")
    if not failures and not args.dry_run and args.names:
        print(f"next: flmm data check {' '.join(args.names)} --root '{root}'")
    return 1 if failures or (offline() and needs and not args.dry_run) else 0


def _splits(asked: str | None, benchmark: Benchmark) -> tuple[str, ...]:
    """Return the splits of a benchmark that were asked for; those of its tasks if none was."""
    known = (*benchmark.splits, *benchmark.training)
    return tuple(split for split in known if split in asked.split(",")) if asked else benchmark.splits


def _check_splits(asked: str | None, chosen: list[Benchmark]) -> None:
    """See that each split that was asked for is one of some chosen benchmark.

    Raises:
        UnknownArgument: None has it.
    """
    from flmm_plugin.datasets.reader import known_name

    known = [split for one in chosen for split in (*one.splits, *one.training)]
    for split in asked.split(",") if asked else ():
        known_name("split", split, dict.fromkeys(known))


def _uses(args: argparse.Namespace, root: Path, chosen: list[Benchmark]) -> list[Use]:
    """Return the splits that a command line asks for: by benchmark, by task and by recipe."""
    from flmm_plugin.datasets.reader import known_name
    from flmm_plugin.tasks.data_needs import Use, uses_of_recipe, uses_of_tasks
    from flmm_plugin.tasks.task_files import group_files, task_files
    from flmm_plugin.training.recipe import read_recipe

    uses = [Use(one, split, root) for one in chosen for split in _splits(args.split, one)]
    tasks = args.tasks.split(",") if args.tasks else []
    for name in tasks:
        known_name("task of this package", name, [*task_files(), *group_files()])
    uses += uses_of_tasks(tasks, root)
    if args.recipe:
        uses += uses_of_recipe(read_recipe(args.recipe, [f"data.root={root}"] if args.root else []), args.recipe)
    return uses
