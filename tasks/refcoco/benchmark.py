"""Define RefCOCO, RefCOCO+ and RefCOCOg: their records, documents and prompt.

The *unit* of a task says what one document is:

- ``picture`` (F-LMM's protocol): one picture with the first sentence of each of its objects, as typed, in lower case.
- ``per_sentence`` (LISA, Sa2VA, LAVT): one sentence, as the refer API cleans it.

In both, one *item* (one number in a mean) is one expression.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flmm_plugin.data.registry import Benchmark, Split
from flmm_plugin.datasets.reader import known_name
from flmm_plugin.datasets.refer import OFFICIAL_SIZES, ORIENTATION, TITLES, ReferDataset, ReferItem, parts
from flmm_plugin.tasks.documents import Documents, numbered, picture_fields

#: What ``dataset_kwargs`` may have.
SETTINGS = ("name", "by", "unit", "root")


def _record(order: int, name: str, by: str, splits: tuple[str, ...], paper: str) -> Benchmark:
    def read(root: Path, split: str) -> Split:
        dataset = ReferDataset(root, name, split, by, need_pictures=False)
        official = dataset.official_size
        return dataset.summary(split, "refs", None if official is None else official.refs)

    by_picture = {split: f"flmm_{name}_{split}" for split in splits}
    per_sentence = {split: f"{task}_per_sentence" for split, task in by_picture.items()}
    sizes = OFFICIAL_SIZES.get((name, by), {})
    documents = {by_picture[split]: sizes[split].images for split in splits if split in sizes}
    documents |= {per_sentence[split]: sizes[split].sentences or 0 for split in splits if split in sizes}
    kit = {f"{TITLES[name]}_SEG": by_picture, f"{TITLES[name]}_SEG_PER_SENTENCE": per_sentence}
    if name == "refcoco":
        kit["RefCOCO_SEG_TINY"] = {"": "flmm_tiny_refcoco"}
    return Benchmark(
        name=name,
        title=TITLES[name],
        tasks=(f"flmm_{name}_seg", *by_picture.values(), *per_sentence.values()),
        paper=paper,
        parts=parts(name, by),
        splits=splits,
        read=read,
        headline=("cIoU",),
        folders=("refcoco",),
        kit=kit,
        order=order,
        training=("train",),
        pictures={split: size.images for split, size in sizes.items()},
        documents=documents,
        scenes=splits if name == "refcoco" else (),
    )


BENCHMARKS = (
    _record(1, "refcoco", "unc", ("val", "testA", "testB"), "Yu et al. 2016"),
    _record(2, "refcoco+", "unc", ("val", "testA", "testB"), "Yu et al. 2016"),
    _record(3, "refcocog", "umd", ("val", "test"), "Mao et al. 2016, Nagaraja et al. 2016"),
)


def record_of(name: str, by: str) -> Benchmark:
    """Return the record of a data set as `by` split it."""
    usual = next(one for one in BENCHMARKS if one.name == name)
    return _record(usual.order, name, by, usual.splits, usual.paper)


def read_documents(split: str, settings: Mapping[str, Any]) -> Documents:
    """Read the documents of a split, pictures in the order of their first ref.

    Keys: ``image_id``; ``image_path``, ``orientation``; ``height``, ``width`` in pixels; ``ref_ids``, ``ann_ids``,
    ``expressions`` and ``masks`` (targets, COCO run-length codes), one per item; ``expected_items``, the published size
    of the whole split in items, None if unknown; ``expression``, in per-sentence documents only.

    Args:
        split: As the annotation file names it.
        settings: A task's ``dataset_kwargs``: ``name``; optionally ``unit`` (default ``picture``), ``by``, ``root``.

    Raises:
        UnknownArgument: There is no such unit.
        DataNotFound, UnsafePickle, BadAnnotation: From the reader.
    """
    unit = known_name("unit of documents", settings.get("unit", "picture"), ("picture", "per_sentence"))
    dataset = ReferDataset(settings.get("root"), settings["name"], split, settings.get("by"))
    official = dataset.official_size
    if unit == "picture":
        entries = _by_picture(dataset)
        expected = None if official is None else official.refs
    else:
        entries = [([ref], [sentence.strip().lower()]) for ref in dataset for sentence in ref.cleaned]
        expected = None if official is None else official.sentences

    def build(entry: tuple[list[ReferItem], list[str]]) -> dict[str, Any]:
        refs, expressions = entry
        return {
            **picture_fields(refs[0], ORIENTATION),
            "image_id": refs[0].image_id,
            "ref_ids": [ref.ref_id for ref in refs],
            "ann_ids": [ref.ann_id for ref in refs],
            "expressions": expressions,
            "masks": [dataset.rle(ref) for ref in refs],
            "expected_items": expected,
            **({"expression": expressions[0]} if unit == "per_sentence" else {}),
        }

    return Documents(
        dataset,
        build,
        entries=entries,
        expected_items=expected,
        items=sum(len(expressions) for _, expressions in entries),
        present=", ".join(f"{split} {count}" for split, count in sorted(dataset.split_counts.items())),
    )


def _by_picture(dataset: ReferDataset) -> list[tuple[list[ReferItem], list[str]]]:
    """The refs of each picture, and the first sentence of each; "" (an error) for a ref that nobody described."""
    pictures: dict[int, list[ReferItem]] = {}
    for ref in dataset:
        pictures.setdefault(ref.image_id, []).append(ref)
    return [(refs, [ref.sentences[0].lower() if ref.sentences else "" for ref in refs]) for refs in pictures.values()]


def prompt_of(doc: Mapping[str, Any]) -> str:
    """Return what is asked, for models that read a prompt; ``flmm_*`` models read the expressions themselves."""
    return (
        "Segment each of these in the image and answer with one mask per line, in this order:\n"
        f"{numbered(doc['expressions'])}"
    )


def target_of(doc: Mapping[str, Any]) -> str:
    """Name the expressions, which stand as the target in sample logs; the target masks are in the document."""
    return "; ".join(doc["expressions"])
