"""Define this package's benchmarks, and tables of synthetic scenes, as VLMEvalKit data sets.

Importing this imports the kit: only `register` does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from loguru import logger
from tqdm import tqdm
from vlmeval.dataset.image_base import ImageBaseDataset
from vlmeval.dataset.image_mcq import ImageMCQDataset
from vlmeval.dataset.image_yorn import ImageYORNDataset

from flmm_plugin import bundled, files
from flmm_plugin.adapters.vlmevalkit import predictions
from flmm_plugin.adapters.vlmevalkit.benchmarks import BENCHMARKS, headline_first, primary
from flmm_plugin.adapters.vlmevalkit.command_line import refuse_format
from flmm_plugin.adapters.vlmevalkit.messages import as_scored, message_of
from flmm_plugin.errors import BadAnnotation, DataNotFound
from flmm_plugin.tasks.standalone import Record, StandaloneTask

_SCORE_ENDING = "_score.json"
_DETAIL_ENDING = "_detail.jsonl"
#: Which task's numbers they are, for `flmm report`.
_TASKS_ENDING = "_flmm_tasks.json"


class FlmmBenchmark(ImageBaseDataset):
    """Benchmark of `BENCHMARKS`: read from its official files, answered with masks, scored as in lmms-eval.

    In a ``--config`` file: ``{"class": "FlmmBenchmark", "dataset": "RefCOCO_SEG_val"}``.

    Attributes:
        data: One row per document: ``index``, ``split``, ``image_path``, ``question``, ``answer`` (what was asked for,
            in words; the target masks stay in the documents).
    """

    TYPE = "SEG"
    DATASET_URL = dict.fromkeys(BENCHMARKS, "")
    #: Which data it is: answers to other data of this name are not continued.
    identity: str = ""
    #: A prompt of the model's own would lose what is wanted.
    force_use_dataset_prompt = True

    def load_data(self, dataset: str) -> pd.DataFrame:
        """List the documents of all its tasks, one after another; a task whose data has none is named and left out.

        Raises:
            DataNotFound: None of them has any.
            UnknownArgument: Result files would cut masks off (``PRED_FORMAT``).
        """
        refuse_format([dataset])
        self._tasks = {label: StandaloneTask(name) for label, name in BENCHMARKS[dataset].items()}
        # The task and the document of each row.
        self._places = [(label, number) for label, task in self._tasks.items() for number in range(len(task.docs))]
        if not self._places:
            raise DataNotFound(f"{dataset} has no documents in this data; flmm data check says what is missing")
        for label, task in self._tasks.items():
            if len(task.docs) == 0:
                logger.warning(f"{dataset}: the data has nothing of {label or task.name}; it is left out")
        self.identity = " ".join(dict.fromkeys(self._tasks[label].annotations for label, _ in self._places))
        rows = []
        for index, (label, number) in enumerate(self._places):
            task = self._tasks[label]
            doc = task.docs[number]
            row = {"index": index, "split": label or task.name, "image_path": str(doc["image_path"])}
            rows.append({**row, "question": task.prompt(doc), "answer": _in_words(doc)})
        return pd.DataFrame(rows)

    @property
    def task_options(self) -> list[Mapping[str, Any]]:
        """The generation arguments of its tasks, which say what is wanted of a model."""
        return [task.generation_kwargs for task in self._tasks.values()]

    def build_prompt(self, line: Any) -> list[Mapping[str, Any]]:
        """Write the message about a row: its picture, the prompt, and what is wanted of a model of this package."""
        index = int(line if isinstance(line, int) else line["index"])
        label, number = self._places[index]
        task = self._tasks[label]
        doc = task.docs[number]
        return message_of(doc, task.prompt(doc), task.generation_kwargs, index)

    def evaluate(self, eval_file: str, **judge_kwargs: Any) -> dict[str, float | int]:
        """Score a result file; numbers also go into ``..._score.json``, records of documents into ``..._detail.jsonl``.

        Args:
            eval_file: Written by the kit, as ``.tsv`` or ``.json``.
            **judge_kwargs: Of no use: nothing here needs a judge.

        Raises:
            BadAnnotation: A row is not of this data set, or it is ``.xlsx``.
            OutputFailed: The folder cannot be written.
        """
        target = Path(eval_file)
        if target.suffix == ".xlsx":
            raise BadAnnotation(f"{target}: its cells cut masks off; answer again with PRED_FORMAT=tsv")
        stem = target.with_suffix("")
        answers = predictions.answers_of(predictions.read(target))
        records: dict[str, list[Record]] = {}
        with files.new_file(Path(f"{stem}{_DETAIL_ENDING}")) as part, part.open("w", encoding="utf-8") as details:
            for index, reply in tqdm(answers.items(), desc=f"score {self.dataset_name}", unit="doc"):
                if int(index) not in range(len(self._places)):
                    raise BadAnnotation(
                        f"{target} has a row {index}, {self.dataset_name} has {len(self._places)}: it is of other "
                        "data; give another --work-dir"
                    )
                label, number = self._places[int(index)]
                task = self._tasks[label]
                record = task.score(task.docs[number], as_scored(reply))
                records.setdefault(label, []).append(record)
                # Without its reference, which is the data set's.
                detail = {name: value for name, value in record.items() if name != "reference"}
                details.write(json.dumps({"index": int(index), "split": label, **detail}) + "\n")
        printed: dict[str, float | int] = {}
        for label, listed in records.items():
            task = self._tasks[label]
            numbers = headline_first(task.name, task.numbers(listed))
            printed.update({f"{label}.{name}" if label else name: value for name, value in numbers.items()})
        if len(answers) < len(self._places):
            logger.warning(
                f"{self.dataset_name}: PARTIAL RESULT over {len(answers)} of {len(self._places)} documents; do not set "
                "it beside published numbers"
            )
        used = {label: self._tasks[label] for label in records}
        facts = {label: {"task": task.name, "annotations": task.annotations} for label, task in used.items()}
        # Not the kit's `dump`: it writes a pickle under another name where it meets a number of numpy's.
        files.write(Path(f"{stem}{_TASKS_ENDING}"), json.dumps(facts, indent=1))
        files.write(Path(f"{stem}{_SCORE_ENDING}"), json.dumps(printed, indent=1))
        return printed

    @classmethod
    def report_primary_metric(cls, metrics: Mapping[str, Any] | None) -> dict[str, float | int]:
        """Choose what the kit's summary shows."""
        return primary(metrics or {})


