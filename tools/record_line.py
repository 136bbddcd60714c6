"""Record a terminal in which a user types the line in an empty home: ``docs/results/the_line_<model>.txt``.

    python tools/record_line.py                     for both models
    python tools/record_line.py flmm_llava --out .  for one, into another folder

The servers are those of ``tests/loopback``: nothing leaves this machine.
"""

from __future__ import annotations

import argparse
import platform
import re
import sys
import tempfile
import types
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MODELS = ("flmm_deepseekvl", "flmm_llava")
TASKS = "mme,refcoco_seg"

HEAD = """\
Recorded by `python tools/record_line.py` with {versions}.

THE SERVERS WERE PLAYED ON THIS MACHINE AND HELD SMALL RANDOM STAND-INS: a random {model} of 2 layers, random heads in
the released layout, a random SAM of one layer in Meta's layout, RefCOCO with {pictures} pictures of coloured shapes and
MME with 4 questions. Addresses, names, layouts and requests are those of the real ones. Numbers and times mean nothing.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Record the line for each model."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results")
    args = parser.parse_args(argv)
    # Some package installs a `tests` of its own, which would be found first.
    package: Any = types.ModuleType("tests")
    package.__path__ = [str(ROOT / "tests")]
    sys.modules["tests"] = package
    from tests.loopback.published import publish

    with tempfile.TemporaryDirectory() as folder:
        published = publish(Path(folder))
        for model in args.models:
            text = record(model, published)
            (args.out / f"the_line_{model.removeprefix('flmm_')}.txt").write_text(text, encoding="utf-8")
    return 0


def record(model: str, published: Path) -> str:
    """Run what a user would, and write it down.

    Args:
        model: Name as for ``--model``, such as ``flmm_llava``.
        published: What the servers hold, as `tests.loopback.published.publish` wrote it.

    Raises:
        SystemExit: The line did not give both numbers; the output is in the message.
    """
    from tests.loopback.published import SPLITS, stock
    from tests.loopback.world import World

    versions = ", ".join(f"{name} {version(name)}" for name in ("flmm-plugin", "lmms-eval", "transformers", "torch"))
    shown = HEAD.format(
        versions=f"{versions}, Python {platform.python_version()}", model=model, pictures=sum(SPLITS.values())
    )
    line = ("lmms_eval", "--model", model, "--tasks", TASKS)
    typed: list[tuple[tuple[str, ...], bool]] = [
        ((*line, "--model_args", "fetch=false"), False),
        (line, True),
        (line, True),
    ]
    with tempfile.TemporaryDirectory() as folder, World(Path(folder)) as world:
        stock(world, published)
        for words, works in typed:
            run = world.run(*words)
            if (run.status == 0) != works:
                raise SystemExit(f"{' '.join(words)} ended with {run.status}:\n{run.output}")
            shown += f"\n~/work$ {' '.join(words)}\n{_readable(run.output, world)}[exit status {run.status}]\n"
            shown += _requests(run)
    return shown


def _readable(output: str, world: Any) -> str:
    """Leave out what a terminal overwrites, and the places of this machine."""
    for folder, name in (
        (world.work, "~/work"),
        (world.home, "~"),
        (world.folder, "/machine"),
        (ROOT, "<flmm-plugin>"),
    ):
        output = output.replace(str(folder), name)
    lines = [re.split(r"\r+", line.rstrip("\r"))[-1].rstrip() for line in output.splitlines()]
    return "".join(f"{line}\n" for line in lines)


def _requests(run: Any) -> str:
    """List the files that came, and count all other requests by host."""
    others = Counter(one.request.host for one in run.answered if one.request.address not in run.fetched)
    lines = [f"    {size:>10,} bytes  {address}" for address, size in run.fetched.items()]
    told = ", ".join(f"{count} to {host}" for host, count in others.items())
    return (
        f"[files fetched: {len(run.fetched)}]\n"
        + "".join(f"{line}\n" for line in lines)
        + f"[other requests: {told or 'none'}]\n"
    )


if __name__ == "__main__":
    sys.exit(main())
