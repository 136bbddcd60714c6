"""Say how many documents a task has, from the published sizes of the splits; no file is read."""

from __future__ import annotations

from flmm_plugin.data.own import own_sets
from flmm_plugin.datasets.own import OwnDataset
from flmm_plugin.datasets.png import OFFICIAL_NARRATIVES
from flmm_plugin.errors import UnknownArgument
from flmm_plugin.tasks.benchmarks import benchmarks
from flmm_plugin.tasks.data_needs import split_by

#: Questions of benchmarks that lmms-eval has itself, by the names of its tasks.
_STOCK = {
    "mmbench_en_dev": 4329, "mmvet": 218, "llava_in_the_wild": 60, "gqa": 12578, "vqav2_val": 214354, "ai2d": 3088,
}  # fmt: skip


def documents_of(task: str) -> int | None:
    """Return the number of documents of a task; None where nobody states it.

    >>> documents_of("flmm_refcoco_val"), documents_of("mme"), documents_of("flmm_gcg_val")
    (1500, 2374, None)

    Args:
        task: Name of a single task of this package or of lmms-eval.
    """
    known = (one.documents for one in benchmarks().values())
    return next((sizes[task] for sizes in (*known, _STOCK) if task in sizes), None)


def samples_of(dataset: str, split: str, by: str | None = None) -> int:
    """Return the number of samples that a training reads of a split: narratives, or pictures with their expressions.

    Args:
        dataset: Name of a benchmark that can be trained on, such as ``png`` or ``refcoco``.
        split: Name of the split, such as ``train``.
        by: Authors of a RefCOCO split; None: those whom papers use.

    Raises:
        UnknownArgument: There is no such split, or nobody states its size.
    """
    if dataset in own_sets():
        return len({item.image_id for item in OwnDataset(dataset, split) if item.ann_ids})
    record = benchmarks().get(dataset)
    pictures = {} if record is None else split_by(record, by).pictures
    size = (OFFICIAL_NARRATIVES if dataset == "png" else pictures).get(split)
    if size is None:
        raise UnknownArgument(
            f"nobody states the size of {dataset} {split}; take it out of the recipe to plan the rest"
        )
    return size
