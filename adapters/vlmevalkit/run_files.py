"""Files of one model's run over one data set: its journal, and which answers are there and whose they are.

The kit writes every tenth answer, and a kill costs what came after. A journal is one file of JSON lines beside the
kit's own results, kept while a model answers a data set and removed when the kit has written them all. A line is found
again by all that was asked (`messages.digest_of`), not by a row's number.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from flmm_plugin import files, json_lines
from flmm_plugin.adapters.answering.identity import digest_of
from flmm_plugin.adapters.vlmevalkit import messages, predictions
from flmm_plugin.errors import UnknownArgument

#: Column of a result file: what decided the answer of a row, and what was asked, as ``run-question``.
KEY = "flmm_key"

#: What the kit keeps of earlier evaluations of a result file; it would take them for those of the new answers.
_STALE = re.compile(r"^_(auxmatch|tmp|score|acc|detail|[a-z0-9.-]+(_matching)?_result)\.\w+$")

_RECORD_ENDING = "_flmm.json"
_JOURNAL_ENDING = ".flmm.jsonl"
_JOURNAL_FIELDS = 3  # of a line: identity, digest, answer
_ELSEWHERE = "give another --work-dir, or remove that folder"


class Journal:
    """Answers that one process gave to a data set, each on disk.

    Args:
        path: The file that this process writes.
        identity: Name of what decides the answers: lines of another one are left out.
        others: Files that earlier runs, perhaps of another number of processes, left; they are read as well.
    """

    def __init__(self, path: Path, identity: str, others: Iterable[Path] = ()) -> None:
        self.path, self._identity = path, identity[:16]
        found = (line for file in {path, *others} for line in json_lines.read(file))
        lines = [line for line in found if isinstance(line, list) and len(line) == _JOURNAL_FIELDS]
        self._known = {digest: answer for whose, digest, answer in lines if whose == self._identity}
        #: Whether answers of another identity are there.
        self.foreign = any(whose != self._identity for whose, _, _ in lines)
        #: Answers that were found, and answers that were added.
        self.found = self.added = 0

    def get(self, digest: str) -> str | None:
        """Return the answer to what was asked, None if it is not there."""
        answer = self._known.get(digest)
        self.found += answer is not None
        return answer

    def add(self, digest: str, answer: str) -> None:
        """Write an answer down; it is on disk when this returns."""
        self._known[digest] = answer
        self.added += 1
        json_lines.append(self.path, [self._identity, digest, answer])


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
        self._rank = int(os.environ.get("RANK", "0"))
        self._world = int(os.environ.get("WORLD_SIZE", "1"))
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
        """Return this process's journal, with what earlier runs left."""
        path = self._home / f"{self._rank}of{self._world}_{self.data}{_JOURNAL_ENDING}"
        return Journal(path, self.identity, self._journals())

    def held(self, result: Path, indices: Iterable[Any], keys: Mapping[str, str], journal: Journal) -> set[str]:
        """Find the rows that a result file has answers of, all of them this run's.

        Args:
            result: File that the kit goes on from, if it is there.
            indices: The index of every row that is asked about, by whatever process.
            keys: What decides the answer of each row of this process, as `keys` returns it.
            journal: As `journal` returns it; it knows of answers of a run that was killed.

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
            rank, world = path.name.partition("_")[0].split("of")
            if int(world) != self._world or int(rank) == self._rank:
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
        return _matching(self.folder, rf"\d+_{re.escape(self.data)}\.pkl")

    def _journals(self) -> list[Path]:
        return _matching(self._home, rf"\d+of\d+_{re.escape(self.data + _JOURNAL_ENDING)}")


def _matching(folder: Path, pattern: str) -> list[Path]:
    """List the files of a folder whose whole names match a pattern."""
    return [path for path in folder.glob("*") if re.fullmatch(pattern, path.name)]
