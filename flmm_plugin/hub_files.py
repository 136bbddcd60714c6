"""Look at the hub and at its cache on this machine: which weights are here, and how much a fetch would bring."""

from __future__ import annotations

import functools
import os
import re
import socket
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from flmm_plugin import bundled, files
from flmm_plugin.errors import DataNotFound
from flmm_plugin.needs import Need, offline

_INDEX = ".index.json"
_SAFE = ".safetensors"
_PICKLED = (".bin", ".pth", ".pt")
#: Other forms of the same weights, which transformers does not read.
_OTHER_FORMS = ("*.msgpack", "*.h5", "*.onnx", "*.gguf", "*.ot", "consolidated*", "*.tflite")
_SECONDS = 10


@functools.cache
def hub_answers() -> bool:
    """Try once, for seconds only, whether the hub can be reached; behind a proxy, nobody can tell."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or offline():
        return False
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    place = urlsplit(constants.ENDPOINT)
    try:
        with socket.create_connection((str(place.hostname), place.port or 443), timeout=3):
            return True
    except OSError:
        return False


def problem_of_hub(error: Exception) -> str:
    """Say in a few words what the hub answered instead of what it was asked for."""
    from huggingface_hub import constants

    host, status = urlsplit(constants.ENDPOINT).hostname, getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403, 404):
        return f"{host} answers {status}: no such repository, or none for you (hf auth login, and accept its terms)"
    return f"{host} answers {status}, try again later" if status else f"{host} failed ({type(error).__name__})"


def is_hub_id(name: str) -> bool:
    """Tell whether a name has the form ``owner/name`` of the hub, rather than that of a path."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not name.endswith("/")


def snapshot(repository: str, revision: str | None = None) -> Path | None:
    """Return the folder of a model's files in the hub's cache, however many of them are there; None if none is."""
    from huggingface_hub import constants

    home = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    ref = home / "refs" / (revision or "main")
    commit = ref.read_text(encoding="utf-8").strip() if ref.is_file() else revision
    folder = home / "snapshots" / commit if commit else None
    return folder if folder is not None and folder.is_dir() else None


def commit_of(repository: str, revision: str | None) -> str | None:
    """Return the commit that a branch or tag stood for when it was fetched; a commit as it is, None if unknown."""
    if revision is None or re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    folder = snapshot(repository, revision)
    return None if folder is None else folder.name


def holds_weights(folder: Path) -> bool:
    """Tell whether a folder has weights, and so has every folder in it that should have some.

    A folder with indexes has its weights where all parts of one of them are there: several are of several forms.
    """
    names = [path for path in folder.rglob("*") if path.is_file()]
    indexes = [path for path in names if path.name.endswith(_INDEX)]
    complete = {path.parent for path in indexes if _parts_are_here(path)}
    begun = {path.parent for path in indexes}
    alone = {path.parent for path in names if path.suffix in (_SAFE, *_PICKLED)} - begun
    return begun <= complete and bool(complete | alone)


def _parts_are_here(index: Path) -> bool:
    parts = files.read_json(index, DataNotFound).get("weight_map", {}).values()
    return all((index.parent / part).is_file() for part in set(parts))


def weights_need(name: str, revision: str | None = None) -> Need:
    """Say whether the weights of an LMM are here and, for those on the hub, how much a fetch would bring.

    Args:
        name: A bundled model, a folder, or a hub id.
        revision: Branch, tag or commit on the hub; None: the newest.
    """
    if bundled.is_model(name) or Path(name).expanduser().exists():
        return Need("model", name, here=True)
    if not is_hub_id(name):
        by_hand = "give --model_args pretrained=<folder or hub id>"
        return Need("model", f"{name}: there is no such folder", here=False, command=by_hand)
    from huggingface_hub import constants

    folder = snapshot(name, revision)
    source = f"{constants.ENDPOINT}/{name}"
    command = f"hf download {name}" + (f" --revision {revision}" if revision else "")
    if folder is not None and holds_weights(folder):
        return Need("model", name, here=True, source=source, command=command)
    if offline():
        return Need("model", name, here=False, source=source, command=command, bring=lambda: _download(name, revision))
    if not hub_answers():
        silent = f"{name}: {constants.ENDPOINT} does not answer"
        return Need("model", silent, here=False, source=source, command=command)
    try:
        info = _model_info(name, revision)
    except Exception as exc:  # no network behind a proxy, no such model, no right to it
        return Need("model", f"{name}: {problem_of_hub(exc)}", here=False, source=source, command=command)
    left_out = [*_OTHER_FORMS, *_second_forms(one.rfilename for one in info.siblings or ())]
    return Need(
        "model",
        name,
        here=False,
        size=_bytes_to_fetch(info, left_out, folder),
        source=source,
        licence=str(getattr(info.card_data, "license", None) or ""),
        command=command,
        bring=lambda: _download(name, revision, left_out),
        folder=Path(constants.HF_HUB_CACHE),
    )


def _model_info(name: str, revision: str | None) -> Any:
    from huggingface_hub import HfApi

    return HfApi(library_name="flmm-plugin").model_info(name, revision=revision, files_metadata=True, timeout=_SECONDS)


def _second_forms(names: Iterable[str]) -> list[str]:
    """Return patterns of the pickled weights where the same weights are there as safetensors."""
    if not any(name.endswith(_SAFE) for name in names):
        return []
    return [f"*{ending}{more}" for ending in _PICKLED for more in ("", _INDEX)]


def _bytes_to_fetch(info: Any, left_out: list[str], folder: Path | None) -> int | None:
    wanted = [one for one in info.siblings or () if not any(fnmatch(one.rfilename, pattern) for pattern in left_out)]
    gone = [one for one in wanted if folder is None or not (folder / one.rfilename).is_file()]
    return None if any(one.size is None for one in gone) else sum(one.size for one in gone)


def _download(name: str, revision: str | None, left_out: Sequence[str] = _OTHER_FORMS) -> None:
    """Fetch a model into the hub's cache; what an interrupted fetch left there is continued.

    Raises:
        DataNotFound: There is no such model, no right to it, or no connection.
    """
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(name, revision=revision, ignore_patterns=list(left_out))
    except Exception as exc:
        reason = next((line.strip() for line in str(exc).splitlines() if line.strip()), "")
        raise DataNotFound(
            f"cannot fetch {name} ({type(exc).__name__}: {reason}); what has arrived is kept, so the same command "
            f"goes on. Check the name and the connection; for models with terms: hf auth login, and accept them on "
            "the model's page"
        ) from exc
