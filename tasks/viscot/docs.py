"""The documents of a Visual-CoT set: one question about one picture, its answer and its region."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flmm_plugin.datasets.viscot import ORIENTATION, VisCotDataset, VisCotItem
from flmm_plugin.tasks.picture_docs import PictureDoc

#: Written behind a question when it is to be answered.
INSTRUCTION = "\nAnswer the question using a single word or phrase."

FIELDS = (
    "question_id", "image_path", "orientation", "question", "instruction", "answer", "box", "box_from", "height",
    "width", "split",
    "expected_items", "with_boxes",
)  # fmt: skip


class VisCotDoc(PictureDoc):
    """One document.

    Keys: ``question_id``; ``image_path``, ``orientation``; ``question``; ``instruction``, which follows it when it is
    to be answered; ``answer``; ``box``, pixels ``[x0, y0, x1, y1]`` as written in the file that ``box_from`` names;
    ``height``, ``width``, None where no file states them; ``split``; ``expected_items``, the official size of the set;
    ``with_boxes``, whether a box is asked for.
    """


class VisCotDocs(Sequence[VisCotDoc]):
    """The documents of one set, with the few attributes of a `datasets.Dataset` that lmms-eval asks for.

    Attributes:
        features: Names of the fields.
        expected_items: Official number of records.
        path: The annotation file.
        digest: Its SHA-256.
        reversed_boxes: Question ids whose true box encloses nothing.
        boxes_from: How many boxes are from which file.
    """

    def __init__(self, dataset: VisCotDataset, *, with_boxes: bool) -> None:
        self.expected_items = dataset.official_size.records
        self.path, self.digest = dataset.path, dataset.digest
        self.reversed_boxes, self.boxes_from = dataset.reversed_boxes, dataset.boxes_from
        self.features: dict[str, None] = dict.fromkeys(FIELDS)
        self._docs = [self._doc(item, with_boxes) for item in dataset]

    def __len__(self) -> int:
        return len(self._docs)

    def __iter__(self) -> Iterator[VisCotDoc]:
        return iter(self._docs)

    def __getitem__(self, index: Any) -> Any:
        # lmms-eval looks at document 0 of every task before it asks how many there are.
        if not self._docs and index == 0:
            return VisCotDoc(dict.fromkeys(self.features), question="", instruction="", answer="")
        return self._docs[index]

    def _doc(self, item: VisCotItem, with_boxes: bool) -> VisCotDoc:
        height, width = item.size or (None, None)
        return VisCotDoc(
            question_id=item.question_id,
            image_path=str(item.image_path),
            orientation=ORIENTATION,
            question=item.question,
            instruction=INSTRUCTION,
            answer=item.answer,
            box=list(item.box),
            box_from=item.box_from,
            height=height,
            width=width,
            split=item.split,
            expected_items=self.expected_items,
            with_boxes=with_boxes,
        )


def read_docs(split: str, settings: Mapping[str, Any]) -> VisCotDocs:
    """The documents of a set.

    Args:
        split: Plays no role: a set has one file.
        settings: A task's ``dataset_kwargs``: ``name``, and optionally ``root`` and ``boxes``.

    Raises:
        DataNotFound, BadAnnotation: From the reader.
    """
    dataset = VisCotDataset(settings.get("root"), settings["name"])
    return VisCotDocs(dataset, with_boxes=bool(settings.get("boxes", True)))


def prompt_of(doc: Mapping[str, Any]) -> str:
    """What is asked in one go; where a second look is asked for, ``flmm_*`` models read question and instruction."""
    return f"{doc['question']}{doc['instruction']}"


def target_of(doc: Mapping[str, Any]) -> str:
    """The reference answer, which stands as the target in sample logs."""
    return str(doc["answer"])