class _SyntheticTable:
    """Tables of synthetic scenes, in place of a download."""

    dataset_name: str
    identity: str

    def load_data(self, dataset: str) -> pd.DataFrame:
        """Read a table, written when it is first asked for, with the pictures' paths made absolute."""
        root = bundled.data_root(bundled.KIT_ROOT)
        self.identity = root.name
        table = pd.read_csv(root / f"{dataset}.tsv", sep="\t")
        table["image_path"] = [str(root / "images" / name) for name in table["image_path"]]
        return table


class SyntheticYesNo(_SyntheticTable, ImageYORNDataset):
    """The kit's own MME and POPE, prompt and scoring, on synthetic scenes."""

    DATASET_URL = {"MME_TINY": "", "POPE_TINY": ""}  # noqa: RUF012 - the kit reads it as it is
    DATASET_MD5: dict[str, str] = {}  # noqa: RUF012

    @classmethod
    def report_primary_metric(cls, metrics: Mapping[str, Any] | None) -> dict[str, float | int]:
        """Choose what the kit's summary shows: MME's two sums, not one of its categories; else as the kit does."""
        sums = {name: value for name, value in (metrics or {}).items() if name in ("perception", "reasoning")}
        found: dict[str, float | int] = sums or super().report_primary_metric(metrics)
        return found


class SyntheticChoices(_SyntheticTable, ImageMCQDataset):
    """The kit's own MMBench and its circular scoring on synthetic scenes, in words that the embedded model learnt."""

    DATASET_URL = {"MMBench_TINY": ""}  # noqa: RUF012
    DATASET_MD5: dict[str, str] = {}  # noqa: RUF012

    def build_prompt(self, line: Any) -> list[Mapping[str, Any]]:
        """Write the message about a row: its picture, and the question with its options."""
        row = self.data.iloc[line] if isinstance(line, int) else line
        options = "".join(f"\n{letter}. {row[letter]}" for letter in "ABCD")
        return [
            {"type": "image", "value": str(row["image_path"])},
            {"type": "text", "value": f"{row['question']}{options}\n{row['instruction']}"},
        ]


#: In the order in which the kit looks for a name.
DATASETS = (FlmmBenchmark, SyntheticYesNo, SyntheticChoices)


def _in_words(doc: Mapping[str, Any]) -> str:
    for name in ("expressions", "labels"):
        if name in doc:
            return "; ".join(doc[name])
    return str(doc.get("answer") or doc.get("query") or "")
