"""Define the Visual-CoT benchmark: its record, documents and prompt.

A document is one question about one picture, its answer and its region.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flmm_plugin.data.registry import Benchmark, Split
from flmm_plugin.datasets.problems import Problem
from flmm_plugin.datasets.viscot import OFFICIAL_SIZES, ORIENTATION, TABLE_SETS, VisCotDataset, VisCotItem, table_parts
from flmm_plugin.tasks.documents import Documents

#: What ``dataset_kwargs`` may have.
SETTINGS = ("name", "root", "boxes")

#: Written behind a question when it is to be answered.
INSTRUCTION = "\nAnswer the question using a single word or phrase."

#: Ending of the tasks by how a question is answered: after a second look, after its second version, at once.
ENDINGS = ("", "_v2", "_direct")


def _read(root: Path, name: str) -> Split:
    dataset = VisCotDataset(root, name)
    return dataset.summary(name, "questions", dataset.official_size.records)


BENCHMARKS = (
    Benchmark(
        name="viscot",
        title="Visual-CoT benchmark, the six sets of table 4",
        tasks=("flmm_viscot", "flmm_viscot_v2", "flmm_viscot_direct", *(f"flmm_viscot_{name}" for name in TABLE_SETS)),
        paper="Shao et al. 2024 (arXiv 2403.16999)",
        parts=table_parts(),
        splits=TABLE_SETS,
        read=_read,
        headline=("judged", "anls"),
        folders=("viscot",),
        kit={
            **{f"VisCoT{end}": {name: f"flmm_viscot_{name}{end}" for name in TABLE_SETS} for end in ENDINGS},
            **{f"VisCoT{end}_TINY": {"": f"flmm_tiny_viscot{end or '_v1'}"} for end in ENDINGS},
        },
        order=7,
        documents={f"flmm_viscot_{name}{end}": OFFICIAL_SIZES[name].records for end in ENDINGS for name in TABLE_SETS},
        scenes=("sroie",),
    ),
)


def read_documents(split: str, settings: Mapping[str, Any]) -> Documents:
    """Read the documents of a set.

    Keys: ``question_id``; ``image_path``, ``orientation``; ``question``; ``instruction``, which follows it when it is
    to be answered; ``answer``; ``box``, pixels ``[x0, y0, x1, y1]`` as written in the file that ``box_from`` names;
    ``height``, ``width``, None where no file states them; ``split``; ``expected_items``, the official size of the set;
    ``with_boxes``, whether a box is asked for.

    Args:
        split: Plays no role: a set has one file.
        settings: A task's ``dataset_kwargs``: ``name``, and optionally ``root`` and ``boxes`` (default True).

    Raises:
        DataNotFound, BadAnnotation: From the reader.
    """
    dataset = VisCotDataset(settings.get("root"), settings["name"])
    with_boxes = bool(settings.get("boxes", True))
    expected = dataset.official_size.records

    def build(item: VisCotItem) -> dict[str, Any]:
        height, width = item.size or (None, None)
        return {
            "image_path": str(item.image_path),
            "orientation": ORIENTATION,
            "height": height,
            "width": width,
            "question_id": item.question_id,
            "question": item.question,
            "instruction": INSTRUCTION,
            "answer": item.answer,
            "box": list(item.box),
            "box_from": item.box_from,
            "split": item.split,
            "expected_items": expected,
            "with_boxes": with_boxes,
        }

    documents = Documents(
        dataset, build, expected_items=expected, unit="questions", facts={"boxes": dataset.boxes_from}
    )
    documents.problems = _box_problems(dataset) if with_boxes else ()
    return documents


def _box_problems(dataset: VisCotDataset) -> tuple[Problem, ...]:
    cut = dataset.boxes_from.get("benchmark", 0)
    if not cut:
        return dataset.problems
    kind = (
        "true boxes are whole numbers; the benchmark's evaluator reads those with fractions in benchmark_det, which "
        "are not here: get them with flmm data download viscot"
    )
    return (Problem(kind, f"{cut} of {len(dataset)} questions"), *dataset.problems)


def prompt_of(doc: Mapping[str, Any]) -> str:
    """Return what is asked in one go; ``flmm_*`` models read question and instruction where they look twice."""
    return f"{doc['question']}{doc['instruction']}"


def target_of(doc: Mapping[str, Any]) -> str:
    """Return the reference answer, which stands as the target in sample logs."""
    return str(doc["answer"])
