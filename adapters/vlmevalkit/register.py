"""Put models and data sets into the kit's own registries, and guards around its files and its inference.

The kit has no place for plugins, but every registry of it is a dict or a list that all its modules share: they are
changed in place. `register` is idempotent; `register_when_imported` costs no import of the kit.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from flmm_plugin.adapters.answering.defaults import DEFAULTS
from flmm_plugin.adapters.patching import AfterImport, wrap_once
from flmm_plugin.adapters.vlmevalkit.command_line import Requested, unknown
from flmm_plugin.adapters.vlmevalkit.messages import FAILED, is_failure
from flmm_plugin.errors import UnknownArgument

#: The module that is executed last of those that hold registries, and first by everything that runs the kit.
_REGISTRY = "vlmeval.config"

#: The other categories of MME are of perception.
_REASONING = ("code_reasoning", "commonsense_reasoning", "numerical_calculation", "text_translation")


def register_when_imported(then: Callable[[], None] = lambda: None) -> None:
    """Register as soon as the kit is imported, or now if it is already.

    Args:
        then: Called without arguments once everything is registered.
    """

    def registered(_module: Any) -> None:
        register()
        then()

    if _REGISTRY in sys.modules:
        registered(sys.modules[_REGISTRY])
    else:
        AfterImport.place(_REGISTRY, registered)


def register() -> None:
    """Make the models, data sets and guards known to the kit that is (being) imported."""
    import vlmeval.config as config
    import vlmeval.dataset as datasets
    import vlmeval.dataset.utils.multiple_choice as choices
    import vlmeval.dataset.utils.yorn as yorn
    import vlmeval.inference as inference
    import vlmeval.smp as smp
    import vlmeval.vlm as models

    from flmm_plugin.adapters.vlmevalkit import outcomes, predictions
    from flmm_plugin.adapters.vlmevalkit.dataset import DATASETS
    from flmm_plugin.adapters.vlmevalkit.inference import delivered, journalled
    from flmm_plugin.adapters.vlmevalkit.model import FLMM

    if not os.environ.get("PRED_FORMAT"):
        # A spreadsheet cell ends at 32,767 characters, and the kit cannot go on from JSON.
        os.environ["PRED_FORMAT"] = "tsv"
    for name in DEFAULTS:
        config.supported_VLM.setdefault(name, functools.partial(FLMM, name=name))
    models.FLMM = FLMM
    for cls in reversed(DATASETS):
        if cls not in datasets.DATASET_CLASSES:
            datasets.DATASET_CLASSES.insert(0, cls)
            known = set(datasets.SUPPORTED_DATASETS)
            datasets.SUPPORTED_DATASETS.extend(name for name in cls.supported_datasets() if name not in known)
        setattr(datasets, cls.__name__, cls)
    smp.file.pd = predictions.Readers()
    _wrap_everywhere(smp.file, "_prediction_table", predictions.marked)
    _wrap_everywhere(smp.file, "dump", predictions.whole)
    wrap_once(inference, "load", predictions.marked)
    wrap_once(inference, "dump", predictions.keeping)
    wrap_once(inference, "infer_data", journalled)
    wrap_once(inference, "infer_data_job", delivered)
    _wrap_everywhere(yorn, "MME_rating", _of_some_categories)
    _wrap_everywhere(yorn, "YOrN_auxeval", _yes_or_no)
    _wrap_everywhere(choices, "extract_answer_from_item", _choice)
    if hasattr(smp, "upsert_dataset_status"):
        wrap_once(smp, "upsert_dataset_status", outcomes.watched)
    _use_gloo_on_the_cpu()
    _repair_llavabench()


def refuse_unknown_names(asked: Requested) -> None:
    """Refuse a model or a data set that the kit does not know.

    Raises:
        UnknownArgument: One is not known; the nearest name that is stands in the message.
    """
    import vlmeval.dataset as datasets
    from vlmeval.config import supported_VLM
    from vlmeval.dataset.video_dataset_config import supported_video_datasets
    from vlmeval.smp import LMUDataRoot

    if asked.free:
        return
    for model in asked.models:
        if model not in supported_VLM:
            raise UnknownArgument(unknown("model", model, supported_VLM))
    known = {*datasets.SUPPORTED_DATASETS, *supported_video_datasets}
    for data in asked.data:
        if data not in known and not (Path(LMUDataRoot()) / f"{data}.tsv").is_file():
            raise UnknownArgument(
                f"{unknown('data set', data, known)} A table of your own is {LMUDataRoot()}/{data}.tsv."
            )


def _wrap_everywhere(home: ModuleType, name: str, around: Callable[..., Any]) -> None:
    """Wrap a function in every module of the kit that has it by name."""
    original = getattr(home, name)
    wrap_once(home, name, around)
    for place, module in list(sys.modules.items()):
        if place.partition(".")[0] == "vlmeval":
            for attribute in [key for key, value in vars(module).items() if value is original]:
                setattr(module, attribute, getattr(home, name))


def _yes_or_no(judge: Callable[..., Any], model: Any, item: Any, *args: Any, **options: Any) -> Any:
    """Ask a judge, but not about a failed sample: the guess is right now and then."""
    return "Unknown" if is_failure(str(item["prediction"])) else judge(model, item, *args, **options)


def _choice(judge: Callable[..., Any], model: Any, item: Any, *args: Any, **options: Any) -> Any:
    """Ask a judge, but not about a failed sample, which chose none of the options."""
    if is_failure(str(item["prediction"])):
        return {"opt": "Z", "log": FAILED}
    return judge(model, item, *args, **options)


def _of_some_categories(rating: Callable[[str], Any], data_file: str) -> Any:
    """Sum up MME, which a clone of the kit cannot where a table lacks some of MME's categories."""
    from vlmeval.smp import d2df, load

    try:
        return rating(data_file)
    except KeyError:
        table = load(data_file)
    scores = {}
    for category, rows in table.groupby("category", sort=False):
        both = rows.groupby("image_path")["score"].agg(lambda pair: pair.iloc[0] * pair.iloc[1])
        scores[category] = (rows["score"].mean() + both.mean()) * 100
    of_reasoning = sum(score for category, score in scores.items() if category in _REASONING)
    return d2df({"perception": sum(scores.values()) - of_reasoning, "reasoning": of_reasoning, **scores})


def _use_gloo_on_the_cpu() -> None:
    """Let several processes without a GPU talk over gloo; the kit asks for NCCL, which needs one."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return
    import torch
    import torch.distributed as dist

    if not torch.cuda.is_available():
        wrap_once(dist, "init_process_group", _with_gloo)


def _with_gloo(init_process_group: Callable[..., Any], *args: Any, **options: Any) -> Any:
    return init_process_group(*args[1:], **{**options, "backend": "gloo"})


def _repair_llavabench() -> None:
    """Give LLaVABench's scoring the module that it imports from where it is not."""
    wrong = "vlmeval.dataset.smp"
    if wrong not in sys.modules:
        try:
            log = importlib.import_module("vlmeval.smp.log")
        except ImportError:  # a kit that has it elsewhere does not need this
            return
        sys.modules[wrong] = sys.modules["vlmeval.smp"]
        sys.modules[f"{wrong}.log"] = log
