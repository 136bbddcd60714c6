"""Wait for VLMEvalKit; Python reads this at its start where this folder is on the path.

A ``sitecustomize`` that is further down the path is read as well, as if this one were not there.
"""

import importlib.machinery
import importlib.util
import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent


def _run_the_next_one() -> None:
    elsewhere = [entry for entry in sys.path if Path(entry or ".").resolve() != _HERE]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", elsewhere)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


try:
    from flmm_plugin.adapters.vlmevalkit.command import hook

    hook()
except Exception as exc:  # whatever this interpreter was started for must go on
    print(f"flmm: VLMEvalKit would not get this package's models: {type(exc).__name__}: {exc}", file=sys.stderr)

_run_the_next_one()
