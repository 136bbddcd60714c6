"""One arm of ``flmm preserve``: a model, lmms-eval's own evaluator around it, and what they leave on disk.

The evaluator runs as it always does; only the model object is wrapped (`preserve_model.WatchedModel`).

    python -P -m flmm_plugin.adapters.lmms_eval.preserve_arm SPEC.json FOLDER
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TextIO

import torch

from flmm_plugin import files
from flmm_plugin.adapters.answering.provenance import commit
from flmm_plugin.adapters.lmms_eval import preserve_stock
from flmm_plugin.adapters.lmms_eval.preserve_judge import JudgeMemo
from flmm_plugin.adapters.lmms_eval.preserve_model import WatchedModel
from flmm_plugin.adapters.lmms_eval.preserve_stock import PLAIN, StockUnusable
from flmm_plugin.adapters.preserving.record import ArmSpec, write_arm
from flmm_plugin.adapters.preserving.watch import GenerateWatch, model_of, weight_hashes
from flmm_plugin.errors import FlmmError, UnknownArgument
from flmm_plugin.reports.preservation import Arm

_PACKAGES = ("torch", "transformers", "lmms-eval", "flmm-plugin")


def run_arm(spec: ArmSpec, folder: Path, *, screen: TextIO | None = None, task_manager: Any = None) -> Arm:
    """Run (or go on with) an arm in this process, and write it.

    Args:
        spec: What to run.
        folder: Of this arm alone.
        screen: Where the progress bar goes; None: no bar.
        task_manager: lmms-eval's index, if the caller has one for this model's name.

    Raises:
        StockUnusable: The stock adapter that was asked for by name does not work here.
    """
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UnknownArgument("preservation is compared in one process; start it without accelerate or torchrun")
    files.make_folder(folder)
    began = time.monotonic()
    memo, unusable = JudgeMemo(Path(spec.judge)), ""
    while True:
        watch = GenerateWatch()
        name, reason, inner = make_model(spec, unusable)
        model = WatchedModel(inner, spec, watch, folder / "answers.jsonl", screen)
        before = weight_hashes(model_of(inner))
        facts = provenance(inner)
        index = task_manager or TaskManager(model_name=None if name == PLAIN else name, include_path=spec.include_path)
        # What lmms-eval hands to tasks that write submission files beside their scores.
        options = argparse.Namespace(output_path=str(folder), process_with_media=False)
        try:
            with watch.watching(), memo.active():
                result = simple_evaluate(
                    model=model, tasks=list(spec.tasks), limit=spec.limit, task_manager=index, bootstrap_iters=0,
                    log_samples=False, cli_args=options, process_docs_parallel=1,
                )  # fmt: skip
        except StockUnusable as exc:
            if spec.stock != "auto" or name == PLAIN:
                raise
            unusable = f"lmms-eval's {name} does not work here ({exc})"
            del inner, model
            (folder / "answers.jsonl").unlink(missing_ok=True)
            continue
        break
    after = model.weights_after
    arm = Arm(
        role=spec.role,
        adapter=name if not reason else f"plain transformers: {reason}",
        settings=facts.pop("settings") | {"batch_size": spec.batch_size},
        answers=model.answers,
        metrics=metrics_of(result),
        weights=before,
        weights_after=tuple(n for n in sorted({*before, *after}) if before.get(n) != after.get(n)),
        grounded=model.grounded,
        judge=memo.counts,
        provenance={**facts, "simple": model.is_simple, "seal": model.seal_broken, "logits": model.no_logits},
        resumed=model.resumed,
        seconds=time.monotonic() - began,
    )
    if model.logits is not None:
        with files.new_file(folder / "logits.pt") as part:
            torch.save(model.logits, part)
    write_arm(folder, arm)
    return arm


def make_model(spec: ArmSpec, unusable: str = "") -> tuple[str, str, Any]:
    """The model of an arm: its name, why it is no adapter of lmms-eval's (or empty), and the model itself."""
    from lmms_eval.models import get_model

    if not spec.stock:
        options = {"device": spec.device, **spec.model_args, "batch_size": spec.batch_size}
        if options.get("device_map"):
            options.pop("device")
        model = get_model(spec.model, spec.force_simple)(**options)
        if spec.plant:
            from flmm_plugin.adapters.preserving.faults import FAULTS

            FAULTS[spec.plant](model)
        return spec.model, "", model
    default = getattr(get_model(spec.model, spec.force_simple), "default_pretrained", "")
    arguments = {**preserve_stock.shared_arguments(spec.model_args, default), **spec.stock_args}
    name, reason = (spec.stock, "") if spec.stock != "auto" else preserve_stock.adapter_for(arguments)
    if unusable:
        name, reason = PLAIN, unusable
    if name == PLAIN and not reason:
        reason = "asked for"
    try:
        model = preserve_stock.make_stock(name, arguments, spec.batch_size, spec.device, spec.force_simple)
    except StockUnusable as exc:
        if spec.stock != "auto":
            raise
        reason, name = f"lmms-eval's {name} does not load here ({exc})", PLAIN
        model = preserve_stock.make_stock(PLAIN, arguments, spec.batch_size, spec.device, spec.force_simple)
    return name, reason, model


def provenance(inner: Any) -> dict[str, Any]:
    """What belongs beside the numbers of an arm, and under ``settings`` what may change them."""
    model = model_of(inner)
    config = getattr(model, "config", None)
    heads = getattr(getattr(inner, "lmm", None), "heads", None)
    device = str(getattr(model, "device", ""))
    return {
        "class": type(model).__name__,
        **{name: metadata.version(name) for name in _PACKAGES},
        "commit": commit(),
        "device name": torch.cuda.get_device_name(device) if device.startswith("cuda") else "CPU",
        "heads": getattr(getattr(heads, "manifest", None), "sha256", None),
        "settings": {
            "kernel": getattr(config, "_attn_implementation", None),
            "dtype": str(getattr(model, "dtype", "")),
            "device": device,
        },
    }


def metrics_of(result: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Every metric of every task and group, filters named; aliases and standard errors left out."""
    return {
        task: {key: _written(value) for key, value in values.items() if "," in key and "_stderr" not in key}
        for task, values in result["results"].items()
    }


def _written(value: Any) -> Any:
    """A metric as a file holds it: an arm that was read must be equal to the one that was written."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else str(value)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the arm of a file in a process of its own: its chatter to ``log.txt``, its progress bar to the terminal."""
    spec_file, folder = map(Path, (argv or sys.argv[1:])[:2])
    spec = ArmSpec.from_json(json.loads(spec_file.read_text(encoding="utf-8")))
    screen = os.fdopen(os.dup(2), "w")
    with (folder / "log.txt").open("a", encoding="utf-8") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        os.chdir(spec.work)
        try:
            run_arm(spec, folder, screen=screen)
        except (FlmmError, StockUnusable) as exc:
            print(f"\n{type(exc).__name__}: {exc}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
