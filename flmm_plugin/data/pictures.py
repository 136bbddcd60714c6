"""Fetch pictures one by one, many at a time.

Each appears under its name when it is whole. What is there is not fetched again, so a run that is killed goes on.
"""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from urllib.parse import quote

from tqdm import tqdm

from flmm_plugin import files
from flmm_plugin.data.downloading import install
from flmm_plugin.data.registry import Pictures
from flmm_plugin.errors import DataNotFound
from flmm_plugin.file_kinds import kind_of_bytes

_CONNECTIONS = 16
_TIMEOUT = 60

#: Seconds before each try of a picture.
_WAITS = (0.0, 0.5, 3.0)

#: Failures in a row after which the rest is not tried: the network or the server is away.
_HOPELESS = 50

_NAMED = 5
_BEGINNINGS = (b"\xff\xd8", b"\x89PNG\r\n\x1a\n")


def install_pictures(source: Pictures, paths: Sequence[Path], root: Path, *, archive: bool = False) -> None:
    """Fetch pictures that are not there, one by one, or their archive where they are most of it.

    Args:
        source: Where they are on the web.
        paths: Files to write, one for each picture, named as at the source.
        root: Data root; the lock of the download lies in its workplace.
        archive: Fetch the archive in any case.

    Raises:
        DataNotFound, BadAnnotation, OutputFailed: As `fetch_pictures` and `flmm_plugin.data.downloading.install`.
    """
    if archive or source.worth_the_archive(len(paths)):
        install(source.archive, root)
        return
    downloads = files.make_folder(root / files.WORKPLACE / "downloads")
    with files.Lock(downloads / f".{source.archive.urls[0].rsplit('/', 1)[1]}.pictures.lock"):
        # Another process may have fetched some while this one waited.
        fetch_pictures(source.address, [path for path in paths if not path.is_file()])


def fetch_pictures(address: str, paths: Sequence[Path]) -> None:
    """Fetch pictures; a terminal shows how many are done.

    Args:
        address: Address of a picture, with ``{name}`` where its file name goes.
        paths: Where they go, all into one folder, which nobody else writes to meanwhile.

    Raises:
        DataNotFound: Some could not be fetched: how many, the first ones and why. The others are there.
        OutputFailed: The folder cannot be written or its disk has no room.
    """
    for folder in {path.parent for path in paths}:
        files.sweep(folder)
    failures: list[str] = []
    in_a_row = 0
    pool = ThreadPoolExecutor(_CONNECTIONS)
    try:
        waiting = {pool.submit(_fetch_one, address.format(name=quote(path.name)), path): path for path in paths}
        bar = tqdm(as_completed(waiting), total=len(waiting), desc="pictures", unit="picture", disable=None)
        for done in bar:
            problem = done.result()
            in_a_row = in_a_row + 1 if problem else 0
            if problem:
                failures.append(f"{waiting[done].name}: {problem}")
            if in_a_row == _HOPELESS:
                break
    finally:
        pool.shutdown(cancel_futures=True)
    missing = sum(not path.is_file() for path in paths)
    if missing:
        first = "; ".join(failures[:_NAMED])
        raise DataNotFound(
            f"{missing} of {len(paths)} pictures could not be fetched ({first}{'; ...' if missing > _NAMED else ''}). "
            "The others are there: run the same command again"
        )


def _fetch_one(address: str, path: Path) -> str | None:
    """Fetch one picture and return what went wrong, None if nothing did."""
    request = urllib.request.Request(address, headers={"User-Agent": "flmm-plugin"})
    problem = ""
    for seconds in _WAITS:
        time.sleep(seconds)
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
                content = answer.read()
        except urllib.error.HTTPError as exc:
            problem = f"HTTP status {exc.code}"
            if exc.code < 500 and exc.code != http.HTTPStatus.TOO_MANY_REQUESTS:
                break
        except (OSError, http.client.HTTPException) as exc:
            problem = f"{type(exc).__name__}: {exc}"
        else:
            if not content.startswith(_BEGINNINGS):
                return f"what came is {kind_of_bytes(content)}"
            with files.new_file(path, durable=False) as part:
                part.write_bytes(content)
            return None
    return problem
