"""``flmm-vlmeval``: VLMEvalKit's own ``run.py`` with this package's models and data sets in it.

Works with ``ms-vlmeval`` and with a clone of the kit on the path. What differs from running the kit itself, here and
with the hook: results are written as ``.tsv`` (masks are longer than a cell of a spreadsheet), no judge is asked where
no key is set, and the exit status is not 0 if a combination of a model and a data set has no result.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from flmm_plugin.adapters.answering.arguments import ARGUMENTS_VARIABLE, MODEL_ARGUMENTS
from flmm_plugin.adapters.vlmevalkit import outcomes
from flmm_plugin.adapters.vlmevalkit.benchmarks import BENCHMARKS, SYNTHETIC
from flmm_plugin.adapters.vlmevalkit.command_line import checked, judge_default
from flmm_plugin.adapters.vlmevalkit.preflight import bring
from flmm_plugin.adapters.vlmevalkit.register import refuse_unknown_names, register_when_imported
from flmm_plugin.errors import FlmmError, ToolNotFound, UnknownArgument
from flmm_plugin.needs import OFFLINE_VARIABLE, NotReady
from flmm_plugin.options import arguments_of, refuse_unknown

RUN_VARIABLE = "VLMEVALKIT_RUN"
#: A folder for ``PYTHONPATH``, with which any program of the kit has this package's models and data sets.
HOOK_FOLDER = Path(__file__).resolve().parent / "hook"

INTERRUPTED = (
    "flmm-vlmeval: interrupted; every answer that was given is on disk, and the same line goes on with the next one"
)

_HELP = """\
usage: flmm-vlmeval --data NAME ... --model flmm_NAME ... [--model-args ARGS] [flags of VLMEvalKit's run.py]
       flmm-vlmeval list                         models and data sets of this package
       flmm-vlmeval exec COMMAND ...             any command of the kit's, with them
       flmm-vlmeval hook                         a folder for PYTHONPATH that does the same
       flmm-vlmeval help                         this, and the help of the kit's own run.py

Run VLMEvalKit's own run.py with the models and data sets of flmm-plugin registered; all of its flags keep working.

examples:
  flmm-vlmeval --model flmm_tiny --data MME_TINY POPE_TINY MMBench_TINY RefCOCO_SEG_TINY    offline, no data, minutes
  flmm-vlmeval --model flmm_deepseekvl --model-args heads=heads.safetensors --data MME RefCOCO_SEG
  torchrun --nproc-per-node=8 -m flmm_plugin.adapters.vlmevalkit --model flmm_llava --data MMBench_DEV_EN PNG
  flmm-vlmeval exec python run.py --data MME --model flmm_llava
  flmm-vlmeval --config runs.json                {"model": {"mine": {"class": "FLMM", "name": "flmm_llava",
                                                  "heads": "heads.safetensors"}}, "data": {"PNG": {"class":
                                                  "FlmmBenchmark", "dataset": "PNG"}}}

  --model-args ARGS   name=value,name=value as lmms_eval --model_args takes them: pretrained, heads, visual_cot, ...
  --no-fetch          fetch nothing: list models, heads and data of this package that are missing
  --judge NAME        of the kit; without it and without a key (OPENAI_API_KEY or LOCAL_LLM), exact_matching

Data: FLMM_DATA (default data/) for the benchmarks of this package (flmm data check), LMUData for the kit's own.
Killed? The same line goes on where it was, sample by sample (a clone also needs --reuse for what was finished).
Failed samples are counted in the last line and asked again by the same line; they never earn a point.

exit status: 0 every combination of model and data set has a result, 1 one has none, or only failed samples,
             2 it could not start, 130 it was interrupted
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status.

    Args:
        argv: Words of the command line; None: those of the process.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if not words or words[0] in ("-h", "--help", "help"):
            print(_HELP)
            return _kit_help() if words[:1] == ["help"] else 0
        if words == ["list"]:
            print(listing())
            return 0
        if words == ["hook"]:
            print(HOOK_FOLDER)
            return 0
        if words[0] == "exec":
            return execute(words[1:])
        return run(words)
    except FlmmError as exc:
        print(_refusal(exc), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\n{INTERRUPTED}", file=sys.stderr)
        return 130


def run(words: Sequence[str]) -> int:
    """Run the kit's run.py with these arguments in this process, and return the exit status.

    Raises:
        ToolNotFound: There is no kit.
        UnknownArgument: ``--model-args`` without arguments, or a name that does not exist.
        OutputFailed: The work folder cannot be written, or the disk has no room for what must be fetched.
        NotReady: Something is missing that may not or cannot be fetched.
    """
    words = _take_no_fetch(_take_model_arguments(list(words)))
    asked = checked(words)
    script = find_run()
    bring(asked)
    register_when_imported()
    sys.argv = [str(script), *words]
    kit = _executed(script)
    if hasattr(kit, "load_env"):
        kit.load_env()
    refuse_unknown_names(asked)
    sys.argv += judge_default(words)
    kit.main()
    return outcomes.report()


def hook() -> None:
    """Wait for the kit in a program that somebody else started: the hook folder's ``sitecustomize`` calls this.

    What `run` checks and adds is checked and added then, and the exit status is seen to.
    """
    outcomes.report_at_the_end()
    register_when_imported(_begin_hooked)


def _begin_hooked() -> None:
    """Do what `run` does before the kit's run.py begins, where that was started by itself.

    Raises:
        SystemExit: It cannot do what it is asked for; why is on stderr.
    """
    flags = {word.partition("=")[0] for word in sys.argv[1:]}
    # With ``python -m vlmeval`` the name is still "-m" when the kit is imported.
    if Path(sys.argv[0]).name not in ("run.py", "__main__.py", "-m") or not flags & {"--data", "--model", "--config"}:
        return
    sys.excepthook = _one_line_for_an_interrupt
    try:
        sys.argv[1:] = _take_no_fetch(sys.argv[1:])
        asked = checked(sys.argv[1:])
        refuse_unknown_names(asked._replace(data=()))  # run.py goes on without an unknown data set
        bring(asked)
    except FlmmError as exc:
        print(_refusal(exc), file=sys.stderr)
        raise SystemExit(2) from exc
    sys.argv += judge_default(sys.argv[1:])


def _refusal(error: FlmmError) -> str:
    """Write an error as one line; a list of what is missing as it is."""
    if isinstance(error, NotReady):
        return f"flmm-vlmeval: {type(error).__name__}: {error}"
    return f"flmm-vlmeval: {type(error).__name__}: {' '.join(str(error).split())}"


def _one_line_for_an_interrupt(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print(f"\n{INTERRUPTED}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


def execute(command: Sequence[str]) -> int:
    """Run any command with the hook on its path, and return its status, which the hook sees to.

    Raises:
        UnknownArgument: There is no command, or it cannot be started.
    """
    if not command:
        raise UnknownArgument("say what to run: flmm-vlmeval exec python run.py --data MME --model flmm_tiny")
    path = os.pathsep.join([str(HOOK_FOLDER), *filter(None, [os.environ.get("PYTHONPATH")])])
    try:
        return subprocess.run(list(command), env={**os.environ, "PYTHONPATH": path}, check=False).returncode
    except OSError as exc:
        raise UnknownArgument(f"{command[0]} cannot be started: {exc}") from exc


def find_run() -> Path:
    """Find the kit's run.py: of ``$VLMEVALKIT_RUN``, inside the package (ms-vlmeval), or beside it (a clone).

    Raises:
        ToolNotFound: There is none.
    """
    named = os.environ.get(RUN_VARIABLE)
    if named:
        if Path(named).is_file():
            return Path(named)
        raise ToolNotFound(f"${RUN_VARIABLE} names {named}, which is no file")
    # Not `find_spec("vlmeval.run")`: it would import the kit, and its run.py must set up the GPUs before that.
    spec = importlib.machinery.PathFinder.find_spec("vlmeval", sys.path)
    spec = spec or importlib.util.find_spec("vlmeval")
    for package in spec.submodule_search_locations or () if spec is not None else ():
        for place in (Path(package), Path(package).parent):
            if (place / "run.py").is_file():
                return place / "run.py"
    raise ToolNotFound(
        "VLMEvalKit is not here: pip install 'flmm-plugin[vlmevalkit]' in an environment of its own, or put a clone of "
        f"the kit on PYTHONPATH (its wheel has no run.py: then ${RUN_VARIABLE} names the file)"
    )


def listing() -> str:
    """List models and data sets of this package, a line each."""
    from flmm_plugin.adapters.answering.defaults import DEFAULTS

    lines = ["models (--model):"]
    lines += [f"  {name:<24}{model.pretrained or 'pretrained= must be given'}" for name, model in DEFAULTS.items()]
    lines.append("data sets (--data):")
    lines += [f"  {name:<34}{', '.join(tasks.values())}" for name, tasks in BENCHMARKS.items()]
    lines += [f"  {name:<34}the kit's own, on synthetic scenes" for name in SYNTHETIC]
    return "\n".join(lines)


def _take_model_arguments(words: list[str]) -> list[str]:
    """Return the words without ``--model-args``, whose value goes where every process finds it."""
    rest: list[str] = []
    waiting = iter(words)
    for word in waiting:
        name, equals, value = word.partition("=")
        if name not in ("--model-args", "--model_args"):
            rest.append(word)
            continue
        given = value if equals else next(waiting, "")
        if not given or given.startswith("--"):
            raise UnknownArgument("--model-args needs arguments: name=value,name=value")
        refuse_unknown("--model-args", arguments_of(given), MODEL_ARGUMENTS)
        os.environ[ARGUMENTS_VARIABLE] = given
    return rest


def _take_no_fetch(words: list[str]) -> list[str]:
    """Return the words without ``--no-fetch``, which every process then finds in the environment."""
    rest = [word for word in words if word not in ("--no-fetch", "--no_fetch")]
    if len(rest) < len(words):
        os.environ[OFFLINE_VARIABLE] = "1"
    return rest


def _executed(script: Path) -> ModuleType:
    spec: Any = importlib.util.spec_from_file_location("flmm_vlmeval_run", script)
    module = importlib.util.module_from_spec(spec)
    # Its own relative imports, and processes that it starts, look it up.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _kit_help() -> int:
    return subprocess.run([sys.executable, "-P", str(find_run()), "--help"], check=False).returncode
