"""The ``lmms_eval`` command: lmms-eval's own command line under the name its documentation uses.

lmms-eval installs ``lmms-eval`` only. This command hands over to it unchanged, after making the plugin's tasks known,
which also lets ``lmms_eval tasks list`` show them (lmms-eval does not load models for a listing).
"""

from __future__ import annotations

from flmm_plugin.adapters.lmms_eval import seam


def main() -> None:
    """Run lmms-eval with the process's arguments."""
    seam.install()
    from lmms_eval.cli.dispatch import main as dispatch

    dispatch()
