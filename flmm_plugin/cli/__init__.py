"""Run the ``flmm`` command; each subcommand imports what it needs when it runs.

A command is a function ``run(args) -> exit status``. An expected error is a `FlmmError`: one line on standard error,
which names the fix, and exit status 2. A command that may be stopped with Ctrl-C in the middle of its work sets
``stopped(args) -> str`` beside ``run``: it says what is saved and how to resume.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import flmm_plugin
from flmm_plugin.command_line import Parser, announce
from flmm_plugin.exit_codes import status_of

_EXAMPLES = """\
examples:
  flmm ground scene.png "the small red circle" "the star"   masks: scene.ground.png, scene.ground.json
  flmm chat scene.png "What is in the picture?"             the answer, and masks of what it names
  flmm attention scene.png "the small red circle"           every attention map of a phrase on one sheet
  flmm serve                                                an interactive page: click words and places
  flmm list                                                 models and tasks, and what each needs
  flmm data check refcoco                                   check that a benchmark's data is complete
  flmm doctor                                               check this installation
  flmm heads show heads.safetensors                         which model heads are for; also convert, push, pull
  flmm plan --model flmm_llava --tasks mme,refcoco_seg      what a run needs and costs, before anything runs
  flmm train flmm_tiny --out runs/tiny                      train heads for a frozen model, from a recipe
  flmm ablate decoder                                       the paper's ablations, each with its table and figure
  flmm score results/                                       every metric again from logged samples, with intervals
  flmm demo                                                 everything inside lmms-eval, in minutes
  flmm preserve --model flmm_tiny --tasks mme --limit 20    prove that chat is the same with and without the plugin
  flmm bench --quick                                        what grounding costs on this machine
  flmm report results/ --table 1                            your runs in the paper's tables, with their provenance
  flmm tiny path                                            the embedded model, a plain transformers checkpoint
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status.

    Args:
        argv: Words of the command line; None: those of the process.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    args = argparse.Namespace(stopped=lambda _: "")
    announce()
    return status_of(lambda: _run(words, args), stopped=lambda: str(args.stopped(args)))


def _run(words: list[str], args: argparse.Namespace) -> int:
    """Parse `words` into `args`, and run the command that they name."""
    if words[:1] == ["demo"]:
        from flmm_plugin.adapters.lmms_eval.demo import main as demo

        return demo(words[1:])
    parser = build_parser(words[0] if words else "")
    _, behind = parser.parse_known_args(words, args)
    # argparse takes key=value words only in one group; accept them behind an option too.
    if behind and hasattr(args, "changes") and all("=" in one for one in behind):
        args.changes = [*args.changes, *behind]
    elif behind:
        parser.error(f"{' '.join(behind)}: more than it takes")
    status: int = args.run(args)
    return status


def build_parser(command: str = "") -> Parser:
    """Return the parser of ``flmm``.

    Args:
        command: First word of the command line; the subcommands of ``flmm tiny`` are loaded only for ``tiny``.
    """
    from flmm_plugin.cli import (
        ablate,
        bench,
        data,
        doctor,
        heads,
        listing,
        look,
        plan,
        preserve,
        report,
        reproduce,
        score,
        serve,
        train,
    )

    parser = Parser(
        prog="flmm",
        description="Ground a frozen large multimodal model: masks for words, read from its own attention.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("--version", action="version", version=f"flmm-plugin {flmm_plugin.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    look.add_subcommands(commands)
    for module in (listing, data, doctor, heads, plan, train, ablate, score, report, reproduce, preserve, serve, bench):
        module.add_subcommand(commands)
    commands.add_parser(
        "demo", help="run the demo: lmms-eval with and without the plugin, and one page", add_help=False
    )
    tiny = commands.add_parser("tiny", help="the embedded model: its folder, and what it measures")
    if command == "tiny":
        from flmm_plugin.tiny import cli as tiny_cli

        tiny_cli.add_subcommands(tiny.add_subparsers(title="commands", metavar="COMMAND", required=True))
    return parser
