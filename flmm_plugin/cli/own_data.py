"""``flmm data add`` and ``remove``: somebody's own data as a task of both harnesses, and to train on."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

_FORMAT = """\
FILE is a COCO file: `images` with id, file_name, height, width; `annotations` with id, image_id, segmentation (polygons
or run-length code) and the words in `phrase` or `caption`. Annotations of a picture with the same words are objects of
one phrase; an empty segmentation says that nothing is there. File and pictures stay where they are. docs/own-data.md
"""


def add_own_actions(actions: Any) -> None:
    """Add ``add`` and ``remove`` to the parser of ``flmm data``."""
    from flmm_plugin.data.own import DEFAULT_SPLIT

    add = actions.add_parser(
        "add",
        help="your own data as a task: a COCO file with a phrase per annotation",
        description="Add data of your own; every odd entry is listed, and phrases that cannot be used are left out.",
        epilog=_FORMAT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add.add_argument("name", metavar="NAME", help="what it is to be called: letters, digits, _ and -")
    add.add_argument("file", metavar="FILE", type=Path, help="COCO file with a `phrase` or `caption` per annotation")
    add.add_argument("--images", metavar="DIR", type=Path, required=True, help="folder that its file names are in")
    add.add_argument("--split", metavar="NAME", default=DEFAULT_SPLIT, help="such as train (default: %(default)s)")
    add.set_defaults(run=_add)

    remove = actions.add_parser(
        "remove", help="forget your own data; its files stay", description="Forget data of your own; its files stay."
    )
    remove.add_argument("name", metavar="NAME", help="as it was added")
    remove.add_argument("--split", metavar="NAME", help="this split alone")
    remove.set_defaults(run=_remove)


def _add(args: argparse.Namespace) -> int:
    from flmm_plugin.data.checking import check
    from flmm_plugin.data.own import OwnSplit, add, own_folder, own_task
    from flmm_plugin.datasets.own import OwnDataset
    from flmm_plugin.errors import BadAnnotation, DataNotFound, UnknownArgument
    from flmm_plugin.tasks.benchmarks import benchmark_of, shipped

    if args.name in (*shipped(), "all"):
        raise UnknownArgument(f"{args.name} is the name of a benchmark of this package; take another one")
    if not args.images.is_dir():
        raise DataNotFound(f"there is no folder {args.images}; --images is the folder that the file names are in")
    own = OwnSplit(args.file.resolve(), args.images.resolve())
    dataset = OwnDataset(args.name, args.split, own)
    if not len(dataset):
        listed = "\n  ".join(map(str, dataset.problems))
        raise BadAnnotation(f"{args.file} has no phrase that can be used; nothing was added\n  {listed}")
    add(args.name, args.split, own)
    counts = Counter(min(len(item.ann_ids), 2) for item in dataset)
    print(
        f"added {args.name} ({args.split}): {len(dataset)} phrases about {len({one.image_id for one in dataset})} "
        f"pictures: {counts[1]} mean one object, {counts[2]} several, {counts[0]} nothing; sha256 {dataset.digest}"
    )
    odd = [one for one in check(benchmark_of(args.name), own_folder(), (args.split,)) if one.status != "ok"]
    for finding in odd:
        print(f"  {finding.status:<4}  {finding.what}: {finding.detail}")
    left_out = sum(problem.dropped for problem in dataset.problems)
    print(f"{len(odd)} odd entries, {left_out} of them left out" if odd else "no odd entry")
    task = own_task(args.name, args.split)
    print(f"score it:  lmms_eval --model flmm_tiny --tasks {task}")
    print(f"           flmm-vlmeval --model flmm_tiny --data OWN_{args.name}")
    print(f"learn it:  {{dataset: {args.name}, split: {args.split}}} in data.parts of a recipe")
    return 0


def _remove(args: argparse.Namespace) -> int:
    from flmm_plugin.data.own import remove

    remove(args.name, args.split)
    print(f"forgot {args.name}{f' ({args.split})' if args.split else ''}; its files stay where they are")
    return 0
