"""Street signs: one phrase and one polygon per picture, from ``signs/test.json`` under the data root."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flmm_plugin.data.registry import Benchmark, Part
from flmm_plugin.data.root import data_root
from flmm_plugin.datasets.json_files import fields_of, inside, read_json, size_of, text_of
from flmm_plugin.datasets.reader import SplitReader
from flmm_plugin.datasets.segmentations import segmentation_rle
from flmm_plugin.tasks.documents import Documents, picture_fields
from flmm_plugin.tasks.refcoco.scoring import logged_document, score_reply

__all__ = ["BENCHMARKS", "SETTINGS", "logged_document", "prompt_of", "read_documents", "score_reply", "target_of"]

SETTINGS = ("root",)  # what the task file may set in `dataset_kwargs`
FILE = Part("annotations of the signs", ("signs/test.json",), "CC BY 4.0", how="copy the folder `signs` there")


@dataclass(frozen=True)
class Sign:
    """One sign; a reader's items are frozen dataclasses of numbers, texts, paths and lists."""

    image_path: Path
    height: int
    width: int
    phrase: str
    polygon: Any


class Signs(SplitReader[Sign]):
    """The signs of the test split."""

    def __init__(self, root):
        folder = data_root(root)
        super().__init__(folder, "signs-test", Sign, (FILE.path(folder, "signs"),))

    def _read(self, problems):
        """Read the file; what cannot be used could be added to `problems`, which the results list."""
        with fields_of(f"{self.source} is no list of signs: it"):
            return [self._sign(one) for one in read_json(self.annotations[0])], {}

    def _sign(self, one):
        height, width = size_of(one)
        return Sign(inside(self.root / "signs", one["file"]), height, width, text_of(one["phrase"]), one["polygon"])


BENCHMARKS = (
    Benchmark(
        name="signs",  # flmm data list signs
        title="Street signs",
        tasks=("flmm_signs",),
        paper="nobody, 2026",
        parts=(FILE,),
        splits=("test",),
        read=lambda root, split: Signs(root).summary(split, "signs", None),
        headline=("cIoU",),
        folders=("flmm_signs",),
        kit={"SIGNS": {"": "flmm_signs"}},  # flmm-vlmeval --data SIGNS
        order=100,
    ),
)


def read_documents(split, settings):
    """Make the documents that a model is asked about: its picture, `expressions`, and target `masks`."""
    signs = Signs(settings.get("root"))

    def build(sign):
        mask = segmentation_rle([sign.polygon], sign.height, sign.width)
        fields = {"expressions": [sign.phrase], "masks": [mask], "expected_items": len(signs)}
        return {**picture_fields(sign, "upright"), **fields}

    return Documents(signs, build, expected_items=len(signs))


def prompt_of(doc):
    """Return the question for models that read a prompt; ``flmm_*`` models read the expressions themselves."""
    return f"Segment {doc['expressions'][0]} in the image."


def target_of(doc):
    """Return what stands as the target in sample logs."""
    return doc["expressions"][0]
