"""Loading of weights that transformers has no auto class for: strictly, and with errors that name the fix."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from flmm_plugin.backbones.loading import checked_dtype, default_device, quantization
from flmm_plugin.errors import BackboneUnsupported, BadCheckpoint, UnknownArgument

# Tables that older versions of transformers stored and that every version computes by itself.
_COMPUTED = re.compile(r"(rotary_emb\.inv_freq|embeddings\.position_ids)$")


@contextmanager
def named_failures(name: str) -> Iterator[None]:
    """Turn what transformers and safetensors raise while a model is read into this package's errors.

    Raises:
        BadCheckpoint: Weights are damaged, or of another shape than the configuration says.
        BackboneUnsupported: A file is missing, or transformers cannot read what it says.
    """
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as exc:
        raise BadCheckpoint(f"the weights of {name} are damaged ({exc}); fetch them again") from exc
    except RuntimeError as exc:
        if "size mismatch" not in str(exc) and "mismatched" not in str(exc):
            raise
        raise BadCheckpoint(
            f"the weights of {name} are of another shape than its config.json says ({exc}); fetch both at one revision"
        ) from exc
    except (OSError, ValueError, ImportError) as exc:
        raise BackboneUnsupported(f"{name} cannot be read: {exc}") from exc


def load_strictly(model_class: Any, folder: str, *, name: str, options: Mapping[str, Any]) -> Any:
    """``from_pretrained``, with every stored tensor used and every parameter stored.

    Raises:
        BackboneUnsupported: Files that cannot be read.
        BadCheckpoint: As `refuse_incomplete`, or damaged weights.
    """
    with named_failures(name):
        model, info = model_class.from_pretrained(folder, output_loading_info=True, use_safetensors=True, **options)
    refuse_incomplete(name, info["missing_keys"], info["unexpected_keys"], info.get("mismatched_keys", ()))
    return model


def refuse_incomplete(name: str, missing: Any, unexpected: Any, mismatched: Any = ()) -> None:
    """Raise `BadCheckpoint` naming the first tensors that are missing, belong nowhere or have another shape."""
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


def weight_options(
    *,
    revision: str | None,
    dtype: str | torch.dtype,
    device: str | torch.device | None,
    device_map: str | Mapping[str, Any] | None,
    attn_implementation: str | None,
    load_in_4bit: bool = False,
    load_in_8bit: bool = False,
) -> dict[str, Any]:
    """Arguments of ``from_pretrained`` for arguments of `flmm_plugin.backbones.load_backbone`.

    Raises:
        UnknownArgument: Arguments that exclude each other, or an unknown dtype.
    """
    if device is not None and device_map is not None:
        raise UnknownArgument("give either device or device_map, not both")
    options: dict[str, Any] = {"revision": revision, "dtype": checked_dtype(dtype)}
    quantized = quantization(load_in_4bit, load_in_8bit)
    if quantized is not None:
        options["quantization_config"] = quantized
    if quantized is not None and device_map is None:
        # Quantised weights are placed while they are loaded and cannot be moved afterwards.
        device_map = {"": str(device or default_device())}
    chosen = {"device_map": device_map, "attn_implementation": attn_implementation}
    return options | {key: value for key, value in chosen.items() if value is not None}


def placed(model: Any, device: str | torch.device | None, options: Mapping[str, Any]) -> Any:
    """The model on its device; one that `weight_options` had placed while loading is there already."""
    if "device_map" in options:
        return model
    return model.to(device if device is not None else default_device())
