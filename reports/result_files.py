"""Read result files of lmms-eval (``*_results.json``) and VLMEvalKit (``<model>_<data>_score.csv`` and the like)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from flmm_plugin.errors import DataNotFound
from flmm_plugin.reports import lmms_eval_files, vlmevalkit_files
from flmm_plugin.reports.runs import Run


def read_results(paths: Iterable[str | Path]) -> list[Run]:
    """Read every run under the given files and folders, oldest first. No harness is imported.

    Raises:
        DataNotFound: A path does not exist, holds no result file, or holds a damaged one.
    """
    runs: list[Run] = []
    for given in paths:
        path = Path(given)
        if not path.exists():
            raise DataNotFound(f"there is no {path}; give the --output_path of an lmms_eval run, or one of its files")
        found = [*lmms_eval_files.read(path), *vlmevalkit_files.read(path)]
        if not found:
            raise DataNotFound(
                f"{path} holds no result file: lmms-eval writes *_results.json with --output_path, "
                "VLMEvalKit <model>_<data>_score.csv (or _acc.csv, .json) into its work folder"
            )
        runs.extend(found)
    unique = {run.path.resolve(): run for run in runs}
    return sorted(unique.values(), key=lambda run: (run.date, str(run.path)))
