"""Write the kit's result files whole, and read them as they were written.

The kit reads its tables with pandas' defaults, which take an answer such as ``NA``, ``None`` or an empty one for a
missing number and ``007`` for 7. Here an answer is the text that it is, in every file that has a column of answers, and
a failed sample is shown to the kit's scoring as `NOTHING`, from which no rule reads an answer.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from flmm_plugin import files
from flmm_plugin.adapters.vlmevalkit.messages import FAILED, NOTHING, is_failure
from flmm_plugin.errors import BadAnnotation, OutputFailed

ANSWERS = "prediction"
#: The data's own answers: words that pandas takes for nothing stay words here too, or no answer would equal them.
_REFERENCES = "answer"

Table = Any


class Readers:
    """Stand-in for pandas in the kit's ``load``: a table's answers are read as text, failed ones as `NOTHING`."""

    def __getattr__(self, name: str) -> Any:
        found = getattr(pd, name)
        if name not in ("read_csv", "read_excel"):
            return found

        def read_scored(path: Any, **options: Any) -> Table:
            table = _as_written(found, path, **options)
            if ANSWERS in table:
                table[ANSWERS] = [NOTHING if is_failure(reply) else reply for reply in table[ANSWERS]]
            return table

        return read_scored


def read(path: Path) -> Table:
    """Read a result file of the kit, in any of its formats, with answers as text.

    Raises:
        BadAnnotation: It cannot be read, or has no answers.
    """
    try:
        if path.suffix == ".json":
            table = pd.DataFrame(json.loads(path.read_text(encoding="utf-8")))
        elif path.suffix == ".xlsx":
            table = _as_written(pd.read_excel, path)
        else:
            table = _as_written(pd.read_csv, path, sep="\t")
    except (ValueError, OSError) as exc:
        raise BadAnnotation(f"{path} cannot be read as a result file of the kit ({exc}); remove it") from exc
    if not {"index", ANSWERS} <= set(table):
        raise BadAnnotation(f"{path} has no columns index and {ANSWERS}: it is no result file of the kit")
    return table


def answers_of(table: Table) -> dict[str, str]:
    """Return index -> answer of a table, both as text."""
    return dict(zip(map(str, table["index"]), map(str, table[ANSWERS]), strict=True))


def whole(dump: Callable[..., Any], content: Any, path: Any, *args: Any, **options: Any) -> Any:
    """Call the kit's ``dump``, which a kill or a full disk interrupts: a file is complete, or not there.

    Raises:
        OutputFailed: The place cannot be written.
    """
    target = Path(str(path))
    with files.naming(target), tempfile.TemporaryDirectory(dir=target.parent, prefix=".") as aside:
        done = dump(content, str(Path(aside) / target.name), *args, **options)
        made = list(Path(aside).iterdir())
        # A pickle of another name is what the kit writes where a format fails, which leaves half a file.
        for one in [one for one in made if one.name != target.name] or made:
            os.replace(one, target.parent / one.name)
    return done


def keeping(dump: Callable[..., Any], content: Any, path: Any, **options: Any) -> Any:
    """Call the ``dump`` of the kit's inference: answers are on disk as they were given.

    Raises:
        OutputFailed: The place cannot be written, or the format does not keep them.
    """
    done = dump(content, path, **options)
    target = Path(str(path))
    changed = _changed(content, target) if isinstance(content, pd.DataFrame) and ANSWERS in content else 0
    if changed:
        target.unlink(missing_ok=True)
        raise OutputFailed(
            f"{target.suffix} does not keep {changed} of {len(content)} answers as they were given; "
            "PRED_FORMAT=tsv keeps every one"
        )
    return done


def marked(load: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Call a reader of the kit's: failed samples have the mark by which it counts them and asks them again."""
    content = load(*args, **options)
    if isinstance(content, pd.DataFrame) and ANSWERS in content:
        content[ANSWERS] = [FAILED if reply == NOTHING else reply for reply in content[ANSWERS]]
    return content


def _as_written(reader: Callable[..., Table], path: Any, **options: Any) -> Table:
    table = reader(path, **options)
    for column in (ANSWERS, _REFERENCES):
        if column not in table or (column == _REFERENCES and not table[column].isna().any()):
            continue
        raw = reader(path, **options, usecols=[column], dtype=str, keep_default_na=False)[column]
        if column == ANSWERS:
            table[column] = raw
        elif (raw[table[column].isna()] != "").any():
            table[column] = raw.where(raw != "")
    return table


def _changed(given: Table, path: Path) -> int:
    """Count the answers that a file does not hold as they were given; all of them where it is not there."""
    if not path.is_file():
        return len(given)
    held = answers_of(read(path))
    return sum(held.get(index) != reply for index, reply in answers_of(given).items())
