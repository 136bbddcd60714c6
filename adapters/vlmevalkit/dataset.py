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
from flmm_plugin.tasks.plain_task import PlainTask, Record

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
        self._asked: list[tuple[str, PlainTask, int]] = []
        rows: list[dict[str, Any]] = []
        for label, name in BENCHMARKS[dataset]:
            task = PlainTask(name)
            if len(task.docs) == 0:
                logger.warning(f"{dataset}: the data has nothing of {label or name}; it is left out")
            for number in range(len(task.docs)):
                doc = task.docs[number]
                rows.append(
                    {
                        "index": len(rows), "split": label or str(name), "image_path": str(doc["image_path"]),
                        "question": task.prompt(doc), "answer": _in_words(doc),
                    }
                )  # fmt: skip
                self._asked.append((label, task, number))
        if not rows:
            raise DataNotFound(f"{dataset} has no documents in this data; flmm data check says what is missing")
        self.identity = " ".join(dict.fromkeys(task.annotations for _, task, _ in self._asked))
        return pd.DataFrame(rows)

    def build_prompt(self, line: Any) -> list[Mapping[str, Any]]:
        """Write the message about a row: its picture, the prompt, and what is wanted of a model of this package."""
        index = int(line if isinstance(line, int) else line["index"])
        _, task, number = self._asked[index]
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
        records: dict[tuple[str, str], list[Record]] = {}
        tasks: dict[tuple[str, str], PlainTask] = {}
        target = Path(eval_file)
        if target.suffix == ".xlsx":
            raise BadAnnotation(f"{target}: its cells cut masks off; answer again with PRED_FORMAT=tsv")
        stem = target.with_suffix("")
        table = predictions.read(target)
        answered = dict(zip(map(int, table["index"]), map(str, table[predictions.ANSWERS]), strict=True))
        with files.new_file(Path(f"{stem}{_DETAIL_ENDING}")) as part, part.open("w", encoding="utf-8") as details:
            for index, reply in tqdm(answered.items(), desc=f"score {self.dataset_name}", unit="doc"):
                if index not in range(len(self._asked)):
                    raise BadAnnotation(
                        f"{target} has a row {index}, {self.dataset_name} has {len(self._asked)}: it is of other data; "
                        "give another --work-dir"
                    )
                label, task, number = self._asked[index]
                record = task.score(task.docs[number], as_scored(reply))
                records.setdefault((label, task.name), []).append(record)
                tasks[label, task.name] = task
                details.write(json.dumps({"index": index, "split": label, **_plain(record)}) + "\n")
        printed: dict[str, float | int] = {}
        for key, listed in records.items():
            numbers = headline_first(key[1], tasks[key].numbers(listed))
            printed.update({f"{key[0]}.{name}" if key[0] else name: value for name, value in numbers.items()})
        if len(answered) < len(self._asked):
            logger.warning(
                f"{self.dataset_name}: PARTIAL RESULT over {len(answered)} of {len(self._asked)} documents; do not set "
                "it beside published numbers"
            )
        facts = {label: {"task": name, "annotations": tasks[label, name].annotations} for label, name in records}
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


def _plain(record: Record) -> dict[str, Any]:
    """Return a document's record without its reference, which is the data set's."""
    return {name: value for name, value in record.items() if name != "reference"}
