"""Name what decides an answer; every store of answers has that name in its keys.

An answer belongs to the weights, options, code and libraries that made it, and to what was asked; it does not belong to
a path. So everything here is named by content: a file that was replaced under its old name, with its old time, is
another file.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import flmm_plugin
from flmm_plugin.content_hashes import file_digest, versions
from flmm_plugin.devices import device_name

# Libraries that decide pixels, tokens or sums.
_LIBRARIES = (
    "torch", "torchvision", "transformers", "tokenizers", "numpy", "pillow", "opencv-python-headless",
    "segment-anything", "bitsandbytes", "flash-attn", "kernels",
)  # fmt: skip

# Folders of this package whose code answers nothing; what the tasks ask is part of what was asked.
_SILENT = ("cli", "data", "datasets", "reports", "tasks", "tiny", "training", "preservation")

# What configurations say of where they lie and who wrote them.
_NOT_DECIDING = {
    "_name_or_path", "name_or_path", "_commit_hash", "transformers_version", "processor_class", "_processor_class",
    "is_local", "local_files_only", "tokenizer_file", "vocab_file", "merges_file", "chat_template_file", "cache_dir",
}  # fmt: skip

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")  # of an object in memory: another one in every process

# What a manifest says of where heads come from.
_OF_ORIGIN = ("backbone", "revision", "data", "notes", "created_by", "storage", "sha256")


def answer_identity(model: Any, *, grounds: bool = True) -> str:
    """Name all that decides the answers of a loaded model: 64 hexadecimal digits, the same in every process.

    Args:
        model: A loaded model of either harness: an object with ``lmm`` (a `GroundedLMM`), ``visual_cot`` and
            ``batch_size``. What it lacks counts as None.
        grounds: Whether heads have a part in the answers. Chat is the same with heads, without, and before they are
            loaded, so its answers are not named by them.

    Returns:
        SHA-256 of `answer_facts`.
    """
    return digest_of(answer_facts(model, grounds=grounds))


def answer_facts(model: Any, *, grounds: bool = True) -> dict[str, Any]:
    """Name each part of `answer_identity`, JSON-able, to tell what two identities differ in.

    Weights are named by the seal of the frozen LMM and by a hash of every tensor of the heads, SAM included; paths,
    repository names and times play no role.
    """
    lmm = getattr(model, "lmm", None)
    backbone, heads = getattr(lmm, "backbone", None), getattr(lmm, "heads", None)
    network, processor, tokenizer = (getattr(backbone, part, None) for part in ("model", "processor", "tokenizer"))
    return {
        "package": flmm_plugin.__version__,
        "code": code_digest(),
        "libraries": versions(_LIBRARIES),
        "backbone": type(backbone).__qualname__,
        "weights": getattr(getattr(lmm, "seal", None), "digest", None),
        "configuration": digest_of(_content(getattr(network, "config", None))),
        "generation": digest_of(_content(getattr(network, "generation_config", None))),
        "kernel": _text(getattr(backbone, "kernel", None)),
        "dtype": _text(getattr(backbone, "dtype", None)),
        "device": device_name(getattr(backbone, "device", None)),
        "pictures": digest_of([type(processor).__qualname__, _content(processor), _pictures(processor)]),
        "tokenizer": digest_of(_tokenizer(tokenizer)),
        "template": digest_of([getattr(one, "chat_template", None) for one in (processor, tokenizer)]),
        "system_prompt": getattr(backbone, "system_prompt", None),
        "preprocessing": getattr(backbone, "preprocessing", None) if grounds else None,
        "heads": _heads(heads) if grounds and heads is not None else None,
        "merge": getattr(lmm, "merge", None) if grounds else None,
        "visual_cot": _visual_cot(getattr(model, "visual_cot", None)),
        "batch_size": getattr(model, "batch_size", None),
    }


def asked_digest(words: Any, pictures: Iterable[Any] = ()) -> str:
    """Name what is asked by its content.

    Args:
        words: Prompt, messages, options and marks: JSON-able, else by what ``repr`` says.
        pictures: Pillow images, named by their pixels, or paths, named by the bytes of their files.

    Returns:
        64 hexadecimal digits.

    Raises:
        OSError: A file cannot be read.
    """
    return digest_of([words, [picture_digest(one) for one in pictures]])


def picture_digest(picture: Any) -> str:
    """SHA-256 of a picture: of a Pillow image's mode, size, pixels and orientation, or of the bytes of a file.

    Raises:
        OSError: The file cannot be read.
    """
    if hasattr(picture, "tobytes"):
        facts = [picture.mode, picture.size, picture.getpalette()]
        facts += [picture.info.get(name) for name in ("transparency", "exif")]
        whole = hashlib.sha256(repr(facts).encode())
        whole.update(picture.tobytes())
        return whole.hexdigest()
    return file_digest(Path(str(picture)))


def digest_of(content: Any) -> str:
    """SHA-256 of JSON-able content, whatever the order of its keys; 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=repr).encode()).hexdigest()


