"""Say how many documents a task has, from the published sizes of the splits; no file is read."""

from __future__ import annotations

from flmm_plugin.datasets.png import OFFICIAL_NARRATIVES
from flmm_plugin.datasets.reasonseg import OFFICIAL_SIZES as REASONSEG
from flmm_plugin.datasets.refer import OFFICIAL_SIZES as REFER
from flmm_plugin.datasets.viscot import OFFICIAL_SIZES as VISCOT
from flmm_plugin.errors import UnknownArgument
from flmm_plugin.tasks.task_files import task_config, task_files

#: Questions of benchmarks that lmms-eval has itself, by the names of its tasks.
_STOCK = {
    "mme": 2374, "pope": 9000, "mmbench_en_dev": 4329, "mmvet": 218, "llava_in_the_wild": 60, "gqa": 12578,
    "vqav2_val": 214354, "ai2d": 3088,
}  # fmt: skip


def documents_of(task: str) -> int | None:
    """Return the number of documents of a task; None where nobody states it.

    >>> documents_of("flmm_refcoco_val"), documents_of("mme"), documents_of("flmm_gcg_val")
    (1500, 2374, None)

    Args:
        task: Name of a single task of this package or of lmms-eval.
    """
    if task not in task_files():
        return _STOCK.get(task)
    config = task_config(task)
    options, split = config.get("dataset_kwargs") or {}, str(config.get("test_split"))
    name = str(options.get("name"))
    folder = task_files()[task].parent.name
    if folder == "refcoco":
        size = REFER.get((name, str(options.get("by") or ("umd" if name == "refcocog" else "unc"))), {}).get(split)
        if size is None:
            return None
        return size.images if options.get("unit", "picture") == "picture" else size.sentences
    if folder in ("png", "keywords"):
        return OFFICIAL_NARRATIVES.get(split)
    if folder == "reasonseg":
        return REASONSEG.get(split)
    if folder == "viscot" and name in VISCOT:
        return VISCOT[name][0]
    return _STOCK["pope"] if folder == "pope_viscot" else None


def samples_of(dataset: str, split: str, by: str | None = None) -> int:
    """Return the number of samples that a training reads of a split: narratives, or pictures with their expressions.

    Args:
        dataset: ``png``, ``refcoco``, ``refcoco+`` or ``refcocog``.
        split: Name of the split, such as ``train``.
        by: Authors of a RefCOCO split; None: those whom papers use.

    Raises:
        UnknownArgument: There is no such split, or nobody states its size.
    """
    if dataset == "png" and split in OFFICIAL_NARRATIVES:
        return OFFICIAL_NARRATIVES[split]
    size = REFER.get((dataset, by or ("umd" if dataset == "refcocog" else "unc")), {}).get(split)
    if size is None:
        raise UnknownArgument(
            f"nobody states the size of {dataset} {split}; take it out of the recipe to plan the rest"
        )
    return size.images
