"""The ``lmms_eval`` command: lmms-eval's own command line under the name its documentation uses.

lmms-eval installs ``lmms-eval`` only. This command hands over to it unchanged, after making the plugin's tasks known,
which also lets ``lmms_eval tasks list`` show them (lmms-eval does not load models for a listing). Its exit status says
whether what was asked for is there (`flmm_plugin.adapters.lmms_eval.exit_status`), with every model.
"""

from __future__ import annotations

import sys

from flmm_plugin.adapters.lmms_eval import exit_status, start_up, task_folder
from flmm_plugin.command_line import announce
from flmm_plugin.exit_codes import FAILED, say, status_of

#: Options of lmms-eval with which no task is evaluated, or that name tasks elsewhere.
_WITHOUT_TASKS = ("--help", "-h", "--config", "--power-analysis", "--tui", "--tasks")


def main() -> None:
    """Run lmms-eval with the process's arguments; exit with 0 if it delivered what they ask for."""
    sys.exit(status_of(_run, name=exit_status.NAME, stopped=lambda: exit_status.stopped(_given("--use_cache", "-c"))))


def _run() -> int:
    announce(exit_status.NAME)
    start_up.prepare()
    task_folder.install()
    words = sys.argv[1:]
    evaluates = words[:1] == ["eval"] or bool(words and words[0].startswith("-"))
    if evaluates and len(words) > 1 and not any(word.partition("=")[0] in _WITHOUT_TASKS for word in words):
        say(exit_status.NAME, "UnknownArgument: which tasks? --tasks mme,refcoco_seg (flmm list)")
        return FAILED
    exit_status.run.every_model = True
    from lmms_eval.cli.dispatch import main as dispatch

    try:
        dispatch()
    except SystemExit as exc:
        if exc.code not in (None, 0):
            return exc.code if isinstance(exc.code, int) else 1
    return exit_status.run.close()


def _given(*names: str) -> str | None:
    """The value of an option on the command line."""
    for place, word in enumerate(sys.argv):
        name, equals, value = word.partition("=")
        if name in names:
            return value if equals else next(iter(sys.argv[place + 1 : place + 2]), None)
    return None
