"""Say what work needs before it begins: what is here, what is missing, how large it is, and what brings it."""

from __future__ import annotations

import contextvars
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from flmm_plugin import files
from flmm_plugin.errors import DataNotFound, FlmmError

#: Set to 1, nothing is fetched from anywhere; the hub's own ``HF_HUB_OFFLINE`` means the same.
OFFLINE_VARIABLE = "FLMM_OFFLINE"

_log = logging.getLogger(__name__)
_fetching = contextvars.ContextVar("_fetching", default=False)


class NotReady(DataNotFound):
    """Something that a run needs is not on this machine; the message lists all of it, a line each."""


@dataclass(frozen=True)
class Need:
    """One thing that work needs: the weights of a model, heads, SAM, a part of a data set, a key.

    Attributes:
        kind: ``model``, ``heads``, ``sam``, ``data`` or ``key``; the first column of a listing.
        what: Words that name it, such as ``SAM vit_l``.
        here: Whether it is on this machine.
        size: Bytes to fetch if it is not here; None where nobody states them.
        space: Bytes that it takes on the disk in the end, with what is unpacked or made of it; None: as ``size``.
        source: Address that it comes from.
        licence: Terms of its publisher, shown before it is fetched.
        command: The one command that brings it, or what a person must do by hand.
        bring: Fetches it; None where only a person can.
        users: Tasks that need it; empty where everything does.
        folder: Where it goes, for the check of its disk; None: into `flmm_plugin.files.cache_folder`.
    """

    kind: str
    what: str
    here: bool
    size: int | None = None
    space: int | None = None
    source: str = ""
    licence: str = ""
    command: str = ""
    bring: Callable[[], object] | None = None
    users: tuple[str, ...] = ()
    folder: Path | None = None


def offline() -> bool:
    """Return whether the environment forbids to fetch anything."""
    said = (os.environ.get(name, "").strip().lower() for name in (OFFLINE_VARIABLE, "HF_HUB_OFFLINE"))
    return any(value in ("1", "true", "yes", "on") for value in said)


def missing(needs: Iterable[Need]) -> list[Need]:
    """Return those that are not here."""
    return [need for need in needs if not need.here]


def size_text(size: int | None) -> str:
    """Write a number of bytes in GB, MB or kB; a question mark where nobody states it.

    >>> size_text(13_510_573_713), size_text(375_042_383), size_text(None)
    ('13.5 GB', '375 MB', '? GB')
    """
    if size is None:
        return "? GB"
    for unit, scale, digits in (("GB", 1e9, 1), ("MB", 1e6, 0)):
        if size >= scale:
            return f"{size / scale:.{digits}f} {unit}"
    return f"{size / 1e3:.0f} kB"


def listing(needs: Sequence[Need]) -> str:
    """Write what is missing, one line each: kind, name, size, users, and the command that brings it."""
    rows = [(need.kind, need.what, size_text(need.size), _users(need), need.command) for need in needs]
    widths = [max(len(row[column]) for row in rows) for column in range(3)] if rows else []
    lines = []
    for kind, what, size, users, command in rows:
        lines.append(f"  {kind:<{widths[0]}}  {what:<{widths[1]}}  {size:>{widths[2]}}{users}")
        if command:
            lines.append(f"      {command}")
    return "\n".join(lines)


def _users(need: Need) -> str:
    shown = ", ".join(need.users[:3])
    more = len(need.users) - 3
    return f"  for {shown}" + (f" and {more} more" if more > 0 else "") if shown else ""


def provide(needs: Iterable[Need], *, fetch: bool, again: Callable[[], Iterable[Need]] | None = None) -> None:
    """Fetch what is missing, or refuse with one screen that lists all of it.

    One process fetches at a time. The others wait, and find there what it has brought.

    Args:
        needs: Everything that the work needs, whether here or not.
        fetch: Whether anything may be fetched; the environment can forbid it too (`offline`).
        again: Returns the needs anew, for a process that has waited; None: as they were.

    Raises:
        NotReady: Something is missing that may not or cannot be fetched; nothing was fetched then.
        OutputFailed: A disk has no room for what goes there.
        DataNotFound, BadAnnotation, BadCheckpoint: From what fetches; what has arrived is kept. A note below the
            message lists what is still missing.
    """
    gone = missing(needs)
    if not gone:
        return
    by_hand = [need for need in gone if need.bring is None]
    if by_hand or not fetch or offline():
        forbidden = offline() or not fetch
        why = "; fetching is switched off" if forbidden else ""
        rest = "" if by_hand else "\nThe same command brings all of it where fetching is allowed."
        raise NotReady(f"nothing was loaded, because this is missing{why}:\n{listing(gone)}{rest}")
    if _fetching.get():  # by what fetches something that is made of this
        for need in gone:
            _bring(need)
        return
    with files.turn(files.cache_folder() / "missing parts", "fetching") as waited:
        gone = missing(again()) if waited and again is not None else gone
        token = _fetching.set(True)
        try:
            _bring_all(gone)
        finally:
            _fetching.reset(token)


def _bring_all(gone: Sequence[Need]) -> None:
    if not gone:
        return
    _check_room(gone)
    _log.warning("fetching what is missing (%s), once:\n%s", _total(gone), listing(gone))
    for number, need in enumerate(gone):
        _log.warning("%s %s from %s%s", need.kind, need.what, need.source, _terms(need))
        try:
            _bring(need)
        except FlmmError as exc:
            server = urlsplit(need.source).hostname or need.source
            exc.add_note(
                f"{need.kind} {need.what} did not come{f' from {server}' if server else ''}. Still missing:\n"
                f"{listing(gone[number:])}\nThe same command goes on where this one stopped."
            )
            raise


def _bring(need: Need) -> None:
    assert need.bring is not None
    need.bring()


def _check_room(needs: Iterable[Need]) -> None:
    """See that each disk has room for what goes there.

    Raises:
        OutputFailed: One has not.
    """
    sizes: dict[int, int] = {}
    for need in needs:
        folder = (need.folder or files.cache_folder()).absolute()
        place = next(one for one in (folder, *folder.parents) if one.is_dir())
        disk = place.stat().st_dev
        sizes[disk] = sizes.get(disk, 0) + (need.space or need.size or 0)
        files.check_room(place, sizes[disk])


def _total(needs: Sequence[Need]) -> str:
    known = sum(need.size or 0 for need in needs)
    if all(need.size is not None for need in needs):
        return size_text(known)
    return f"{size_text(known)} and parts of unknown size" if known else "of unknown size"


def _terms(need: Need) -> str:
    return f"; licence: {need.licence}" if need.licence else ""
