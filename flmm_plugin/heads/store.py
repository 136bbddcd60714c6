"""Keep heads on this machine under the model that they are for: released ones, and those of hub repositories.

The store is the folder ``heads`` of `flmm_plugin.files.cache_folder`. Each file in it is complete. Its manifest says
where it is from (``notes``: ``source``, and the SHA-256 of a released file or the commit of a repository). A heads file
that a person puts there is found as well.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from flmm_plugin import files
from flmm_plugin.content_hashes import file_digest
from flmm_plugin.errors import BadCheckpoint, FlmmError, HeadsMismatch, UnknownArgument
from flmm_plugin.fetching import WebFile
from flmm_plugin.fetching import fetch as fetch_file
from flmm_plugin.heads.checkpoint import heads_file, read_manifest, save_heads
from flmm_plugin.heads.hub import hub_address, pull_heads
from flmm_plugin.heads.manifest import BackboneFacts, HeadsManifest, last_part
from flmm_plugin.heads.official import convert, read_official
from flmm_plugin.heads.released import LICENCE, RELEASED, ReleasedLMM, find_released
from flmm_plugin.heads.sam_files import sam_file, sam_need
from flmm_plugin.needs import Need, provide
from flmm_plugin.suggestions import did_you_mean

_REPOSITORY = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
_ENDING = ".safetensors"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoredHeads:
    """Heads in the store.

    Attributes:
        path: The ``.safetensors`` file in the store.
        manifest: What it says of itself.
        released: The LMM of the paper that they were released for; None for all others.
    """

    path: Path
    manifest: HeadsManifest
    released: ReleasedLMM | None


def store_folder() -> Path:
    """Return the folder of the store, which need not exist."""
    return files.cache_folder() / "heads"


def stored_heads() -> list[StoredHeads]:
    """List the heads in the store, released ones first; a file that cannot be read is named in the log and left out."""
    released = {_place_of(one): one for one in RELEASED}
    found = []
    for path in sorted(store_folder().glob(f"*{_ENDING}")):
        try:
            found.append(StoredHeads(path, read_manifest(path), released.get(path)))
        except BadCheckpoint as exc:
            _log.warning("left out of the store of heads: %s", exc)
    return sorted(found, key=lambda one: one.released is None)


def find_heads(backbone: str, revision: str | None = None) -> Path | None:
    """Find the heads of a model in the store; released ones come before all others.

    Args:
        backbone: Hub id or folder, compared by its last part; names that the paper's LMMs have besides count too.
        revision: Commit of the model's weights. Heads that were trained on another one are not found.

    Raises:
        HeadsMismatch: Several heads are there for it, and none of them is the released one.
    """
    released = find_released(backbone)
    names = {last_part(backbone), *(released.names if released is not None else ())}
    fitting = [
        one
        for one in stored_heads()
        if last_part(one.manifest.backbone) in names and (revision is None or one.manifest.revision in (None, revision))
    ]
    if len(fitting) > 1 and fitting[0].released is None:
        listed = ", ".join(str(one.path) for one in fitting)
        raise HeadsMismatch(f"several heads in the store are for {backbone}; say which: heads=<one of {listed}>")
    return fitting[0].path if fitting else None


def heads_need(name: str, *, facts: Callable[[], BackboneFacts | None] = lambda: None) -> Need:
    """Say whether named heads are in the store, and what a fetch would bring.

    Args:
        name: An LMM of the paper or a hub repository ``owner/name[@revision]``, as for `get_heads`.
        facts: Returns the numbers of the checkpoint that the heads will read, as for `get_heads`.

    Raises:
        UnknownArgument: Nothing has this name.
    """
    released = find_released(name)
    if released is not None:
        return Need(
            "heads",
            f"{released.name} (released)",
            _place_of(released).is_file(),
            source=released.address,
            licence=LICENCE,
            command=f"flmm heads get {released.name}",
            bring=lambda: _made(_place_of(released), lambda: _convert_released(released, facts())),
        )
    repository, revision = _repository(name)
    target = _place_of_repository(repository, revision)
    return Need(
        "heads",
        name,
        target.is_file(),
        source=hub_address(repository),
        command=f"flmm heads get {name}",
        bring=lambda: _made(target, lambda: pull_heads(repository, target, revision=revision)),
    )


def needs_of_heads(name: str, *, facts: Callable[[], BackboneFacts | None] = lambda: None) -> list[Need]:
    """Say all that named heads need: themselves and, where released ones have yet to be converted, SAM."""
    need, released = heads_need(name, facts=facts), find_released(name)
    return [need] if need.here or released is None else [sam_need(released.sam), need]


def get_heads(
    name: str | Path, *, fetch: bool = True, facts: Callable[[], BackboneFacts | None] = lambda: None
) -> Path:
    """Return the file of heads by name; what is not in the store is fetched once.

    Args:
        name: A heads file or the folder of a training run, as they are; an LMM of the paper (its name there, hub id or
            folder), for its released heads; a hub repository ``owner/name[@revision]``.
        fetch: Whether anything may be fetched.
        facts: Returns the numbers of the checkpoint that the heads will read, for the check of released ones; None
            where they are unknown: those that the paper states.

    Raises:
        UnknownArgument: Nothing has this name.
        NotReady: The heads are not here, and nothing may be fetched.
        DataNotFound, BadAnnotation, BadCheckpoint, HeadsMismatch: From fetching and converting; what arrived is kept.
    """
    path = heads_file(name)
    if path.is_file():
        return path
    name = str(name)
    if name.endswith(_ENDING) and find_released(name) is None:
        raise BadCheckpoint(f"no heads file at {name}; give the {_ENDING} file that training wrote")
    provide(needs_of_heads(name, facts=facts), fetch=fetch)
    released = find_released(name)
    if released is None:
        return _place_of_repository(*_repository(name))
    _download_of(released).unlink(missing_ok=True)  # left by a process that was killed after it had converted it
    return _place_of(released)


def is_repository(name: str) -> bool:
    """Tell whether a value of ``heads=`` has the form of a hub repository, ``owner/name[@revision]``."""
    return not name.endswith((_ENDING, ".pth")) and _REPOSITORY.fullmatch(name) is not None


def _repository(name: str) -> tuple[str, str | None]:
    matched = _REPOSITORY.fullmatch(name)
    if matched is None or not is_repository(name):
        names = [alias for one in RELEASED for alias in (one.name, *one.names)]
        raise UnknownArgument(
            f"there are no heads {name!r}{did_you_mean(name, names) or '.'} Give a file, the folder of a training run, "
            "owner/name of a hub repository, or an LMM whose heads were released (flmm heads list)"
        )
    return matched["name"], matched["revision"]


def _place_of(released: ReleasedLMM) -> Path:
    return store_folder() / f"{last_part(released.hub)}{_ENDING}"


def _download_of(released: ReleasedLMM) -> Path:
    return store_folder() / "downloads" / released.file


def _place_of_repository(repository: str, revision: str | None) -> Path:
    name = repository.replace("/", "--") + (f"@{revision.replace('/', '--')}" if revision else "")
    return store_folder() / f"{name}{_ENDING}"


def _made(target: Path, make: Callable[[], object]) -> None:
    """Make a file of the store, unless another process has made it while this one waited for it."""
    with files.turn(target, "making"):
        if not target.is_file():
            for part in target.parent.glob(f".{target.name}.*{files.PART}"):  # of a process that was killed
                part.unlink(missing_ok=True)
            make()


def _convert_released(released: ReleasedLMM, facts: BackboneFacts | None) -> None:
    """Fetch a released file, convert it, join it with SAM, and put it into the store."""
    source = WebFile((released.address,), released.file)
    download = fetch_file(source, _download_of(released).parent, _problem_of_released)
    sam = sam_file(released.sam)
    _log.warning("converting %s and joining it with SAM %s, once", released.file, released.sam)
    heads = convert(
        read_official(download),
        released,
        sam=released.sam,
        sam_checkpoint=sam,
        facts=None if facts is None else replace(facts, name=released.hub, revision=None),
        notes={"source": released.address, "source_file": released.file, "source_sha256": file_digest(download)},
    )
    save_heads(_place_of(released), heads)
    with files.naming(download):
        download.unlink()


def _problem_of_released(path: Path) -> str | None:
    try:
        read_official(path)
    except FlmmError as exc:
        return str(exc)
    return None
