"""Find files of SAM by name: Meta's own, fetched once into the store, and those of transformers' form, renamed.

The store is the folder ``sam`` of `flmm_plugin.files.cache_folder`. A file of transformers' form (``SamModel``, one
``model.safetensors``) has the same tensors under other names; it is written there under Meta's names.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from flmm_plugin import files
from flmm_plugin.errors import BadCheckpoint, DataNotFound, UnknownArgument
from flmm_plugin.fetching import WebFile
from flmm_plugin.fetching import fetch as fetch_file
from flmm_plugin.heads.sam import OFFICIAL_FILES
from flmm_plugin.heads.weights import read_safetensors
from flmm_plugin.needs import Need, provide
from flmm_plugin.suggestions import did_you_mean

LICENCE = "Apache-2.0"

_ADDRESS = "https://dl.fbaipublicfiles.com/segment_anything"
#: Bytes of Meta's files.
_SIZES = {"vit_b": 375_042_383, "vit_l": 1_249_524_607, "vit_h": 2_564_550_879}
#: Repositories of the hub that hold the same tensors in transformers' form.
_OF_TRANSFORMERS = {
    "vit_b": "facebook/sam-vit-base",
    "vit_l": "facebook/sam-vit-large",
    "vit_h": "facebook/sam-vit-huge",
}
_WEIGHTS = "model.safetensors"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")

#: What is replaced in a name of transformers, in this order; the rest of the name is the same.
_RENAMED = (
    (r"^vision_encoder\.", "image_encoder."),
    (r"^image_encoder\.layers\.", "image_encoder.blocks."),
    (r"^(image_encoder\.blocks\.\d+)\.layer_norm", r"\1.norm"),
    (r"patch_embed\.projection", "patch_embed.proj"),
    (r"neck\.conv1", "neck.0"),
    (r"neck\.layer_norm1", "neck.1"),
    (r"neck\.conv2", "neck.2"),
    (r"neck\.layer_norm2", "neck.3"),
    (r"^(prompt_encoder\.shared|shared_image)_embedding\.positional_embedding",
     "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"),
    (r"prompt_encoder\.point_embed\.", "prompt_encoder.point_embeddings."),
    (r"mask_embed\.conv1", "mask_downscaling.0"),
    (r"mask_embed\.layer_norm1", "mask_downscaling.1"),
    (r"mask_embed\.conv2", "mask_downscaling.3"),
    (r"mask_embed\.layer_norm2", "mask_downscaling.4"),
    (r"mask_embed\.conv3", "mask_downscaling.6"),
    (r"mask_decoder\.upscale_conv1", "mask_decoder.output_upscaling.0"),
    (r"mask_decoder\.upscale_layer_norm", "mask_decoder.output_upscaling.1"),
    (r"mask_decoder\.upscale_conv2", "mask_decoder.output_upscaling.3"),
    (r"(mask_decoder\.transformer\..*)layer_norm", r"\1norm"),
    (r"((?:mlps\.\d+|prediction_head))\.layers\.(\d+)\.", lambda found: f"{found[1]}.layers.{int(found[2]) + 1}."),
    (r"((?:mlps\.\d+|prediction_head))\.proj_in\.", r"\1.layers.0."),
    (r"((?:mlps\.\d+|prediction_head))\.proj_out\.", r"\1.layers.2."),
)  # fmt: skip


def sam_file(name: str | Path, *, fetch: bool = True) -> Path:
    """Return the file of a SAM by name; what is not in the store is fetched or renamed once.

    Args:
        name: ``vit_b``, ``vit_l`` or ``vit_h`` for Meta's own, or transformers' form of it where only that is here; a
            file, as it is; a folder or a hub repository of transformers' form, such as ``facebook/sam-vit-large``.
        fetch: Whether anything may be fetched.

    Raises:
        UnknownArgument: Nothing has this name.
        NotReady: It is not here, and nothing may be fetched.
        DataNotFound, BadAnnotation, BadCheckpoint: From fetching and renaming; what has arrived is kept.
    """
    provide([sam_need(name)], fetch=fetch)
    text = _one_that_is_here(str(name))
    place = _place(text)
    if not place.is_file():  # transformers' form is here, and nothing had to be fetched
        _write(_safetensors(text), place)
    return place


def sam_need(name: str | Path) -> Need:
    """Say whether a SAM is on this machine, and what brings it.

    Args:
        name: Any name that `sam_file` takes.

    Raises:
        UnknownArgument: Nothing has this name.
    """
    text = _one_that_is_here(str(name))
    place = _place(text)
    if text in OFFICIAL_FILES:
        file = OFFICIAL_FILES[text]
        web = WebFile((f"{_ADDRESS}/{file}",), file)
        return Need(
            "sam",
            f"SAM {text} ({file})",
            place.is_file(),
            size=_SIZES[text],
            source=web.urls[0],
            licence=LICENCE,
            command=f"flmm heads get-sam {text}",
            bring=lambda: fetch_file(web, place.parent, problem_of_digits),
        )
    return Need(
        "sam",
        f"SAM {text}",
        place.is_file() or Path(text).is_dir() or _cached(text) is not None,
        source=f"https://huggingface.co/{text}",
        licence=LICENCE,
        command=f"flmm heads get-sam {text}",
        bring=lambda: _write(_safetensors(text), place),
    )


def problem_of_digits(path: Path) -> str | None:
    """Compare a file with the six digits in the name of Meta's file, which its MD5 begins with; None if they agree."""
    wanted = path.name.lstrip(".").partition(".pth")[0].rsplit("_", 1)[-1]
    with path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    return None if found.startswith(wanted) else f"a file whose MD5 begins with {found[:6]}, not with {wanted}"


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the tensors of transformers' ``SamModel`` Meta's names; its position code may be there twice."""
    found = {}
    for name, tensor in state.items():
        for pattern, new in _RENAMED:
            name = re.sub(pattern, new, name)
        found[name] = tensor
    return found


def _one_that_is_here(name: str) -> str:
    """Return the repository of transformers' form for one of Meta's names of which only that form is here."""
    other = _OF_TRANSFORMERS.get(name)
    if other is None or _place(name).is_file():
        return name
    return other if _place(other).is_file() or _cached(other) is not None else name


def _cached(repository: str) -> Path | None:
    """Return the weights of a repository in the hub's cache on this machine, None if they are not there."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, _WEIGHTS) if _HUB_ID.fullmatch(repository) else None
    return Path(found) if isinstance(found, str) else None


