"""Around the kit's inference of one data set by a model of this package: nothing lost, nothing stale, nothing mixed up.

- Answers are journalled one by one, so a kill loses none (`journal`); the kit's own partial files are not used.
- Every row of a result file names what decided its answer (`KEY`). Answers of another model, of other options or to
  other data are not continued: that is an error, before anything is asked.
- Before a new answer is given, files in which the kit keeps judgements of older answers are removed.
- The record of how the model was loaded stands beside the results, and the seal on its weights is checked.
- Of several processes, all go on or none does.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from loguru import logger

from flmm_plugin import files
from flmm_plugin.adapters.answering.identity import answer_facts, digest_of
from flmm_plugin.adapters.vlmevalkit import messages, outcomes, predictions
from flmm_plugin.adapters.vlmevalkit.asked import unknown
from flmm_plugin.adapters.vlmevalkit.journal import Journal
from flmm_plugin.errors import FlmmError, FrozenWeightsChanged, UnknownArgument

#: Column of a result file: what decided the answer of a row, and what was asked, as ``run-question``.
KEY = "flmm_key"

#: What the kit keeps of earlier evaluations of a result file; it would take them for those of the new answers.
_STALE = re.compile(r"^_(auxmatch|tmp|score|acc|detail|[a-z0-9.-]+(_matching)?_result)\.\w+$")

_RECORD_ENDING = "_flmm.json"
_JOURNAL_ENDING = ".flmm.jsonl"
_ELSEWHERE = "give another --work-dir, or remove that folder"


class ProcessFailed(FlmmError):
    """Another process of this run failed, so none of them goes on; the message says which and why."""


def answering(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the kit's ``infer_data`` with all of the above; models of others pass through unchanged."""

    def infer_data(model: Any, model_name: str, work_dir: str, dataset: Any, out_file: str, **options: Any) -> Any:
        from vlmeval.config import supported_VLM

        if isinstance(model, str) and model not in supported_VLM:
            raise UnknownArgument(unknown("model", model, supported_VLM))
        rest = {"model_name": model_name, "work_dir": work_dir, "dataset": dataset, "out_file": out_file, **options}
        if not _is_ours(model):
            return original(model=model, **rest)

        def answered() -> tuple[Any, DataSetRun, dict[str, str]]:
            one = _built(supported_VLM[model], options) if isinstance(model, str) else model
            run = DataSetRun(Path(work_dir), model_name, str(dataset.dataset_name), answer_facts(one))
            dataset.build_prompt = _forgiving(dataset.build_prompt)
            keys = run.keys(dataset)
            journal = run.journal()
            if not set(keys) <= run.held(_result(work_dir, model_name, dataset), dataset.data["index"], keys, journal):
                run.remove_stale()
            run.drop_partial_files(_result(work_dir, model_name, dataset))
            one.journal = journal
            try:
                original(model=one, **rest)
                one.finished(run.data)
            except FrozenWeightsChanged:
                Path(out_file).unlink(missing_ok=True)
                run.forget()
                raise
            finally:
                one.journal = None
            logger.info(f"flmm: {run.data}: {journal.found} answers from disk, {journal.added} new")
            return one, run, keys

        one, run, keys = _together(answered)
        for others in _gathered(keys):
            keys.update(others)
        dataset.data = dataset.data.assign(**{KEY: [keys[str(index)] for index in dataset.data["index"]]})
        run.record(one.provenance, one.arguments)
        dataset.flmm_run = run
        return one

    return infer_data


