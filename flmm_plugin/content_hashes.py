"""Name files by what is in them: a file that was replaced under its name, with its time set back, is another file."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from flmm_plugin import bundled

_PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")


def file_digest(path: Path) -> str:
    """Hash a file's bytes.

    Returns:
        SHA-256, 64 hexadecimal digits.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def path_digest(path: Path) -> str:
    """Hash a file, or the names and contents of all files under a folder, hidden ones left out.

    Args:
        path: File or folder. Of the pictures in a folder, which may be many gigabytes, names and sizes count.

    Returns:
        SHA-256, 64 hexadecimal digits.
    """
    if path.is_file():
        return file_digest(path)
    whole = hashlib.sha256()
    for file in _files(path):
        picture = file.suffix.lower() in _PICTURES
        content = f"{file.stat().st_size} bytes" if picture else file_digest(file)
        whole.update(f"{file.relative_to(path).as_posix()}\0{content}\n".encode())
    return whole.hexdigest()


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of those packages that are installed, by name as on PyPI."""
    found = {name: _version(name) for name in packages}
    return {name: version for name, version in found.items() if version is not None}


@functools.cache
def _version(name: str) -> str | None:
    """Look a version up once in a process: it means to parse all that the package says of itself."""
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(name)
    return None


def argument_digests(arguments: Mapping[str, Any]) -> dict[str, str]:
    """Name what model arguments point to: files and folders by content, models on the hub by their commit.

    Args:
        arguments: By name, such as ``pretrained``, ``heads`` and ``sam_checkpoint``.

    Returns:
        By name; without those that point to nothing, and without a model that is not in the hub's cache yet.
    """
    found = {}
    for name, value in arguments.items():
        path = Path(str(value)).expanduser()
        if bundled.is_model(str(value)):
            path = bundled.model(str(value)).checkpoint().parent  # where its heads are too
        if path.exists():
            found[name] = path_digest(path)
        elif name == "pretrained":
            commit = _commit_in_cache(str(value), arguments.get("revision"))
            found |= {name: commit} if commit else {}
    return found


def _files(folder: Path) -> Iterator[Path]:
    seen = set()
    for here, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(here)
        if real in seen:  # a link to a folder above
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (
            Path(here, name) for name in sorted(names) if not name.startswith(".") and Path(here, name).exists()
        )


def _commit_in_cache(name: str, revision: str | None) -> str | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(name, "config.json", revision=revision)
    except HFValidationError:
        return None
    return Path(config).parent.name if isinstance(config, str) else None