def _place(name: str | Path) -> Path:
    """Return where a SAM is, or will be once it was fetched or renamed."""
    text, folder = str(name), files.cache_folder() / "sam"
    path = Path(text).expanduser()
    if text in OFFICIAL_FILES:
        return folder / OFFICIAL_FILES[text]
    if path.is_file():
        return path
    if path.is_dir():
        stat = _safetensors(text).stat()
        facts = f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}"
        return folder / f"{path.resolve().name}-{hashlib.sha256(facts.encode()).hexdigest()[:12]}.pth"
    if _HUB_ID.fullmatch(text) and path.suffix not in (".pth", ".pt", ".safetensors"):
        size = next((f"-{size}" for size, repository in _OF_TRANSFORMERS.items() if repository == text), "")
        return folder / f"{text.replace('/', '--')}{size}.pth"  # those who load it find the size in its name
    hint = did_you_mean(text, OFFICIAL_FILES) or "."
    raise UnknownArgument(
        f"there is no SAM {text!r}{hint} Give {', '.join(OFFICIAL_FILES)}, a file, or a folder or hub repository of "
        "transformers' form (facebook/sam-vit-large)"
    )


def _safetensors(name: str) -> Path:
    """Return the weights of a folder or hub repository of transformers' form; those of a repository are fetched."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / _WEIGHTS).is_file():
            raise BadCheckpoint(f"{folder} has no {_WEIGHTS}; give Meta's file, or a folder of transformers' SamModel")
        return folder / _WEIGHTS
    cached = _cached(name)
    if cached is not None:
        return cached
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, _WEIGHTS))
    except Exception as exc:  # the hub's errors have no common base that stays the same over versions
        reason = next((line.strip() for line in str(exc).splitlines() if line.strip()), "")
        raise DataNotFound(
            f"cannot fetch {_WEIGHTS} of {name} ({type(exc).__name__}: {reason}); check the name and the connection, "
            "and run the same command again: it goes on with what has arrived"
        ) from exc


def _write(weights: Path, place: Path) -> None:
    with files.turn(place, "renaming the tensors of"), files.naming(place):
        partial = place.with_name(f".{place.name}{files.PART}")
        torch.save(renamed(read_safetensors(weights)), partial)
        partial.replace(place)
