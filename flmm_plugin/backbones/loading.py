"""Model and processor of a checkpoint, by transformers' auto classes, with errors that name the fix."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from flmm_plugin.backbones.processor_check import complete_processor
from flmm_plugin.errors import BackboneUnsupported, BadCheckpoint, UnknownArgument
from flmm_plugin.file_kinds import strangers
from flmm_plugin.nearest import did_you_mean


def load_pretrained(
    folder: str,
    *,
    name: str,
    revision: str | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    attn_implementation: str | None = None,
    load_in_4bit: bool = False,
    load_in_8bit: bool = False,
) -> tuple[Any, Any]:
    """Load model and processor; arguments as in `flmm_plugin.backbones.load_backbone`.

    Returns:
        Model and processor.

    Raises:
        BackboneUnsupported: transformers cannot load it.
        BadCheckpoint: Its weights are damaged or incomplete.
        UnknownArgument: Arguments that exclude each other.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForImageTextToText, AutoProcessor

    if device is not None and device_map is not None:
        raise UnknownArgument("give either device or device_map, not both")
    options: dict[str, Any] = {"revision": revision, "dtype": checked_dtype(dtype)}
    quantized = quantization(load_in_4bit, load_in_8bit)
    if quantized is not None:
        options["quantization_config"] = quantized
        # Quantised weights are placed while they are loaded and cannot be moved afterwards.
        device_map = device_map if device_map is not None else {"": str(device or default_device())}
    if device_map is not None:
        options["device_map"] = device_map
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    try:
        processor = AutoProcessor.from_pretrained(folder, revision=revision)
    except (AttributeError, ImportError, LookupError, OSError, TypeError, ValueError) as exc:
        raise BackboneUnsupported(
            f"transformers cannot load the processor of {name}: {exc}{strangers(Path(folder))}"
        ) from exc
    try:
        loaded: Any = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True, **options)
    except SafetensorError as exc:
        raise BadCheckpoint(
            f"the weights of {name} are damaged ({exc}){strangers(Path(folder))}; fetch them again"
        ) from exc
    except (OSError, ValueError, ImportError) as exc:
        raise BackboneUnsupported(f"transformers cannot load {name}: {exc}{strangers(Path(folder))}") from exc
    except RuntimeError as exc:
        if "mismatch" not in str(exc):
            raise
        raise BadCheckpoint(
            f"the weights of {name} are of another shape than its config.json says ({exc}); fetch both at one revision"
        ) from exc
    model, info = loaded
    if info["missing_keys"]:
        first = ", ".join(sorted(info["missing_keys"])[:3])
        raise BadCheckpoint(
            f"the weights of {name} lack {len(info['missing_keys'])} tensors ({first}...), which would be random; "
            "fetch the checkpoint again"
        )
    complete_processor(processor, model.config)
    if device_map is None:
        model = model.to(device if device is not None else default_device())
    return model, processor


def quantization(load_in_4bit: bool, load_in_8bit: bool) -> Any | None:
    """transformers' configuration for weights of 4 or 8 bits, None for neither.

    What is computed stays in 16 or 32 bits; the captured rows are those of the quantised model.

    Raises:
        BackboneUnsupported: bitsandbytes is not installed.
        UnknownArgument: Both were asked for.
    """
    if not (load_in_4bit or load_in_8bit):
        return None
    if load_in_4bit and load_in_8bit:
        raise UnknownArgument("give either load_in_4bit or load_in_8bit, not both")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise BackboneUnsupported(
            "weights of 4 or 8 bits need bitsandbytes, which is not installed: pip install 'flmm-plugin[quantized]'"
        )
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_4bit=load_in_4bit, load_in_8bit=load_in_8bit)


def default_device() -> str:
    """Where a model goes if nobody says."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def checked_dtype(dtype: str | torch.dtype) -> str | torch.dtype:
    """``auto``, or the dtype of that name.

    Raises:
        UnknownArgument: There is no such dtype; offers the nearest.
    """
    if isinstance(dtype, torch.dtype) or dtype == "auto":
        return dtype
    found = getattr(torch, dtype, None)
    if isinstance(found, torch.dtype):
        return found
    hint = did_you_mean(dtype, ("auto", "float32", "float16", "bfloat16")) or "; use 'bfloat16'"
    raise UnknownArgument(f"there is no dtype {dtype!r}{hint}")
