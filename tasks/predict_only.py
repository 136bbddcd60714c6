"""Score logs of ``--predict_only``: replies without what they are compared with, which is read from the data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from flmm_plugin.errors import BadAnnotation, DataNotFound, UnknownArgument
from flmm_plugin.tasks.sample_log import Record
from flmm_plugin.tasks.standalone import StandaloneTask

#: What lmms-eval itself logs of a document; ``bypass`` stands in place of the metrics, in most tasks.
_HARNESS = frozenset(
    {"doc_id", "doc", "target", "arguments", "input", "input_media", "resps", "filtered_resps", "token_counts"}
    | {"doc_hash", "bypass"}
)


def is_unscored(line: Record) -> bool:
    """Return whether a line was written with ``--predict_only``."""
    return line.keys() <= _HARNESS and {"target", "filtered_resps"} <= line.keys()


def scored(lines: Sequence[Record], path: Path, task: str, annotations: str, quiet: bool) -> list[Record]:
    """Add to the lines what a run without ``--predict_only`` would have logged.

    Args:
        lines: All lines of one log.
        path: The log, to be named in errors.
        task: Name of the task that was run.
        annotations: Hash of the annotation files of the run, "" if that is not known.
        quiet: Whether to draw no progress bar.

    Raises:
        UnknownArgument: The task's data is read by its harness.
        DataNotFound: The data set is not here.
        BadAnnotation: The log is of other data.
    """
    left_out = f"{path.name} was written with --predict_only, which leaves out what replies are compared with"
    try:
        source = StandaloneTask(task)
    except UnknownArgument as exc:
        raise UnknownArgument(
            f"{left_out}, and lmms-eval alone reads the data of {task}: run the same line without --predict_only (with "
            "--use_cache FOLDER in both, the answers are not made again)"
        ) from exc
    except DataNotFound as exc:
        raise DataNotFound(f"{left_out}; it is read from the data set, and there is {exc}") from exc
    if annotations and annotations != source.annotations:
        raise BadAnnotation(
            f"{left_out}; the data set here is another one than the run's ({source.annotations[:14]}, not "
            f"{annotations[:14]}): set FLMM_DATA to the run's"
        )
    found: list[Record] = []
    for line in tqdm(lines, desc=task, unit="doc", disable=quiet):
        place = line["doc_id"]
        if not 0 <= place < len(source.docs) or source.target(source.docs[place]) != line.get("target"):
            raise BadAnnotation(
                f"{left_out}; document {place} is not that of {task} in the data set here: is it a log of that task, "
                "and does FLMM_DATA name the run's data?"
            )
        found.append({**line, **source.score(source.docs[place], line.get("filtered_resps"))})
    return found
