"""Around the kit's inference of one data set by a model of this package: nothing lost, nothing stale, nothing mixed up.

- Answers are journalled one by one, so a kill loses none (`journal`).
- A result of other model arguments, or of other data, is not continued: that is an error, before anything is asked.
- Once a new answer was given, files in which the kit keeps judgements of older answers are removed.
- The record of how the model was loaded stands beside the results, and the seal on its weights is checked.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from loguru import logger

from flmm_plugin.adapters.answering.arguments import ARGUMENTS_VARIABLE, arguments_of
from flmm_plugin.adapters.vlmevalkit.journal import Journal
from flmm_plugin.errors import FrozenWeightsChanged, UnknownArgument

#: What the kit keeps of earlier evaluations of a result file; it would take them for those of the new answers.
_STALE = re.compile(r"^_(auxmatch|tmp|score|acc|detail|[a-z0-9.-]+(_matching)?_result)\.\w+$")

_RECORD_ENDING = "_flmm.json"
_JOURNAL_ENDING = ".flmm.jsonl"


def guarded(original: Callable[..., Any]) -> Callable[..., Any]:
    """The kit's ``infer_data`` with all of the above; models of others pass through unchanged."""

    def infer_data(model: Any, model_name: str, work_dir: str, dataset: Any, out_file: str, **options: Any) -> Any:
        from vlmeval.config import supported_VLM

        from flmm_plugin.adapters.vlmevalkit.model import FLMM

        made = supported_VLM.get(model_name) if isinstance(model, str) else model
        if not (isinstance(made, FLMM) or getattr(made, "func", None) is FLMM):
            return original(
                model=model, model_name=model_name, work_dir=work_dir, dataset=dataset, out_file=out_file, **options
            )
        arguments = said(made)
        identity = str(getattr(dataset, "identity", ""))
        run = DataSetRun(Path(work_dir), model_name, str(dataset.dataset_name), arguments, identity)
        journal = run.journal()
        run.refuse_other_answers(journal)
        answering: FLMM | None = None

        def prepared(one: FLMM) -> FLMM:
            nonlocal answering
            answering = one
            one.journal = journal
            return one

        if isinstance(model, FLMM):
            prepared(model)
        else:
            # The kit makes the model itself, and only if something is left to be asked.
            supported_VLM[model_name] = lambda **kwargs: prepared(made(**kwargs))
        try:
            result = original(
                model=model, model_name=model_name, work_dir=work_dir, dataset=dataset, out_file=out_file, **options
            )
            if answering is not None:
                answering.finished(run.data)
        except FrozenWeightsChanged:
            Path(out_file).unlink(missing_ok=True)
            run.forget()
            raise
        finally:
            if isinstance(model, str):
                supported_VLM[model_name] = made
            if answering is not None:
                answering.journal = None
        if answering is not None:
            run.record(answering.provenance)
        else:
            run.keep_record()
        if journal.added or journal.found:
            logger.info(f"flmm: {run.data}: {journal.found} answers from disk, {journal.added} new")
            run.remove_stale()
        run.forget()
        return result

    return infer_data


def said(model: Any) -> Mapping[str, Any]:
    """The arguments of a model of this package, loaded or yet to be made."""
    loaded: Mapping[str, Any] | None = getattr(model, "arguments", None)
    if loaded is not None:
        return loaded
    return {**arguments_of(os.environ.get(ARGUMENTS_VARIABLE, "")), **model.keywords}