@functools.cache
def code_digest(without: tuple[str, ...] = _SILENT) -> str:
    """SHA-256 of the source of this package that answers; says more than a commit, also of a changed working copy.

    Args:
        without: Folders of the package that do not count.
    """
    package = Path(flmm_plugin.__file__).parent
    # In a working copy some folders of the package are symbolic links.
    files = [Path(folder, name) for folder, _, names in os.walk(package, followlinks=True) for name in names]
    whole = hashlib.sha256()
    for path in sorted(files):
        name = path.relative_to(package)
        if path.suffix == ".py" and not set(without) & set(name.parts[:-1]):
            whole.update(f"{name.as_posix()}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()


def _heads(heads: Any) -> dict[str, Any]:
    from flmm_plugin.seal import FrozenSeal

    return {
        "tensors": FrozenSeal(heads).digest,
        "manifest": {k: v for k, v in dataclasses.asdict(heads.manifest).items() if k not in _OF_ORIGIN},
        "method": _text(getattr(heads, "method", None)),
    }


def _visual_cot(mode: Any) -> dict[str, Any] | None:
    return None if mode is None else {"always": mode.always, **dataclasses.asdict(mode.options)}


def _content(thing: Any) -> Any:
    """Return a configuration or processor of transformers as plain data, without its path; None if it cannot say."""
    described = getattr(thing, "to_dict", None)
    return _deciding(described()) if described is not None else None


def _pictures(processor: Any) -> Any:
    part = getattr(processor, "image_processor", None)
    return [type(part).__qualname__, _content(part)]


def _tokenizer(tokenizer: Any) -> Any:
    if tokenizer is None:
        return None
    fast: Any = getattr(tokenizer, "backend_tokenizer", None)
    if hasattr(fast, "to_str"):
        # What a call set, not what the tokenizer is: padding and truncation of the latest batch.
        table: Any = {k: v for k, v in json.loads(fast.to_str()).items() if k not in ("padding", "truncation")}
    else:
        table = sorted(tokenizer.get_vocab().items())
    options = _deciding(dict(getattr(tokenizer, "init_kwargs", {})))
    return [type(tokenizer).__qualname__, table, options, getattr(tokenizer, "special_tokens_map", None)]


def _deciding(content: Any) -> Any:
    """Drop what says where content lies and what wrote it, at every depth."""
    if isinstance(content, Mapping):
        return {str(key): _deciding(value) for key, value in content.items() if key not in _NOT_DECIDING}
    if isinstance(content, list | tuple):
        return [_deciding(value) for value in content]
    if isinstance(content, set | frozenset):
        return sorted(map(str, content))
    return content if isinstance(content, str | int | float | None) else _ADDRESS.sub("", str(content))


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


code_digest()  # taken now and remembered: what was imported answers, whatever is written into the files meanwhile