def delivering(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap ``infer_data_job``: journals are kept until the result file is there, and all know of failures."""

    def infer_data_job(model: Any, work_dir: str, model_name: str, dataset: Any, **options: Any) -> Any:
        rest = {"work_dir": work_dir, "model_name": model_name, "dataset": dataset, **options}
        if not _is_ours(model):
            return original(model, **rest)

        import torch.distributed as dist

        def delivered() -> Any:
            result = _result(work_dir, model_name, dataset)
            if result.is_file():
                predictions.read(result)  # what cannot be read stops all processes, not the first one alone
            try:
                return original(model, **rest)
            except Exception:
                if hasattr(dataset, "flmm_run") and _several():
                    dist.barrier()  # all have answered, and the others wait for the file that this one writes
                raise

        try:
            one = _together(delivered)
        except Exception as exc:
            outcomes.note(
                {"model_name": model_name, "dataset_name": dataset.dataset_name, "status": "done",
                 "error_message": f"{exc}" or type(exc).__name__}
            )  # fmt: skip
            raise
        dataset.flmm_run.forget()
        return one

    return infer_data_job


class DataSetRun:
    """One model's run over one data set, in the kit's folder.

    Args:
        folder: Where the kit writes; in one of the two kits a folder per start, under the model's.
        model: Name that results of the model are filed under.
        data: Name of the data set.
        facts: What decides the model's answers (`flmm_plugin.adapters.answering.identity.answer_facts`).
    """

    def __init__(self, folder: Path, model: str, data: str, facts: Mapping[str, Any]) -> None:
        self.folder, self.model, self.data, self.facts = folder, model, data, facts
        self.identity = digest_of(facts)
        self._rank, self._world = (int(os.environ.get(name, default)) for name, default in _PROCESSES.items())
        # Of all starts of a model: an answer is not lost because the next start has a folder of its own.
        self._home = folder if folder.name == model else folder.parent
        self._stem = f"{model}_{data}"

    def keys(self, dataset: Any) -> dict[str, str]:
        """Name what decides the answer of each row that this process asks about.

        Args:
            dataset: The kit's; of N processes, each asks about every N-th row.

        Returns:
            The row's index -> ``run-question``, each 16 hexadecimal digits.
        """
        found: dict[str, str] = {}
        table = dataset.data
        for place in range(self._rank, len(table), self._world):
            row = table.iloc[place]
            cells = {name: str(value) for name, value in row.items() if name not in ("image", "image_path", KEY)}
            asked = messages.digest_of(dataset.build_prompt(row), self.data)
            question = digest_of([asked, cells, str(getattr(dataset, "identity", ""))])
            found[str(row["index"])] = f"{self.identity[:16]}-{question[:16]}"
        return found

    def journal(self) -> Journal:
        """This process's journal, with what earlier runs left."""
        return Journal(self._journal(self._rank, self._world), self.identity, self._journals())

    def held(self, result: Path, indices: Iterable[Any], keys: Mapping[str, str], journal: Journal) -> set[str]:
        """Find the rows that a result file has answers of, all of them this run's.

        Args:
            result: File that the kit goes on from, if it is there.
            indices: The index of every row that is asked about, by whatever process.
            keys: What `keys` returns.
            journal: What `journal` returns; it knows of answers of a run that was killed.

        Returns:
            Their indices.

        Raises:
            UnknownArgument: It holds answers of another model, of other options, to other data or to rows that are not
                asked about; or a killed run of another model or options had begun.
        """
        if journal.foreign and self._partial_files():
            raise UnknownArgument(
                f"{self.folder} holds answers to {self.data} of a run that was killed, {self._difference()}; "
                + _ELSEWHERE
            )
        if not result.is_file():
            return set()
        table = predictions.read(result)
        made_by = table[KEY].astype(str) if KEY in table else [""] * len(table)
        rows = zip(map(str, table["index"]), table[predictions.ANSWERS], made_by, strict=True)
        answered = {index: key for index, reply, key in rows if not messages.is_failure(reply)}
        here = f"{result} holds {len(answered)} answers of {self.model}"
        if any(key.partition("-")[0] != self.identity[:16] for key in answered.values()):
            raise UnknownArgument(f"{here}, {self._difference()}; {_ELSEWHERE}")
        if any(answered.get(index, key) != key for index, key in keys.items()):
            raise UnknownArgument(f"{here} to other data of the name {self.data}; {_ELSEWHERE}")
        left_out = len(set(answered) - set(map(str, indices)))
        if left_out:
            raise UnknownArgument(
                f"{here}, and this run leaves out {left_out} of their rows, which would be lost; {_ELSEWHERE}, or give "
                "the --limit that they were made with"
            )
        return set(answered)

    def record(self, provenance: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
        """Write how the model was loaded and what decides its answers, beside the results; one process does."""
        if self._rank == 0:
            content = {**provenance, "processes": self._world, "answers": self.identity, "decided_by": self.facts}
            content["arguments"] = {name: str(value) for name, value in sorted(arguments.items())}
            files.write(self._record(), json.dumps(content, indent=1, default=str))

    def remove_stale(self) -> None:
        """Remove evaluations of older answers."""
        for path in self.folder.glob(f"{self._stem}_*"):
            if _STALE.match(path.name.removeprefix(self._stem)):
                path.unlink(missing_ok=True)

    def drop_partial_files(self, result: Path) -> None:
        """Remove what the kit keeps of this process's unfinished work: it does not say whose answers they are."""
        (self.folder / f"{self._rank}{self._world}_{self.data}.pkl").unlink(missing_ok=True)
        if not result.is_file():
            (self.folder / f"{self._stem}_PREV.pkl").unlink(missing_ok=True)

    def forget(self) -> None:
        """Remove this process's journal, and what runs with another number of processes left: the kit has all answers.

        The kit removes its partial files of its own number of processes alone, and a later run would take the others'
        for newer than the results.
        """
        current = {f"{rank}{self._world}_{self.data}.pkl" for rank in range(self._world)}
        for path in self._partial_files():
            if path.name not in current:
                path.unlink(missing_ok=True)
        for path in self._journals():
            rank, world = path.name.removesuffix(f"_{self.data}{_JOURNAL_ENDING}").split("of")
            if (int(rank), int(world)) == (self._rank, self._world) or int(world) != self._world:
                path.unlink(missing_ok=True)

    def _difference(self) -> str:
        """Say in what the answers that are here were made otherwise, as far as a record knows."""
        records = [self._record(), *self._home.glob(f"*/{self._record().name}")]
        for path in sorted(filter(Path.is_file, records), key=lambda one: one.stat().st_mtime, reverse=True):
            before = json.loads(path.read_text(encoding="utf-8")).get("decided_by", {})
            names = sorted(name for name in {*before, *self.facts} if before.get(name) != self.facts.get(name))
            if before and names:
                return f"which was another one or had other options ({', '.join(names)})"
        return "and nothing says that they are of this model, these options and this version"

    def _record(self) -> Path:
        return self.folder / f"{self._stem}{_RECORD_ENDING}"

    def _partial_files(self) -> list[Path]:
        """List what the kit writes every tenth answer, of all processes."""
        mine = re.compile(rf"^\d+_{re.escape(self.data)}\.pkl$")
        return [path for path in self.folder.glob(f"*_{self.data}.pkl") if mine.match(path.name)]

    def _journal(self, rank: int, world: int) -> Path:
        return self._home / f"{rank}of{world}_{self.data}{_JOURNAL_ENDING}"

    def _journals(self) -> list[Path]:
        pattern = re.compile(rf"^\d+of\d+_{re.escape(self.data + _JOURNAL_ENDING)}$")
        return [path for path in self._home.glob(f"*{_JOURNAL_ENDING}") if pattern.match(path.name)]


_PROCESSES = {"RANK": "0", "WORLD_SIZE": "1"}


def _is_ours(model: Any) -> bool:
    from vlmeval.config import supported_VLM

    from flmm_plugin.adapters.vlmevalkit.model import FLMM

    return isinstance(model, FLMM) or (isinstance(model, str) and _maker(supported_VLM.get(model)) is FLMM)


def _maker(entry: Any) -> Any:
    return getattr(entry, "func", entry)


def _built(make: Callable[..., Any], options: Mapping[str, Any]) -> Any:
    """Make a model, with the number of processes hidden from transformers, which would split it over them."""
    world = os.environ.pop("WORLD_SIZE", None)
    try:
        return make(use_vllm=options.get("use_vllm", False))
    finally:
        if world is not None:
            os.environ["WORLD_SIZE"] = world


def _result(work_dir: str, model_name: str, dataset: Any) -> Path:
    from vlmeval.smp import get_pred_file_path

    return Path(get_pred_file_path(work_dir, model_name, dataset.dataset_name))


def _forgiving(build_prompt: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Wrap a data set's ``build_prompt``: a row that cannot be asked about costs itself alone."""

    def asked(row: Any) -> Any:
        try:
            return build_prompt(row)
        except Exception as exc:
            return messages.unasked(exc)

    return asked


def _together(work: Callable[[], Any]) -> Any:
    """Do a piece of work in every process, or fail in all of them.

    Returns:
        What `work` returns here.

    Raises:
        ProcessFailed: Another process's work raised; this one's raises what it raised.
    """
    problem: Exception | None = None
    done = None
    try:
        done = work()
    except Exception as exc:
        problem = exc
    said = _gathered("" if problem is None else f"{type(problem).__name__}: {problem}")
    if problem is not None:
        raise problem
    failed = [f"process {rank}: {text}" for rank, text in enumerate(said) if text]
    if failed:
        raise ProcessFailed("; ".join(failed))
    return done


def _several() -> bool:
    import torch.distributed as dist

    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _gathered(thing: Any) -> list[Any]:
    """Collect the same thing of every process, in their order."""
    if not _several():
        return [thing]
    import torch.distributed as dist

    things: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(things, thing)
    return things
