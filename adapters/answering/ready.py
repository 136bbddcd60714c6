"""Get everything that a run needs before anything is loaded: fetched once, or listed on one screen."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from filelock import Timeout

from flmm_plugin.errors import FlmmError
from flmm_plugin.files import Lock, cache_folder, make_folder
from flmm_plugin.needs import Need, missing, offline, provide

_log = logging.getLogger(__name__)


def get_ready(find: Callable[[], Sequence[Need]], *, fetch: bool, folder: Path) -> None:
    """Fetch what is missing, one process at a time; the others wait, and find it there.

    Args:
        find: Returns everything that the run needs; asked again when another process has fetched.
        fetch: Whether anything may be fetched.
        folder: Folder on the disk that takes what is fetched.

    Raises:
        NotReady: Something is missing that may not or cannot be fetched; the message lists all of it.
        OutputFailed: The disk has no room for it.
        DataNotFound, BadAnnotation, BadCheckpoint: A fetch failed.
    """
    needs = find()
    gone = missing(needs)
    if not gone or offline() or not fetch or any(need.bring is None for need in gone):
        provide(needs, fetch=fetch, folder=folder)
        return
    lock = Lock(make_folder(cache_folder()) / ".fetch.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _log.warning("another process is fetching what is missing; this one waits for it")
        lock.acquire()
        needs = find()
    try:
        provide(needs, fetch=fetch, folder=folder)
    finally:
        lock.release()


def reads(task: str) -> bool:
    """Tell whether a task's own reader finds its documents: it may know a place that no list has.

    Args:
        task: Name of a task of this package.
    """
    from flmm_plugin.tasks.standalone import StandaloneTask

    try:
        docs = StandaloneTask(task).docs
        return len(docs) == 0 or Path(str(docs[0]["image_path"])).is_file()
    except (FlmmError, OSError, KeyError):
        return False