class DataSetRun:
    """One model's run over one data set, in the kit's folder.

    Args:
        folder: Where the kit writes; in one of the two kits a folder per start, under the model's.
        model: Its name.
        data: The data set's name.
        arguments: The model's.
        identity: Which data it is, "" where nobody says.
    """

    def __init__(self, folder: Path, model: str, data: str, arguments: Mapping[str, Any], identity: str = "") -> None:
        self.folder, self.model, self.data, self.arguments = folder, model, data, arguments
        self.identity = identity
        self._rank, self._world = (int(os.environ.get(name, default)) for name, default in _PROCESSES.items())
        # Of all starts of a model: an answer is not lost because the next start has a folder of its own.
        self._home = folder if folder.name == model else folder.parent
        self._stem = f"{model}_{data}"

    def journal(self) -> Journal:
        """This process's journal, with what earlier runs left."""
        identity = {"arguments": _as_text(self.arguments), "data": self.identity}
        return Journal(self._journal(self._rank, self._world), identity, self._journals())

    def refuse_other_answers(self, journal: Journal) -> None:
        """See that the answers that the kit would continue are of the same arguments and the same data.

        Args:
            journal: Of `journal`; it knows of answers of a run that was killed.

        Raises:
            UnknownArgument: They are not.
        """
        record = self._earlier_record()
        content = json.loads(record.read_text(encoding="utf-8")) if record is not None else None
        if content is not None and content.get("data", self.identity) != self.identity:
            raise UnknownArgument(
                f"{self.folder} holds answers of {self.model} to other data of the name {self.data}; {_ELSEWHERE}"
            )
        now = _as_text(self.arguments)
        before = content.get("arguments", {}) if content is not None else now
        if before != now:
            changed = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
            raise UnknownArgument(
                f"{self.folder} holds answers of {self.model} with other model arguments ({', '.join(changed)}); "
                + _ELSEWHERE
            )
        if journal.foreign and self._holds_answers(self.folder):
            raise UnknownArgument(
                f"{self.folder} holds answers to {self.data} of a run that was killed, which had other model arguments "
                f"or other data; {_ELSEWHERE}"
            )

    def record(self, provenance: Mapping[str, Any]) -> None:
        """Write how the model was loaded, beside the results; one process does."""
        if self._rank == 0:
            content = {**provenance, "processes": self._world, "data": self.identity}
            content["arguments"] = _as_text(self.arguments)
            path = self.folder / f"{self._stem}{_RECORD_ENDING}"
            path.write_text(json.dumps(content, indent=1), encoding="utf-8")

    def keep_record(self) -> None:
        """Where all answers were taken over from another folder of the kit's: their record too; one process does."""
        source, here = self._earlier_record(), self.folder / f"{self._stem}{_RECORD_ENDING}"
        if self._rank == 0 and source is not None and source != here:
            here.write_bytes(source.read_bytes())

    def remove_stale(self) -> None:
        """Remove evaluations of older answers."""
        for path in self.folder.glob(f"{self._stem}_*"):
            if _STALE.match(path.name.removeprefix(self._stem)):
                path.unlink(missing_ok=True)

    def forget(self) -> None:
        """Remove this process's journal, and what runs with another number of processes left: the kit has all answers.

        The kit removes its partial files of its own number of processes alone, and a later run would take the others'
        for newer than the results.
        """
        current = {f"{rank}{self._world}_{self.data}.pkl" for rank in range(self._world)}
        for path in self.folder.glob(f"*_{self.data}.pkl"):
            if path.name not in current and re.fullmatch(rf"\d+_{re.escape(self.data)}\.pkl", path.name):
                path.unlink(missing_ok=True)
        for path in self._journals():
            rank, world = path.name.removesuffix(f"_{self.data}{_JOURNAL_ENDING}").split("of")
            if (int(rank), int(world)) == (self._rank, self._world) or int(world) != self._world:
                path.unlink(missing_ok=True)

    def _earlier_record(self) -> Path | None:
        """How the answers were made that the kit would continue; None where there are none, or nothing says it."""
        name = f"{self._stem}{_RECORD_ENDING}"
        here = self.folder / name
        if here.is_file() or self._home == self.folder or not self._holds_answers(self.folder):
            return here if here.is_file() else None
        # A kit with a folder per start copies the newest answers here, and nothing of this package's.
        others = [path for path in self._home.iterdir() if path.is_dir() and path != self.folder]
        holding = [path for path in others if self._holds_answers(path)]
        newest = max(holding, key=lambda path: path.stat().st_mtime, default=None)
        return newest / name if newest is not None and (newest / name).is_file() else None

    def _holds_answers(self, folder: Path) -> bool:
        """Whether there is what the kit continues: a result file, or what it writes every tenth answer."""
        data, stem = re.escape(self.data), re.escape(self._stem)
        continued = re.compile(rf"^(\d+_{data}\.pkl|{stem}_PREV\.pkl|{stem}\.(tsv|xlsx|json))$")
        return folder.is_dir() and any(continued.match(path.name) for path in folder.iterdir())

    def _journal(self, rank: int, world: int) -> Path:
        return self._home / f"{rank}of{world}_{self.data}{_JOURNAL_ENDING}"

    def _journals(self) -> list[Path]:
        pattern = re.compile(rf"^\d+of\d+_{re.escape(self.data + _JOURNAL_ENDING)}$")
        return [path for path in self._home.glob(f"*{_JOURNAL_ENDING}") if pattern.match(path.name)]


_ELSEWHERE = "give another --work-dir, or remove that folder"
_PROCESSES = {"RANK": "0", "WORLD_SIZE": "1"}


def _as_text(arguments: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in sorted(arguments.items())}
