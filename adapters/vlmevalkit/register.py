"""Models and data sets into the kit's own registries, and around its inference what a run must not lose.

The kit has no place for plugins, but every registry of it is a dict or a list that all its modules share: they are
changed in place. Idempotent.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from flmm_plugin.adapters.answering.defaults import DEFAULTS

_MARK = "_flmm_registered"


def register() -> None:
    """Make the models, data sets and safeguards known to the kit that is (being) imported."""
    import vlmeval.config as config
    import vlmeval.dataset as datasets
    import vlmeval.inference as inference
    import vlmeval.smp as smp
    import vlmeval.vlm as models

    from flmm_plugin.adapters.vlmevalkit import outcomes, safeguards
    from flmm_plugin.adapters.vlmevalkit.dataset import DATASETS
    from flmm_plugin.adapters.vlmevalkit.model import FLMM

    for name in DEFAULTS:
        config.supported_VLM.setdefault(name, functools.partial(FLMM, name=name))
    models.FLMM = FLMM
    for cls in reversed(DATASETS):
        if cls not in datasets.DATASET_CLASSES:
            datasets.DATASET_CLASSES.insert(0, cls)
            known = set(datasets.SUPPORTED_DATASETS)
            datasets.SUPPORTED_DATASETS.extend(name for name in cls.supported_datasets() if name not in known)
        setattr(datasets, cls.__name__, cls)
    inference.infer_data = _once(inference.infer_data, safeguards.guarded)
    if hasattr(smp, "upsert_dataset_status"):
        smp.upsert_dataset_status = _once(smp.upsert_dataset_status, outcomes.watched)
    _let_processors_talk()
    _mend_llavabench()


def _once(original: Callable[..., Any], wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Any:
    if getattr(original, _MARK, False):
        return original
    wrapped = functools.wraps(original)(wrap(original))
    setattr(wrapped, _MARK, True)
    return wrapped


def _let_processors_talk() -> None:
    """Several processes without a GPU: the kit asks for NCCL, which needs one; gloo does the same on the CPU."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return
    import torch
    import torch.distributed as dist

    if torch.cuda.is_available():
        return

    def on_the_cpu(original: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: original(*args[1:], **{**kwargs, "backend": "gloo"})

    dist.init_process_group = _once(dist.init_process_group, on_the_cpu)


def _mend_llavabench() -> None:
    """LLaVABench's scoring imports a module from where it is not; with a name for it there, it works."""
    wrong = "vlmeval.dataset.smp"
    if wrong not in sys.modules:
        try:
            log = importlib.import_module("vlmeval.smp.log")
        except ImportError:  # a kit that has it elsewhere does not need this
            return
        sys.modules[wrong] = sys.modules["vlmeval.smp"]
        sys.modules[f"{wrong}.log"] = log
