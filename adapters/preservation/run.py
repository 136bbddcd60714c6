"""Carry out one run of a proof in a process of its own.

python -P -m flmm_plugin.adapters.preservation.run SPEC.json FOLDER
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import torch

from flmm_plugin import files
from flmm_plugin.adapters.answering.provenance import commit
from flmm_plugin.adapters.preservation.record import (
    HARNESSES,
    PLAIN_TRANSFORMERS,
    RunSpec,
    StockUnusable,
    versions_of,
    write_run,
)
from flmm_plugin.adapters.preservation.verdict import RunRecord
from flmm_plugin.adapters.preservation.watch import Recorder
from flmm_plugin.errors import FlmmError


def run_here(spec: RunSpec, folder: Path, *, screen: TextIO | None = None, **options: Any) -> RunRecord:
    """Run (or go on with) a run in this process, and write it.

    Args:
        spec: Specification of the run to carry out.
        folder: Folder of this run alone; what it holds of an earlier start is not asked again.
        screen: Stream of the progress bar; None: no bar.
        **options: Handed to the harness's ``evaluate``.

    Raises:
        StockUnusable: The stock adapter that was asked for by name does not work here.
        UnknownArgument: A task cannot be compared, or a name does not exist.
    """
    harness = importlib.import_module(f"flmm_plugin.adapters.preservation.{spec.harness}")
    files.make_folder(folder)
    began = time.monotonic()
    stock, reason = spec.stock, ""
    while True:
        adapter, model = harness.make_model(dataclasses.replace(spec, stock=stock))
        recorder = Recorder(spec, model, folder / "answers.jsonl")
        recorder.open()
        facts, settings = _facts(recorder, HARNESSES[spec.harness].distribution)
        try:
            with recorder.watch.watching():
                metrics, judge = harness.evaluate(adapter, recorder, folder, screen, **options)
        except StockUnusable as exc:
            if stock != "auto" or adapter.startswith(PLAIN_TRANSFORMERS):
                raise
            stock, reason = "plain", f"{PLAIN_TRANSFORMERS}: lmms-eval's {adapter} does not work here ({exc})"
            # The next model is loaded when the exception, whose frames hold this one, is gone too.
            del model, recorder
            (folder / "answers.jsonl").unlink(missing_ok=True)
            continue
        break
    run = RunRecord(
        role=spec.role,
        adapter=reason or adapter,
        settings=settings,
        answers=recorder.answers,
        metrics=metrics,
        weights=recorder.weights,
        weights_after=recorder.weights_after,
        grounded=recorder.grounded,
        judge=judge,
        provenance={**facts, "seal": recorder.seal_broken, "logits": recorder.no_logits},
        resumed=recorder.resumed,
        seconds=time.monotonic() - began,
    )
    if recorder.logits is not None:
        with files.new_file(folder / "logits.pt") as part:
            torch.save(recorder.logits, part)
    write_run(folder, run)
    return run


def _facts(recorder: Recorder, harness: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what belongs beside the numbers of a run, and the settings that may change them."""
    network, model = recorder.network, recorder.model
    device = str(getattr(network, "device", ""))
    heads = getattr(getattr(model, "lmm", None), "heads", None)
    facts = {
        "class": type(network).__name__,
        **versions_of("torch", "transformers", harness, "flmm-plugin"),
        "commit": commit(),
        "device name": torch.cuda.get_device_name(device) if device.startswith("cuda") else "CPU",
        "heads": getattr(getattr(heads, "manifest", None), "sha256", None),
        "simple": bool(getattr(model, "is_simple", False)),
    }
    settings = {
        "kernel": getattr(getattr(network, "config", None), "_attn_implementation", None),
        "dtype": str(getattr(network, "dtype", "")),
        "device": device,
        "batch_size": recorder.spec.batch_size,
    }
    return facts, settings


def main(argv: Sequence[str] | None = None) -> int:
    """Run the specification in a file: all output goes to ``log.txt``, the progress bar to the terminal."""
    spec_file, folder = map(Path, (argv or sys.argv[1:])[:2])
    spec = RunSpec.read(spec_file)
    screen = os.fdopen(os.dup(2), "w")
    with (folder / "log.txt").open("a", encoding="utf-8") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        os.chdir(spec.work)
        try:
            run_here(spec, folder, screen=screen)
        except FlmmError as exc:
            print(f"\n{type(exc).__name__}: {exc}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
