"""Load a checkpoint's weights, with errors that name the fix."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from flmm_plugin.backbones.processor_check import complete_processor
from flmm_plugin.errors import BackboneUnsupported, BadCheckpoint, UnknownArgument
from flmm_plugin.file_kinds import strangers
from flmm_plugin.options import LoadOptions
from flmm_plugin.suggestions import did_you_mean

# Tables that older versions of transformers stored and that every version computes by itself.
_COMPUTED = re.compile(r"(rotary_emb\.inv_freq|embeddings\.position_ids)$")

#: What transformers raises for files that it cannot read.
_UNREADABLE = (OSError, ValueError, ImportError)


def load_pretrained(folder: str, *, name: str, options: LoadOptions) -> tuple[Any, Any]:
    """Load model and processor of a checkpoint by transformers' auto classes.

    Args:
        folder: A folder on this machine, or a hub id.
        name: The model as the user called it, for messages.
        options: Options of loading; the system prompt and preprocessing play no role.

    Returns:
        Model and processor.

    Raises:
        BackboneUnsupported: transformers cannot load it.
        BadCheckpoint: Its weights are damaged or incomplete.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    weights = weight_arguments(options)
    with named_failures(f"the processor of {name}", folder, (*_UNREADABLE, AttributeError, LookupError, TypeError)):
        processor = AutoProcessor.from_pretrained(folder, revision=options.revision)
    loader: Any = AutoModelForImageTextToText
    with named_failures(name, folder):
        model, info = loader.from_pretrained(folder, output_loading_info=True, **weights)
    refuse_incomplete(name, info["missing_keys"])
    complete_processor(processor, model.config)
    return placed(model, options), processor


def load_strictly(model_class: Any, folder: str, *, name: str, **arguments: Any) -> Any:
    """Load a model of which every stored tensor is used and every parameter is stored.

    Args:
        model_class: A class of transformers with ``from_pretrained``.
        folder: A folder on this machine, or a hub id.
        name: The model as the user called it.
        **arguments: Further arguments of ``from_pretrained``, such as `weight_arguments`.

    Raises:
        BackboneUnsupported: Files that cannot be read.
        BadCheckpoint: As `refuse_incomplete`, or damaged weights.
    """
    with named_failures(name, folder):
        model, info = model_class.from_pretrained(folder, output_loading_info=True, use_safetensors=True, **arguments)
    refuse_incomplete(name, info["missing_keys"], info["unexpected_keys"], info.get("mismatched_keys", ()))
    return model


@contextmanager
def named_failures(name: str, folder: str, unreadable: tuple[type[Exception], ...] = _UNREADABLE) -> Iterator[None]:
    """Turn what transformers and safetensors raise while a model is read into this package's errors.

    Args:
        name: What is read, for messages.
        folder: Its folder, where files of another kind (Git LFS pointers, web pages) are looked for.
        unreadable: Errors that mean that it cannot be read.

    Raises:
        BadCheckpoint: Weights are damaged, or of another shape than the configuration says.
        BackboneUnsupported: A file is missing, or transformers cannot read what it says.
    """
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as exc:
        raise BadCheckpoint(
            f"the weights of {name} are damaged ({exc}){strangers(Path(folder))}; fetch them again"
        ) from exc
    except RuntimeError as exc:
        if "mismatch" not in str(exc):
            raise
        raise BadCheckpoint(
            f"the weights of {name} are of another shape than its config.json says ({exc}); fetch both at one revision"
        ) from exc
    except unreadable as exc:
        raise BackboneUnsupported(f"transformers cannot load {name}: {exc}{strangers(Path(folder))}") from exc


def refuse_incomplete(name: str, missing: Any, unexpected: Any = (), mismatched: Any = ()) -> None:
    """Refuse weights that do not fit a model.

    Args:
        name: The model as the user called it.
        missing: Tensors that the model has and the file lacks.
        unexpected: Tensors that only the file has.
        mismatched: Tensors of another shape: names, or tuples that begin with one.

    Raises:
        BadCheckpoint: There are some; names the first three.
    """
    strange = [key for key in unexpected if not _COMPUTED.search(key)]
    shapes = [key if isinstance(key, str) else key[0] for key in mismatched]
    for keys, problem, fix in (
        (missing, "lack", "which would be random; fetch the checkpoint again"),
        (strange, "hold", "which belong to no part of this model; is it another model's checkpoint?"),
        (shapes, "hold", "of another shape than config.json says; fetch both from one revision"),
    ):
        if keys:
            first = ", ".join(sorted(keys)[:3]) + ("..." if len(keys) > 3 else "")
            raise BadCheckpoint(f"the weights of {name} {problem} {len(keys)} tensors ({first}), {fix}")


def weight_arguments(options: LoadOptions) -> dict[str, Any]:
    """Return arguments of transformers' ``from_pretrained``.

    Raises:
        BackboneUnsupported: Quantised weights without bitsandbytes.
        UnknownArgument: An unknown dtype.
    """
    arguments: dict[str, Any] = {"revision": options.revision, "dtype": torch_dtype(options.dtype)}
    device_map: str | Mapping[str, Any] | None = options.device_map
    if options.bits is not None:
        if importlib.util.find_spec("bitsandbytes") is None:
            raise BackboneUnsupported(
                "weights of 4 or 8 bits need bitsandbytes, which is not installed: pip install 'flmm-plugin[quantized]'"
            )
        from transformers import BitsAndBytesConfig

        make: Any = BitsAndBytesConfig
        arguments["quantization_config"] = make(**{f"load_in_{options.bits}bit": True})
        # Quantised weights are placed while they are loaded and cannot be moved afterwards.
        device_map = device_map or {"": options.device or default_device()}
    if device_map is not None:
        arguments["device_map"] = device_map
    if options.attn_implementation is not None:
        arguments["attn_implementation"] = options.attn_implementation
    return arguments


def placed(model: Any, options: LoadOptions) -> Any:
    """Move a model to its device, unless `weight_arguments` had it placed while it was loaded."""
    if options.device_map is not None or options.bits is not None:
        return model
    return model.to(options.device or default_device())


def default_device() -> str:
    """Return the first GPU, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def torch_dtype(name: str) -> str | torch.dtype:
    """Return the dtype of a name; ``auto`` as it is.

    Raises:
        UnknownArgument: There is no such dtype; offers the nearest.
    """
    if name == "auto":
        return name
    found = getattr(torch, name, None)
    if isinstance(found, torch.dtype):
        return found
    hint = did_you_mean(name, ("auto", "float32", "float16", "bfloat16")) or "; use 'bfloat16'"
    raise UnknownArgument(f"there is no dtype {name!r}{hint}")
